package main

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"vragent/agent/internal/cloudstack"
)

// leave gives the router back: its own scripts find what is true today, and serve it. An error means
// that it is ours still; what fails once the scripts are in force again is only said.
func (s *site) leave(ctx context.Context) error {
	rec := s.readRecord()
	if !rec.InForce {
		err := s.disable(ctx)
		if len(rec.Stands) > 0 { // the machine went down on the way
			err = errors.Join(err, s.release(ctx, &rec))
		}
		return errors.Join(err, s.drop(s.path(recordFile)))
	}
	guests, err := s.daemon.Guests(ctx, 0)
	asked := err == nil
	if asked {
		// While that fails nothing has been given back yet.
		if _, _, err := s.keepFiles(guests); err != nil {
			return err
		}
	} else {
		s.say("The databags stay as they are, and passwords that nobody has taken are lost, and networks of an extension are served on, since the agent does not answer: %v", err)
	}
	for _, name := range entryPoints {
		if err := s.undivert(ctx, &rec, name); err != nil {
			return err
		}
	}
	// What follows goes as far as it can: the scripts are in force again.
	try := func(err error) {
		if err != nil {
			s.say("%v", err)
		}
	}
	if asked {
		// What came in by our programs until just now.
		if newest, err := s.daemon.Guests(ctx, 0); err == nil && newest.Generation != guests.Generation {
			guests = newest
			_, _, err := s.keepFiles(guests)
			try(err)
		}
		// Read from the units, which are there no longer afterwards.
		try(s.keepPasswords(guests))
	}
	// The scripts write what their services need while the agent still serves, which for many guests
	// takes them long.
	try(s.stale(guests))
	try(s.configure(ctx, "vm_metadata.json"))
	try(s.configure(ctx, "vm_dhcp_entry.json"))
	if asked {
		try(s.daemon.Leave(ctx))
		// The program that takes the extension's calls goes, so that nobody could ever end its networks.
		if err := s.daemon.LeaveExtension(ctx); err != nil {
			s.say("Networks of an extension are served on: %v", err)
		}
	}
	try(s.disable(ctx))
	try(s.release(ctx, &rec))
	// With each run they start the services that belong to the addresses of today.
	try(s.configure(ctx, "vm_dhcp_entry.json"))
	return s.drop(s.path(recordFile))
}

// configure has the router's own scripts bring it into line with the databags, as far as a file of
// that kind would change it. Where there are no scripts there is nothing to do.
func (s *site) configure(ctx context.Context, file string) error {
	script := s.path(binDir + "/configure.py")
	if _, err := os.Stat(script); err != nil {
		return nil
	}
	_, err := s.start(ctx, script, file)
	return err
}

// disable turns the dialect off in the agent. A file that the administrator has changed stays, under
// a name that the agent does not read.
func (s *site) disable(ctx context.Context) error {
	data, err := os.ReadFile(s.path(agentFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case string(data) == agentConfig:
		err = os.Remove(s.path(agentFile))
	default:
		err = os.Rename(s.path(agentFile), s.path(agentFile)+".old")
	}
	if err != nil {
		return err
	}
	return s.systemctl(ctx, "try-restart", "vragent.service")
}

// keepPasswords writes the password servers' files, with those that no guest has taken yet.
func (s *site) keepPasswords(g cloudstack.Guests) error {
	faults := []error{s.dropPasswords()}
	for _, n := range g.Networks {
		data, err := g.PasswordFile(n.Serving, s.unitFile(g, "password"))
		if err == nil && len(data) > 0 {
			err = s.replace(cacheDir+"/passwords-"+n.Serving.String(), 0o600, data)
		}
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// stale removes what dnsmasq and Apache know of guests, which is of the day of the installation: an
// old lease keeps an address from the VM that has it now, and the scripts add to a VM's metadata but
// never take anything away. They write it all anew.
func (s *site) stale(g cloudstack.Guests) error {
	var faults []error
	// Without DHCP dnsmasq neither reads nor writes its leases.
	if _, err := os.Stat(s.path(leasesFile)); err == nil && !g.Empty() {
		faults = append(faults, s.replace(leasesFile, 0o644, g.Leases()))
	}
	for _, dir := range []string{"metadata", "userdata"} {
		entries, err := os.ReadDir(s.path(filepath.Join(websiteDir, dir)))
		if err != nil {
			continue // there is none
		}
		for _, e := range entries {
			if _, err := netip.ParseAddr(e.Name()); err == nil && e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
				faults = append(faults, os.RemoveAll(s.path(filepath.Join(websiteDir, dir, e.Name()))))
			}
		}
	}
	return errors.Join(faults...)
}
