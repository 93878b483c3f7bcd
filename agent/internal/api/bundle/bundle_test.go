package bundle_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/api/bundle"
)

var limits = bundle.Limits{Size: 1 << 20, Unpacked: 4 << 20, File: 1 << 20, Entries: 100}

// archive makes a tar archive of headers; a regular file's content is its name.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = h.Name
			h.Size = int64(len(content))
		}
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zip(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func names(names ...string) []tar.Header {
	var headers []tar.Header
	for _, name := range names {
		headers = append(headers, tar.Header{Name: name})
	}
	return headers
}

func TestReceiveAndOpen(t *testing.T) {
	// A VM's files need not stand together.
	headers := append([]tar.Header{{Name: "./", Typeflag: tar.TypeDir}, {Name: "./vms/", Typeflag: tar.TypeDir}},
		names("./vms/web/user-data", "networks/guest-1.yaml", "vms/db/vm.yaml", "vms/web/vm.yaml", "vms/web/README", "vms/.hidden/vm.yaml",
			"vms/web/vm.yaml.tmp", "vms/web/.vm.yaml.swp", "networks/a.txt", "other/file", "top", "vms/web/deep/vm.yaml", "vms/"+strings.Repeat("n", 128)+"/vm.yaml")...)
	plain := archive(t, headers...)
	for name, sent := range map[string][]byte{"tar": plain, "tar.gz": zip(t, plain)} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "bundle"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got, err := bundle.Receive(f, bytes.NewReader(sent), limits)
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(sent)
			want := bundle.Summary{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(sent)), Units: 4}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Receive() differs (-want +got):\n%s", diff)
			}
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			b, err := bundle.Open(f)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"networks/guest-1.yaml", "vms/db", "vms/" + strings.Repeat("n", 128), "vms/web"}, b.Units()); diff != "" {
				t.Errorf("Units() differs (-want +got):\n%s", diff)
			}
			files, err := b.Files("vms/web")
			if diff := cmp.Diff(map[string][]byte{"vm.yaml": []byte("vms/web/vm.yaml"), "user-data": []byte("./vms/web/user-data")}, files); err != nil || diff != "" {
				t.Errorf("Files() error %v, differs (-want +got):\n%s", err, diff)
			}
			if !b.Has("vms/web", "") || !b.Has("vms/web", "vm.yaml") || b.Has("vms/web", "password") || b.Has("vms/x", "") {
				t.Error("Has() is wrong")
			}
		})
	}
}

func TestReceiveRefuses(t *testing.T) {
	good := archive(t, names("vms/web/vm.yaml")...)
	tests := []struct {
		name string
		sent []byte
		want string // in the error
	}{
		{"absolute path", archive(t, names("/vms/web/vm.yaml")...), `"/vms/web/vm.yaml": leaves the tree`},
		{"parent", archive(t, names("vms/../../etc/passwd")...), "leaves the tree"},
		{"parent that stays inside", archive(t, names("vms/x/../web/vm.yaml")...), "leaves the tree"},
		{"symbolic link", archive(t, tar.Header{Name: "vms/web/vm.yaml", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"}), `"vms/web/vm.yaml": a link`},
		{"hard link", archive(t, tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "vms/web/vm.yaml"}), `"x": a link`},
		{"device", archive(t, tar.Header{Name: "vms/web/password", Typeflag: tar.TypeChar}), `"vms/web/password": a special file`},
		{"fifo", archive(t, tar.Header{Name: "vms/web/password", Typeflag: tar.TypeFifo}), "a special file"},
		{"twice", archive(t, names("vms/web/vm.yaml", "./vms/web/vm.yaml")...), `"vms/web/vm.yaml": is in the archive twice`},
		{"not a VM's name", archive(t, names("vms/a b/vm.yaml")...), `"vms/a b/vm.yaml": not a name for a VM`},
		{"not a network's name", archive(t, names("networks/ä.yaml")...), "not a name for a network"},
		{"nothing in it", archive(t, names("README")...), "holds neither"},
		{"empty archive", archive(t), "holds neither"},
		{"no body", nil, "holds neither"},
		{"not an archive", []byte(strings.Repeat("hello", 500)), "not a tar or tar.gz archive"},
		{"cut off", good[:520], "not all of one"},
		{"gzip cut off", zip(t, good)[:20], "not all of one"},
		{"gzip broken", append(zip(t, good)[:40], 1, 2, 3, 4, 5, 6, 7, 8), "not"},
		{"too many entries", archive(t, names(many(101)...)...), "more than 100 entries"},
		{"bomb", zip(t, bomb(t, 5<<20)), "than"},
		{"file too large", zip(t, bomb(t, 2<<20)), `"vms/web/user-data": 2097152 bytes, and no file may have more than 1048576`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bundle.Receive(io.Discard, bytes.NewReader(tt.sent), limits)
			var refused *bundle.Refused
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Receive() = %v, want a refusal with %q", err, tt.want)
			}
		})
	}
	t.Run("too large", func(t *testing.T) {
		small := limits
		small.Size = 1000
		_, err := bundle.Receive(io.Discard, bytes.NewReader(good), small)
		if err == nil || !strings.Contains(err.Error(), "the archive is larger than 1000 bytes") {
			t.Errorf("Receive() = %v", err)
		}
	})
	t.Run("bomb behind the end of the archive", func(t *testing.T) {
		sent := zip(t, append(bytes.Clone(good), make([]byte, 8<<20)...))
		_, err := bundle.Receive(io.Discard, bytes.NewReader(sent), limits)
		if err == nil || !strings.Contains(err.Error(), "the unpacked archive is larger than") {
			t.Errorf("Receive() = %v", err)
		}
	})
}

func many(n int) []string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("vms/vm-%d/vm.yaml", i))
	}
	return names
}

// bomb is an archive with a file of size zero bytes.
func bomb(t testing.TB, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "vms/web/user-data", Typeflag: tar.TypeReg, Size: int64(size), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestReceiveTakesWhatTarMakes packs a folder with the real program, in each of its formats.
func TestReceiveTakesWhatTarMakes(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("needs tar")
	}
	dir := t.TempDir()
	long := strings.Repeat("n", 120) // a name for which the formats differ
	for name, text := range map[string]string{"networks/guest-1.yaml": "a", "vms/" + long + "/vm.yaml": "b", "vms/" + long + "/vendor-data": "c"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sparse := filepath.Join(dir, "sparse", "vms", "web")
	if err := os.MkdirAll(sparse, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sparse, "user-data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(sparse, "user-data"), 512<<10); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "pax", "posix"} {
		out, err := exec.Command("tar", "-C", dir, "--format", format, "-czf", "-", "networks", "vms").Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := bundle.Receive(io.Discard, bytes.NewReader(out), limits); err != nil || got.Units != 2 {
			t.Errorf("%s: %+v, %v", format, got, err)
		}
		out, err = exec.Command("tar", "-C", filepath.Join(dir, "sparse"), "--format", format, "--sparse", "-cf", "-", "vms").Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bundle.Receive(io.Discard, bytes.NewReader(out), limits); err == nil || !strings.Contains(err.Error(), "a sparse file") {
			t.Errorf("%s, sparse: %v", format, err)
		}
	}
}

// FuzzReceive sends archives as strangers make them: what is taken can be opened and read.
func FuzzReceive(f *testing.F) {
	good := archive(f, names("vms/web/vm.yaml", "vms/web/user-data", "networks/a.yaml")...)
	f.Add(good)
	f.Add(zip(f, good))
	f.Add(archive(f, tar.Header{Name: "vms/web/vm.yaml", PAXRecords: map[string]string{"comment": "x"}}))
	small := bundle.Limits{Size: 1 << 16, Unpacked: 1 << 17, File: 1 << 16, Entries: 50}
	f.Fuzz(func(t *testing.T, sent []byte) {
		var b bytes.Buffer
		got, err := bundle.Receive(&b, bytes.NewReader(sent), small)
		if err != nil {
			return
		}
		opened, err := bundle.Open(bytes.NewReader(b.Bytes()))
		if err != nil {
			t.Fatalf("Open() = %v of what was taken", err)
		}
		if len(opened.Units()) != got.Units {
			t.Errorf("%d units, and Receive() saw %d", len(opened.Units()), got.Units)
		}
		for _, unit := range opened.Units() {
			if strings.Contains(unit, "..") && strings.Contains(unit, "/../") {
				t.Errorf("unit %q", unit)
			}
			if _, err := opened.Files(unit); err != nil {
				t.Errorf("Files(%q) = %v", unit, err)
			}
		}
	})
}
