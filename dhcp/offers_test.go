package dhcp

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"
)

func FuzzParseOffers(f *testing.F) {
	l := Lease{Network: "guest-1", IP: addr("10.1.1.200"), MAC: nobody, ClientID: []byte{1}, Hostname: "h", State: LeaseBound, Start: time.Unix(1, 0), Expiry: time.Unix(2, 0)}
	record, err := l.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	one := append(binary.BigEndian.AppendUint16(nil, uint16(len(record))), record...)
	f.Add([]byte{})
	f.Add(one)
	f.Add(append(one, one...))
	f.Add(one[:len(one)-1])
	f.Fuzz(func(t *testing.T, file []byte) {
		offers, err := parseOffers(file)
		if err != nil {
			return
		}
		var again []byte
		for _, l := range offers {
			record, err := l.MarshalBinary()
			if err != nil {
				t.Fatalf("%+v was read and cannot be written: %v", l, err)
			}
			again = append(binary.BigEndian.AppendUint16(again, uint16(len(record))), record...)
		}
		if !bytes.Equal(file, again) {
			t.Errorf("%x reads as %x", file, again)
		}
	})
}
