// Package bundle reads a drop directory that comes as a tar archive, gzipped or not, from whoever
// may send one: Receive checks it while it arrives and keeps it in a file, Open reads it from there
// unit by unit. Neither holds more than one unit in memory.
package bundle

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// Limits bound what a bundle may be.
type Limits struct {
	// Size bounds the archive as it is sent, in bytes.
	Size int64
	// Unpacked bounds it after gunzip: a small archive may unpack to anything.
	Unpacked int64
	// File bounds each file in it.
	File int64
	// Entries bounds their number.
	Entries int
}

// Refused is the error of an archive that is not taken.
type Refused struct {
	Entry string // the name in the archive; may be empty
	Why   string
}

func (r *Refused) Error() string {
	if r.Entry == "" {
		return "bundle: " + r.Why
	}
	return fmt.Sprintf("bundle: %q: %s", r.Entry, r.Why)
}

// Summary is what Receive has seen.
type Summary struct {
	SHA256 string // of the archive as it was sent, in lower-case hexadecimal
	Size   int64
	Units  int
}

// Receive copies the archive in body to dst, gunzipped, and checks every entry on the way: names
// that leave the tree, links, special and sparse files, files that come twice and whatever is
// beyond the limits are a *Refused. It reads body to its end, or as far as limits let it.
func Receive(dst io.Writer, body io.Reader, limits Limits) (Summary, error) {
	hash := sha256.New()
	sent := &counter{r: body, most: limits.Size, what: "archive"}
	raw := bufio.NewReaderSize(io.TeeReader(sent, hash), 64<<10)
	var stream io.Reader = raw
	if magic, _ := raw.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		unzipped, err := gzip.NewReader(raw)
		if err != nil {
			return Summary{}, broken(err)
		}
		stream = unzipped
	}
	out := bufio.NewWriterSize(dst, 256<<10)
	unpacked := &counter{r: stream, most: limits.Unpacked, what: "unpacked archive"}
	copied := io.TeeReader(unpacked, out)

	seen := index{}
	if err := scan(tar.NewReader(copied), limits, func(unit, file string, _ *tar.Header) error {
		return add(seen, unit, file, span{})
	}); err != nil {
		return Summary{}, broken(err)
	}
	// What follows the end of the archive is padding; it is a part of what was hashed.
	for _, rest := range []io.Reader{unpacked, raw} {
		if _, err := io.Copy(io.Discard, rest); err != nil {
			return Summary{}, broken(err)
		}
	}
	if err := out.Flush(); err != nil {
		return Summary{}, err
	}
	if len(seen) == 0 {
		return Summary{}, &Refused{Why: "holds neither networks/NAME.yaml nor vms/NAME/vm.yaml"}
	}
	return Summary{SHA256: hex.EncodeToString(hash.Sum(nil)), Size: sent.n, Units: len(seen)}, nil
}

// broken makes a refusal of what the decoders say of an archive; the network's errors stay what
// they are.
func broken(err error) error {
	var corrupt flate.CorruptInputError
	switch {
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, gzip.ErrHeader),
		errors.Is(err, gzip.ErrChecksum), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return &Refused{Why: "not a tar or tar.gz archive, or not all of one: " + err.Error()}
	case errors.As(err, &corrupt):
		return &Refused{Why: "not a tar.gz archive: " + err.Error()}
	}
	return err
}

// scan calls fn for each file of a unit. Entries that a drop directory would not read either are
// passed over.
func scan(r *tar.Reader, limits Limits, fn func(unit, file string, h *tar.Header) error) error {
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n >= limits.Entries {
			return &Refused{h.Name, fmt.Sprintf("more than %d entries", limits.Entries)}
		}
		if err := allowed(h, limits); err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		unit, file, err := classify(h.Name)
		if err != nil {
			return err
		}
		if unit == "" {
			continue
		}
		if err := fn(unit, file, h); err != nil {
			return err
		}
	}
}

// allowed refuses entries that no drop directory holds.
func allowed(h *tar.Header, limits Limits) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeXGlobalHeader:
	case tar.TypeSymlink, tar.TypeLink:
		return &Refused{h.Name, "a link"}
	case tar.TypeGNUSparse:
		return &Refused{h.Name, "a sparse file"}
	default:
		return &Refused{h.Name, "a special file"}
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return &Refused{h.Name, "a sparse file"}
		}
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := h.Name
	if strings.HasPrefix(name, "/") || strings.ContainsAny(name, "\\\x00") || slices.Contains(strings.Split(name, "/"), "..") {
		return &Refused{name, "leaves the tree"}
	}
	if h.Size > limits.File {
		return &Refused{name, fmt.Sprintf("%d bytes, and no file may have more than %d", h.Size, limits.File)}
	}
	return nil
}

// vmFiles are the files of a VM's folder that are read.
var vmFiles = []string{"vm.yaml", "meta-data.yaml", "user-data", "vendor-data", "password"}

// classify tells which file of which unit an entry is. The unit is empty for what a drop
// directory does not read.
func classify(name string) (unit, file string, err error) {
	parts := strings.Split(path.Clean(name), "/")
	for _, part := range parts {
		if ignored(part) {
			return "", "", nil
		}
	}
	switch {
	case len(parts) == 2 && parts[0] == "networks" && strings.HasSuffix(parts[1], ".yaml"):
		if !validName(strings.TrimSuffix(parts[1], ".yaml")) {
			return "", "", &Refused{name, "not a name for a network: 1 to 128 of A-Za-z0-9._-"}
		}
		return path.Join(parts...), parts[1], nil
	case len(parts) == 3 && parts[0] == "vms" && slices.Contains(vmFiles, parts[2]):
		if !validName(parts[1]) {
			return "", "", &Refused{name, "not a name for a VM: 1 to 128 of A-Za-z0-9._-"}
		}
		return path.Join(parts[:2]...), parts[2], nil
	}
	return "", "", nil
}

// ignored tells whether a drop directory never reads what has that name.
func ignored(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".tmp") || strings.HasSuffix(name, ".swp") || strings.HasSuffix(name, "~")
}

func validName(name string) bool {
	return len(name) >= 1 && len(name) <= 128 && !strings.ContainsFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-'
	})
}

// files are the places of a unit's files in the archive.
type files map[string]span

type span struct{ offset, size int64 }

type index = map[string]files

// Bundle is an archive that Receive has taken.
type Bundle struct {
	r     io.ReaderAt
	index index
}

// Open reads the index of what Receive wrote. r stays in use.
func Open(r interface {
	io.ReadSeeker
	io.ReaderAt
}) (*Bundle, error) {
	b := &Bundle{r: r, index: index{}}
	// tar.Reader seeks over contents and buffers nothing, so the place in r is where they start.
	none := Limits{File: 1 << 62, Entries: 1 << 30}
	err := scan(tar.NewReader(r), none, func(unit, file string, h *tar.Header) error {
		offset, err := r.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		return add(b.index, unit, file, span{offset, h.Size})
	})
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	return b, nil
}

func add(i index, unit, file string, s span) error {
	if i[unit] == nil {
		i[unit] = files{}
	}
	if _, twice := i[unit][file]; twice {
		return &Refused{path.Join(unit, file), "is in the archive twice"}
	}
	i[unit][file] = s
	return nil
}

// Units returns the paths of the bundle's units: networks before VMs, each in name order.
func (b *Bundle) Units() []string {
	units := make([]string, 0, len(b.index))
	for unit := range b.index {
		units = append(units, unit)
	}
	slices.Sort(units) // "networks/" sorts before "vms/"
	return units
}

// Has tells whether the bundle has the file of the unit; an empty name asks for the unit.
func (b *Bundle) Has(unit, file string) bool {
	if file == "" {
		return b.index[unit] != nil
	}
	_, ok := b.index[unit][file]
	return ok
}

// Files returns the contents of a unit's files by base name.
func (b *Bundle) Files(unit string) (map[string][]byte, error) {
	contents := make(map[string][]byte, len(b.index[unit]))
	for file, s := range b.index[unit] {
		data := make([]byte, s.size)
		if _, err := b.r.ReadAt(data, s.offset); err != nil {
			return nil, fmt.Errorf("bundle: %s: %w", path.Join(unit, file), err)
		}
		contents[file] = data
	}
	return contents, nil
}

// counter refuses to read more than most bytes.
type counter struct {
	r       io.Reader
	n, most int64
	what    string
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.n > c.most {
		return n, &Refused{Why: fmt.Sprintf("the %s is larger than %d bytes", c.what, c.most)}
	}
	return n, err
}
