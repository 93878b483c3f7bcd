package netcfg

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
)

// A ledger knows the addresses that are ours where the kernel does not. An entry is written before its
// address is added, so that a kill in between leaves an entry too many and never an address that nobody
// owns up to. Entries hold for one boot only, as addresses do, and for one link index: a device that was
// made anew holds nothing of ours.
type ledger struct {
	file string // empty: nothing is written
	boot string // empty where the kernel does not tell

	mu      sync.Mutex
	entries map[entry]bool // true: seen on the link since it was added
}

type entry struct {
	Index  int          `json:"index"`
	Prefix netip.Prefix `json:"address"`
}

// page is how a ledger is written.
type page struct {
	Boot    string  `json:"boot"`
	Entries []entry `json:"entries"`
}

// openLedger reads what an earlier run has written to file. A file that cannot be read is a fault for the
// log: what that run added counts as foreign then, which is the safe side.
func openLedger(file string, log *slog.Logger) *ledger {
	l := &ledger{file: file, entries: map[entry]bool{}}
	// A daemon may be kept from seeing /proc/sys. Then the file has to be where a boot removes it.
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	l.boot = strings.TrimSpace(string(boot))
	if file == "" {
		return l
	}
	var p page
	written, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(written, &p)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return l
	}
	if err != nil {
		log.Error("addresses added by an earlier run are not known, and stay", "file", file, "error", err)
		return l
	}
	if p.Boot == l.boot {
		for _, e := range p.Entries {
			l.entries[e] = true
		}
	}
	return l
}

// has reports whether an address on a link is ours.
func (l *ledger) has(index int, prefix netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.entries[entry{index, prefix}]
	return ok
}

// announce writes down that the addresses are about to be added to the links of s.
func (l *ledger) announce(s *Snapshot, add []Address) error {
	if len(add) == 0 {
		return nil
	}
	l.mu.Lock()
	var fresh []entry
	for _, a := range add {
		link, _ := s.ByName(a.Device)
		e := entry{link.Index, a.Prefix}
		if _, ok := l.entries[e]; !ok {
			fresh = append(fresh, e)
			l.entries[e] = false
		}
	}
	p := page{Boot: l.boot}
	for e := range l.entries {
		p.Entries = append(p.Entries, e)
	}
	l.mu.Unlock()
	if l.file == "" {
		return nil
	}
	slices.SortFunc(p.Entries, func(a, b entry) int {
		if a.Index != b.Index {
			return a.Index - b.Index
		}
		return a.Prefix.Compare(b.Prefix)
	})
	if err := p.write(l.file); err != nil {
		l.mu.Lock()
		for _, e := range fresh {
			delete(l.entries, e)
		}
		l.mu.Unlock()
		return fmt.Errorf("record of addresses: %w", err)
	}
	return nil
}

// write replaces the file in one step. It is not synced: after a power failure the addresses are gone
// as well.
func (p page) write(file string) error {
	content, err := json.Marshal(p)
	if err != nil {
		return err
	}
	fresh := file + ".tmp"
	if err := os.WriteFile(fresh, append(content, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, file)
}

// drop forgets an address. It is written with the next announcement: until then an entry too many is
// only wrong if somebody else adds just this address to just this link before the next start.
func (l *ledger) drop(index int, prefix netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.entries, entry{index, prefix})
}

// keep forgets the addresses that s, just read, does not show any more: if they come back, somebody else
// added them. Those that were announced and not seen yet are kept.
func (l *ledger) keep(s *Snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e, seen := range l.entries {
		link, _ := s.ByIndex(e.Index)
		switch present := link.holds(e.Prefix); {
		case present && !seen:
			l.entries[e] = true
		case !present && seen:
			delete(l.entries, e)
		}
	}
}
