package netcfg

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
)

// A Link is a network device as the kernel had it at one moment.
type Link struct {
	Index  int
	Name   string
	MAC    net.HardwareAddr // empty for links that have none
	MTU    int              // bytes
	Up     bool             // set up by the administrator; says nothing of the cable
	Master int              // index of the bridge or bond that the link is a port of, else 0
	Addrs  []Addr           // IPv4, in the kernel's order
}

// An Addr is an IPv4 address on a link.
type Addr struct {
	Prefix netip.Prefix // the address with the length of its subnet, 10.1.1.1/24
	Global bool         // of global scope, not of link or host scope
	Own    bool         // added by this agent, now or in an earlier run
}

// Has reports whether the link holds addr, in a subnet of whatever length.
func (l Link) Has(addr netip.Addr) bool {
	return slices.ContainsFunc(l.Addrs, func(a Addr) bool { return a.Prefix.Addr() == addr })
}

// FirstGlobal returns the first address of global scope, or the zero Addr if there is none.
func (l Link) FirstGlobal() netip.Addr {
	for _, a := range l.Addrs {
		if a.Global {
			return a.Prefix.Addr()
		}
	}
	return netip.Addr{}
}

func (l Link) equal(other Link) bool {
	return l.Index == other.Index && l.Name == other.Name && l.MTU == other.MTU && l.Up == other.Up &&
		l.Master == other.Master && bytes.Equal(l.MAC, other.MAC) && slices.Equal(l.Addrs, other.Addrs)
}

// A Snapshot is the state of all links at one moment. It never changes and may be read by any number
// of goroutines. The zero Snapshot has no links.
type Snapshot struct {
	links  []Link // by index
	byName map[string]int
}

// NewSnapshot returns a snapshot of these links, for tests and for states that are not the kernel's.
// It keeps links and what they hold; the caller must not change them any more.
func NewSnapshot(links []Link) *Snapshot {
	s := &Snapshot{links: slices.Clone(links), byName: make(map[string]int, len(links))}
	slices.SortFunc(s.links, func(a, b Link) int { return a.Index - b.Index })
	for i, l := range s.links {
		s.byName[l.Name] = i
	}
	return s
}

// Links returns all links in the order of their index. The caller must not change them.
func (s *Snapshot) Links() []Link { return s.links }

// ByName returns the link of that name.
func (s *Snapshot) ByName(name string) (Link, bool) {
	i, ok := s.byName[name]
	if !ok {
		return Link{}, false
	}
	return s.links[i], true
}

// ByIndex returns the link with that index. A device that was removed and made again has a new index,
// one that was renamed keeps its own.
func (s *Snapshot) ByIndex(index int) (Link, bool) {
	i, ok := slices.BinarySearchFunc(s.links, index, func(l Link, index int) int { return l.Index - index })
	if !ok {
		return Link{}, false
	}
	return s.links[i], true
}

// ByMAC returns the link with that hardware address. Several can have it: a bridge takes its port's, a
// VLAN its parent's. Then a link that is no port of another wins, and among those the lowest index,
// which is the parent's: the link that holds the addresses, as a rule.
func (s *Snapshot) ByMAC(mac net.HardwareAddr) (Link, bool) {
	var found Link
	for _, l := range s.links {
		if len(mac) > 0 && bytes.Equal(l.MAC, mac) && (found.Index == 0 || found.Master != 0 && l.Master == 0) {
			found = l
		}
	}
	return found, found.Index != 0
}

// FirstGlobalIPv4 returns the first address of global scope on the link of that name, or the zero Addr
// if there is no such link or address.
func (s *Snapshot) FirstGlobalIPv4(name string) netip.Addr {
	l, _ := s.ByName(name)
	return l.FirstGlobal()
}

// Holding returns the links that hold addr, in the order of their index.
func (s *Snapshot) Holding(addr netip.Addr) []Link {
	var links []Link
	for _, l := range s.links {
		if l.Has(addr) {
			links = append(links, l)
		}
	}
	return links
}

func (s *Snapshot) equal(other *Snapshot) bool {
	return slices.EqualFunc(s.links, other.links, Link.equal)
}
