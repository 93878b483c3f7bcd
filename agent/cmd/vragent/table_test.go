package main

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestShorten(t *testing.T) {
	tests := []struct {
		in   string
		n    int
		want string
	}{
		{"web-1", 5, "web-1"},
		{"i-2-1234-VM", 9, "i-2-…4-VM"},
		{"i-2-1234-VM", 8, "i-2-…-VM"},
		{"größe-über-alles", 8, "größ…les"},
		{"abcdef", 2, "ab"},
	}
	for _, tt := range tests {
		if got := shorten(tt.in, tt.n); got != tt.want {
			t.Errorf("shorten(%q, %d) = %q, want %q", tt.in, tt.n, got, tt.want)
		}
	}
}

func TestWrap(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"short", "all is well", "- all is well\n"},
		{"long", "all is well that ends well", "- all is well that\n  ends well\n"},
		{"a word that fits nowhere", "see /var/lib/vragent/drop/networks now", "- see\n  /var/lib/vragent/drop/networks\n  now\n"},
		{"escapes", "a\x1b[2Jb", "- a\uFFFD[2Jb\n"},
		{"empty", "", "- \n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := wrap(tt.in, "- ", "  ", 20); got != tt.want {
				t.Errorf("wrap() = %q, want %q", got, tt.want)
			}
		})
	}
}

// FuzzTable checks what holds for every table: no line is too wide, states are whole and nothing
// a terminal would obey gets through.
func FuzzTable(f *testing.F) {
	f.Add("web-1", "guest-1", "10.1.1.34")
	f.Add(strings.Repeat("a", 128), strings.Repeat("ö", 128), "255.255.255.255")
	f.Add("\x1b[2J\r\n", "\u202e", "")
	f.Fuzz(func(t *testing.T, vm, network, address string) {
		if len(address) > 15 {
			t.Skip("no address")
		}
		tbl := table{columns: []column{
			{title: "VM", names: true}, {title: "STATE"}, {title: "NETWORK", names: true},
			{title: "MAC"}, {title: "ADDRESS"}, {title: "SEEN", right: true},
		}}
		tbl.add(vm, "rejected", network, "02:00:4c:5f:00:01", address, "59 min")
		var b strings.Builder
		if err := tbl.write(&b, ""); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		if len(lines) != 2 || !strings.Contains(lines[1], "rejected") {
			t.Fatalf("table %q: want a line of titles and one of cells, its state whole", b.String())
		}
		for _, l := range lines {
			if n := utf8.RuneCountInString(l); n > width {
				t.Errorf("a line of %d characters: %q", n, l)
			}
			if l != printable(l) {
				t.Errorf("a line with characters that a terminal obeys: %q", l)
			}
		}
	})
}
