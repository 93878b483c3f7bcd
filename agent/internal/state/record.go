package state

import (
	"encoding/binary"
	"hash/crc32"
)

// A segment is a file header and records, without gaps, all little-endian:
//
//	file header, 32 bytes
//	   0  magic "vragstat"
//	   8  format version
//	  12  CRC-32C of bytes 0 to 11 and 16 to 31
//	  16  salt, also in the file's name
//	  24  zero
//	record
//	   0  magic
//	   4  CRC-32C of bytes 8 to 39 and the key, begun with the salt
//	   8  sequence number of the batch
//	  16  sequence number up to which all was on disk when this was written
//	  24  place in the batch, from 0
//	  28  flags: 1 delete, 2 last of the batch
//	  29  zero
//	  30  length of the key
//	  32  length of the value
//	  36  CRC-32C of the value
//	  40  key, value
//
// After damage records are found again by their magic. A value may hold bytes
// that look like a record, put there on purpose: without the segment's salt
// their checksum is wrong.
const (
	fileMagic     = "vragstat"
	formatVersion = 1

	fileHeaderSize   = 32
	recordHeaderSize = 40

	recordMagic uint32 = 0x8d5ec6b1

	flagDelete = 1
	flagLast   = 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// salt is what the checksums of one segment's record headers begin with.
type salt [8]byte

func (s salt) begin() uint32 { return checksum(s[:]) }

func fileHeader(s salt) []byte {
	b := make([]byte, fileHeaderSize)
	copy(b, fileMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	copy(b[16:], s[:])
	binary.LittleEndian.PutUint32(b[12:], fileHeaderCRC(b))
	return b
}

func fileHeaderCRC(b []byte) uint32 {
	return crc32.Update(checksum(b[:12]), castagnoli, b[16:fileHeaderSize])
}

// parseFileHeader returns the version of a sound header.
func parseFileHeader(b []byte) (version uint32, s salt, ok bool) {
	if len(b) < fileHeaderSize || string(b[:8]) != fileMagic ||
		binary.LittleEndian.Uint32(b[12:]) != fileHeaderCRC(b) {
		return 0, s, false
	}
	copy(s[:], b[16:])
	return binary.LittleEndian.Uint32(b[8:]), s, true
}

// header is a record without its key and value.
type header struct {
	seq, durable       uint64
	index              uint32
	flags              uint8
	keyLen             uint16
	valueLen, valueCRC uint32
}

func (h header) deletes() bool { return h.flags&flagDelete != 0 }
func (h header) last() bool    { return h.flags&flagLast != 0 }

// size is that of the whole record in bytes.
func (h header) size() int64 {
	return recordHeaderSize + int64(h.keyLen) + int64(h.valueLen)
}

// appendRecordHead appends the record's header and key to dst.
func appendRecordHead(dst []byte, s salt, h header, key string) []byte {
	at := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, recordMagic)
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	dst = binary.LittleEndian.AppendUint64(dst, h.seq)
	dst = binary.LittleEndian.AppendUint64(dst, h.durable)
	dst = binary.LittleEndian.AppendUint32(dst, h.index)
	dst = append(dst, h.flags, 0)
	dst = binary.LittleEndian.AppendUint16(dst, h.keyLen)
	dst = binary.LittleEndian.AppendUint32(dst, h.valueLen)
	dst = binary.LittleEndian.AppendUint32(dst, h.valueCRC)
	dst = append(dst, key...)
	crc := crc32.Update(s.begin(), castagnoli, dst[at+8:])
	binary.LittleEndian.PutUint32(dst[at+4:], crc)
	return dst
}

// parseHeader reads a header's fields from at least recordHeaderSize bytes.
// The checksum is checked by soundHead, once the key is there too.
func parseHeader(b []byte) (h header, ok bool) {
	if binary.LittleEndian.Uint32(b) != recordMagic {
		return header{}, false
	}
	h = header{
		seq:      binary.LittleEndian.Uint64(b[8:]),
		durable:  binary.LittleEndian.Uint64(b[16:]),
		index:    binary.LittleEndian.Uint32(b[24:]),
		flags:    b[28],
		keyLen:   binary.LittleEndian.Uint16(b[30:]),
		valueLen: binary.LittleEndian.Uint32(b[32:]),
		valueCRC: binary.LittleEndian.Uint32(b[36:]),
	}
	return h, h.keyLen > 0 && h.keyLen <= MaxKey && h.valueLen <= MaxValue
}

// soundHead tells whether the checksum over a record's header and key is right.
func soundHead(head []byte, s salt) bool {
	return binary.LittleEndian.Uint32(head[4:]) == crc32.Update(s.begin(), castagnoli, head[8:])
}
