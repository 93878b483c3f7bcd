package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// dnsmasq 2.90 binds UDP port 67 on all addresses as soon as its configuration has a dhcp-range, and
// no option of its own keeps it from that. So its unit sees a copy of its configuration without
// them, made anew before each start, in the place of the configuration itself.
const (
	dnsmasqFile = "/etc/dnsmasq.conf"
	dnsmasqDir  = "/etc/dnsmasq.d"
	filteredDir = ownDir + "/dnsmasq"
	dropInFile  = unitsDir + "/" + dnsmasqUnit + ".d/50-vragent-cloudstack.conf"

	// What is bound must be there when the first command of the unit is started; "+" starts ours
	// outside of it, where the configuration itself is to be seen.
	dropIn = `# Written by vragent-cloudstack: dnsmasq answers names, vragent DHCP.
[Service]
ExecStartPre=+/usr/bin/vragent-cloudstack dnsmasq
BindReadOnlyPaths=` + filteredDir + `/dnsmasq.conf:` + dnsmasqFile + `
BindReadOnlyPaths=` + filteredDir + `/dnsmasq.d:` + dnsmasqDir + `
`
)

// dnsmasq writes the copy.
func (s *site) dnsmasq(context.Context) error {
	// A unit that runs has the old folder bound, and keeps it.
	if err := os.RemoveAll(s.path(filteredDir + "/dnsmasq.d")); err != nil {
		return err
	}
	if err := os.RemoveAll(s.path(filteredDir + "/included")); err != nil {
		return err
	}
	f := &filter{site: s, done: map[string]string{dnsmasqDir: dnsmasqDir}}
	if err := f.folder(dnsmasqDir, filteredDir+"/dnsmasq.d"); err != nil {
		return err
	}
	return f.file(dnsmasqFile, filteredDir+"/dnsmasq.conf")
}

// filter copies configuration files, and those that they include.
type filter struct {
	site *site
	done map[string]string // what stands for what is included
	err  error
}

func (f *filter) file(from, to string) error {
	data, err := os.ReadFile(f.site.path(from))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	data = withoutDHCP(data, f.include)
	if f.err != nil {
		return f.err
	}
	return f.site.replace(to, 0o644, data)
}

func (f *filter) folder(from, to string) error {
	if err := os.MkdirAll(f.site.path(to), 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(f.site.path(from))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		info, err := os.Stat(f.site.path(filepath.Join(from, e.Name())))
		if err != nil || !info.Mode().IsRegular() {
			continue // a link to nowhere, a folder: dnsmasq passes them over as well
		}
		if err := f.file(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// include returns what stands for an included file or folder.
func (f *filter) include(path string) string {
	path = filepath.Clean(path)
	if to, ok := f.done[path]; ok {
		return to
	}
	info, err := os.Stat(f.site.path(path))
	if err != nil || f.err != nil {
		return path // dnsmasq says what is wrong with it
	}
	to := fmt.Sprintf("%s/included/%d", filteredDir, len(f.done))
	f.done[path] = to // also for a file that includes itself
	if info.IsDir() {
		err = f.folder(path, to)
	} else {
		err = f.file(path, to)
	}
	f.err = errors.Join(f.err, err)
	return to
}

// withoutDHCP leaves out of a configuration of dnsmasq what makes it listen on UDP port 67: ranges and
// relays of IPv4. include returns what stands for an included file or folder.
func withoutDHCP(conf []byte, include func(path string) string) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(conf) {
		text := strings.TrimSpace(string(line))
		option, value, _ := strings.Cut(text, "=")
		option, value = strings.TrimSpace(option), strings.TrimSpace(value)
		switch option {
		case "dhcp-range", "dhcp-relay":
			if !ofIPv6(value) {
				fmt.Fprintf(&b, "# vragent answers DHCP: %s\n", text)
				continue
			}
		case "conf-file", "conf-dir":
			path, more, _ := strings.Cut(value, ",")
			if to := include(strings.TrimSpace(path)); to != filepath.Clean(path) {
				if more != "" {
					more = "," + more
				}
				fmt.Fprintf(&b, "%s=%s%s\n", option, to, more)
				continue
			}
		}
		b.WriteString(text + "\n")
	}
	return b.Bytes()
}

// ofIPv6 tells whether the first address of a range or relay is one of IPv6.
func ofIPv6(value string) bool {
	for field := range strings.SplitSeq(value, ",") {
		field = strings.TrimSpace(field)
		if strings.HasPrefix(field, "constructor:") {
			return true
		}
		if a, err := netip.ParseAddr(field); err == nil {
			return a.Is6()
		}
	}
	return false
}
