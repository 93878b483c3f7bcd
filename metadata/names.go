package metadata

import (
	"maps"
	"slices"
	"strings"
)

// derived are the names that every guest has, with the value that each has where meta-data.yaml
// gives none.
var derived = map[string]func(view) string{
	"availability-zone": empty,
	"instance-id":       func(v view) string { return v.guest.VM },
	"local-hostname":    func(v view) string { return v.guest.Hostname },
	"local-ipv4":        func(v view) string { return v.guest.IP.String() },
	"public-hostname":   view.publicIPv4,
	"public-ipv4":       view.publicIPv4,
	"public-keys":       empty,
	"service-offering":  empty,
	"vm-id":             func(v view) string { return v.guest.VM },
}

func empty(view) string { return "" }

// publicIPv4 is given, or else the address of the network's public interface as it is now.
func (v view) publicIPv4() string {
	if given, ok := v.guest.Meta["public-ipv4"]; ok {
		return given
	}
	return addrText(v.network.PublicIPv4)
}

// names lists the guest's metadata in order.
func (v view) names() []string {
	names := make([]string, 0, len(derived)+len(v.guest.Meta))
	names = slices.AppendSeq(names, maps.Keys(v.guest.Meta))
	for name := range derived {
		if _, given := v.guest.Meta[name]; !given {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// value gives the metadata of that name, in whatever case it is asked for. Where two names differ
// in case only, the exact one counts.
func (v view) value(name string) (string, bool) {
	if value, ok := v.guest.Meta[name]; ok {
		return value, true
	}
	if derive, ok := derived[name]; ok {
		return derive(v), true
	}
	for _, known := range v.names() {
		if strings.EqualFold(known, name) {
			return v.value(known)
		}
	}
	return "", false
}
