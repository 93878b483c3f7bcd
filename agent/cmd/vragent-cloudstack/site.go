package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vragent/agent/internal/cloudstack"
)

// daemon is the agent, as far as taking a router over and giving it back needs it.
type daemon interface {
	cloudstack.Taker
	Guests(ctx context.Context, after uint64) (cloudstack.Guests, error)
	Leave(ctx context.Context) error
	LeaveExtension(ctx context.Context) error
}

// site is the router that the package is installed on, as root sees it.
type site struct {
	root   string // in front of all paths; "" but in tests
	daemon daemon
	// start runs a program and returns what it has printed; the error says that too.
	start func(ctx context.Context, name string, args ...string) (string, error)
	out   io.Writer
	now   func() time.Time
	pause time.Duration // between two times that files are kept, at least
}

// Where things are.
const (
	agentFile   = "/etc/vragent/agent.d/50-cloudstack.yaml"
	bagsDir     = "/etc/cloudstack"
	binDir      = "/opt/cloud/bin"
	cacheDir    = "/var/cache/cloud"
	hostsFile   = "/etc/hosts"
	leasesFile  = "/var/lib/misc/dnsmasq.leases"
	ownDir      = "/var/lib/vragent-cloudstack"
	dhcpHosts   = "/etc/dhcphosts.txt"
	unitsDir    = "/etc/systemd/system"
	websiteDir  = "/var/www/html"
	dnsmasqUnit = "dnsmasq.service"
)

func (s *site) path(p string) string { return filepath.Join(s.root, p) }

func (s *site) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// systemctl runs systemctl.
func (s *site) systemctl(ctx context.Context, args ...string) error {
	_, err := s.start(ctx, "systemctl", args...)
	return err
}

// startProgram is site.start for a real router.
func startProgram(ctx context.Context, name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

// commands are what root calls the program for, by the package's scripts and units.
var commands = map[string]func(*site, context.Context) error{
	"enter":   (*site).enter,
	"keep":    (*site).keep,
	"dnsmasq": (*site).dnsmasq,
	"leave":   (*site).leave,
}

const commandUsage = `usage: vragent-cloudstack enter|keep|dnsmasq|leave
enter    takes the router over and puts the diversions in force, or puts those back that were replaced
keep     keeps the files of the router's own scripts current, until it is stopped
dnsmasq  writes dnsmasq's configuration without DHCP
leave    gives the router back to its own scripts
`

// command runs one of the commands and returns its exit status.
func (s *site) command(ctx context.Context, args []string) int {
	if len(args) != 1 || commands[args[0]] == nil {
		fmt.Fprint(s.out, commandUsage)
		return 64
	}
	if err := commands[args[0]](s, ctx); err != nil {
		s.say("vragent-cloudstack %s: %v", args[0], err)
		return 1
	}
	return 0
}

const recordFile = cloudstack.RecordFile

// readRecord returns the record. One that cannot be read stands for a router that is taken over: it
// only names what is ours there, which is known without it.
func (s *site) readRecord() cloudstack.Record {
	r, err := cloudstack.ReadRecord(s.path(recordFile))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return r
	}
	s.say("%v", err)
	r = cloudstack.Record{InForce: true, Since: s.now(), Stands: make(map[string]*cloudstack.Standing)}
	for _, name := range entryPoints {
		r.Stands[standIn(name).path] = &cloudstack.Standing{}
	}
	for _, unit := range masked {
		r.Stands[mask(unit).path] = &cloudstack.Standing{}
	}
	return r
}

func (s *site) writeRecord(r cloudstack.Record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return s.replace(recordFile, 0o644, append(data, '\n'))
}

// replace puts a file in the place of what is there, in one step, and durably. The folder is made
// where there is none. A file that was there keeps its mode.
func (s *site) replace(path string, mode fs.FileMode, data []byte) error {
	_, err := s.replaceBy(path, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	return err
}

// replaceBy is replace for a file that is written piece by piece. It returns what the file is that is
// there then, unless somebody has been at it since.
func (s *site) replaceBy(path string, mode fs.FileMode, write func(io.Writer) error) (id fileID, err error) {
	path = s.path(path)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return id, err
	}
	// Always of one name, so that a crash leaves no more than one behind, and that for a while.
	f, err := os.OpenFile(filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".vragent"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return id, err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	for _, step := range []func() error{
		func() error { return write(f) }, func() error { return f.Chmod(mode) }, f.Sync,
	} {
		if err := step(); err != nil {
			return id, fmt.Errorf("%s: %w", path, errors.Join(err, f.Close()))
		}
	}
	id = identify(f)
	if err := f.Close(); err != nil {
		return id, fmt.Errorf("%s: %w", path, err)
	}
	return id, os.Rename(f.Name(), path)
}
