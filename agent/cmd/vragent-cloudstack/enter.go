package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vragent/agent/internal/cloudstack"
)

// agentConfig turns the dialect on.
const agentConfig = `# Written by vragent-cloudstack, and removed with it. Change things in a file whose name comes later.
cloudstack: {enabled: true}
`

// entryPoints are the scripts that the management server calls.
var entryPoints = []string{"update_config.py", "vr_cfg.sh"}

// masked are the units that serve guests on a router without vragent.
var masked = []string{"apache2.service", "cloud-password-server@.service"}

// enter takes the router over: the agent learns what the databags say, then the services that answer
// guests stop, and last the diversions come into force. Where one of these steps fails the ones
// before are undone, so that the old way stays in force. On a router that is taken over already it
// puts back what somebody has replaced.
func (s *site) enter(ctx context.Context) (err error) {
	rec := s.readRecord()
	if rec.InForce {
		return s.restore(ctx, rec)
	}
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, step := range slices.Backward(undo) {
			err = errors.Join(err, step())
		}
		rec = cloudstack.Record{Problem: err.Error()}
		err = errors.Join(err, s.writeRecord(rec))
		s.say("The router's own scripts stay in force.")
	}()
	// Undoing is not cut short by what ended the doing.
	unhurried := context.WithoutCancel(ctx)

	silenced := false
	undo = append(undo, func() error {
		if !silenced {
			return nil
		}
		return s.release(unhurried, &rec)
	})
	known, err := s.enable(ctx, func(step func() error) { undo = append(undo, step) })
	if err != nil {
		return err
	}
	if known.Empty() {
		undo = append(undo, func() error { return s.daemon.Leave(unhurried) })
	}
	files, err := s.takeOver(ctx, nil)
	if err != nil {
		return err
	}

	silenced = true // and so undone last, when the agent holds no port any more
	if err := s.silence(ctx, &rec); err != nil {
		return err
	}
	for _, name := range entryPoints {
		if err := s.divert(ctx, &rec, name); err != nil {
			return err
		}
	}
	rec.InForce, rec.Since, rec.Problem = true, s.now(), ""
	if err := s.writeRecord(rec); err != nil {
		return err
	}

	// A script that had been started before works on, and what it still told the databags nobody else
	// will tell the agent.
	if left := s.wait(ctx, 2*time.Minute); left != "" {
		rec.Problem = left + " still runs; what it changes now is not taken over"
	}
	if _, err := s.takeOver(ctx, files); err != nil {
		rec.Problem = fmt.Sprintf("what was changed during the installation is not taken over: %v", err)
	}
	// The agent holds the passwords now, and knows which of them have been taken. Those files would
	// bring the others back some day.
	if err := s.dropPasswords(); err != nil {
		rec.Problem = strings.TrimPrefix(rec.Problem+"; ", "; ") + err.Error()
	}
	if rec.Problem != "" {
		s.say("%s", rec.Problem)
		return s.writeRecord(rec)
	}
	return nil
}

// dropPasswords removes the files of the password servers.
func (s *site) dropPasswords() error {
	files, err := filepath.Glob(s.path(cacheDir + "/passwords-*"))
	for _, path := range files {
		err = errors.Join(err, s.drop(path))
	}
	return err
}

// enable turns the dialect on, and returns what the agent knows of the router so far.
func (s *site) enable(ctx context.Context, undo func(func() error)) (cloudstack.Guests, error) {
	_, err := os.Stat(s.path(agentFile))
	if errors.Is(err, fs.ErrNotExist) {
		undo(func() error {
			return errors.Join(s.drop(s.path(agentFile)), s.systemctl(context.WithoutCancel(ctx), "restart", "vragent.service"))
		})
		if err := s.replace(agentFile, 0o644, []byte(agentConfig)); err != nil {
			return cloudstack.Guests{}, err
		}
	} else if err != nil {
		return cloudstack.Guests{}, err
	} else if g, err := s.daemon.Guests(ctx, 0); err == nil {
		return g, nil
	}
	if err := s.systemctl(ctx, "restart", "vragent.service"); err != nil {
		return cloudstack.Guests{}, err
	}
	return s.daemon.Guests(ctx, 0)
}

// takeOver tells the agent what the databags say beyond what they said before, and returns what they
// say.
func (s *site) takeOver(ctx context.Context, before []cloudstack.File) ([]cloudstack.File, error) {
	bags, err := cloudstack.ReadDatabags(s.path(bagsDir), s.path(cacheDir))
	if err != nil {
		return nil, err
	}
	files, err := bags.Files()
	if err != nil {
		return nil, err
	}
	send, err := cloudstack.Since(before, files)
	if err != nil {
		return nil, err
	}
	results, err := s.daemon.Apply(ctx, send)
	if err != nil {
		return nil, fmt.Errorf("the databags in %s are not taken in: %w", bagsDir, err)
	}
	counts := make(map[cloudstack.State]int)
	var refused []error
	for _, r := range results {
		counts[r.State]++
		for _, note := range r.Notes {
			s.say("%s: %s", r.Name, note)
		}
		if r.State == cloudstack.Pending {
			s.say("%s waits: %s", r.Name, r.Reason)
		}
		if r.State == cloudstack.Rejected {
			refused = append(refused, fmt.Errorf("what the databags say as %s cannot be served: %s", r.Name, r.Reason))
		}
	}
	if len(results) > 0 {
		s.say("Taken over from the databags: %d in force or standing by, %d waiting for their network, %d rejected.",
			counts[cloudstack.Applied], counts[cloudstack.Pending], counts[cloudstack.Rejected])
	}
	return files, errors.Join(refused...)
}

// silence keeps dnsmasq from answering DHCP, and stops and masks the services that answer guests.
func (s *site) silence(ctx context.Context, rec *cloudstack.Record) error {
	for _, pattern := range []string{"apache2.service", "cloud-password-server@*.service"} {
		list, err := s.start(ctx, "systemctl", "list-units", "--plain", "--no-legend", "--state=active", pattern)
		if err != nil {
			return err
		}
		for line := range strings.Lines(list) {
			if fields := strings.Fields(line); len(fields) > 0 {
				rec.Stopped = append(rec.Stopped, fields[0])
			}
		}
	}
	for _, unit := range masked {
		if s.ours(mask(unit)) {
			continue // the administrator's
		}
		// Before it is done: what is recorded and was not done is nothing to undo.
		rec.Stands[mask(unit).path] = &cloudstack.Standing{}
		if err := s.writeRecord(*rec); err != nil {
			return err
		}
		if _, err := s.put(mask(unit)); err != nil {
			return err
		}
	}
	if err := s.dnsmasq(ctx); err != nil {
		return err
	}
	if err := s.replace(dropInFile, 0o644, []byte(dropIn)); err != nil {
		return err
	}
	if err := s.systemctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	if err := s.systemctl(ctx, "try-restart", dnsmasqUnit); err != nil {
		return err
	}
	if len(rec.Stopped) == 0 {
		return nil
	}
	return s.systemctl(ctx, append([]string{"stop"}, rec.Stopped...)...)
}

// release undoes what silence and divert have done, as far as they had come.
func (s *site) release(ctx context.Context, rec *cloudstack.Record) error {
	var faults []error
	for _, name := range entryPoints {
		faults = append(faults, s.undivert(ctx, rec, name))
	}
	for _, unit := range masked {
		if rec.Stands[mask(unit).path] != nil {
			faults = append(faults, s.back(mask(unit)))
			delete(rec.Stands, mask(unit).path)
		}
	}
	faults = append(faults, s.drop(s.path(dropInFile)))
	_ = os.Remove(filepath.Dir(s.path(dropInFile))) // unless somebody else has a file there
	faults = append(faults, s.systemctl(ctx, "daemon-reload"), s.systemctl(ctx, "try-restart", dnsmasqUnit))
	if len(rec.Stopped) > 0 {
		faults = append(faults, s.systemctl(ctx, append([]string{"start"}, rec.Stopped...)...))
		rec.Stopped = nil
	}
	return errors.Join(faults...)
}

// divert puts ours in the place of a script of the router, and tells dpkg, so that a package that
// brings the script some day lays it beside ours.
func (s *site) divert(ctx context.Context, rec *cloudstack.Record, name string) error {
	d := standIn(name)
	if _, err := s.start(ctx, "dpkg-divert", "--quiet", "--package", "vragent-cloudstack", "--add", "--no-rename",
		"--divert", d.path+aside, d.path); err != nil {
		return err
	}
	rec.Stands[d.path] = &cloudstack.Standing{}
	if err := s.writeRecord(*rec); err != nil {
		return err
	}
	_, err := s.put(d)
	return err
}

func (s *site) undivert(ctx context.Context, rec *cloudstack.Record, name string) error {
	d := standIn(name)
	if rec.Stands[d.path] == nil {
		return nil
	}
	if err := s.back(d); err != nil {
		return err
	}
	delete(rec.Stands, d.path)
	_, err := s.start(ctx, "dpkg-divert", "--quiet", "--package", "vragent-cloudstack", "--remove", "--no-rename", d.path)
	return err
}

// restore puts ours back where somebody has put something in its place, as a live patch of the
// router does. What was put there is the original from now on. It returns once nothing was replaced
// for a while: whoever unpacks many files is at it still when the first one is noticed.
func (s *site) restore(ctx context.Context, rec cloudstack.Record) error {
	for {
		replaced, err := s.restoreNow(ctx, rec)
		if err != nil || !replaced {
			return err
		}
		select {
		case <-time.After(s.pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *site) restoreNow(ctx context.Context, rec cloudstack.Record) (replaced bool, err error) {
	stands := make([]stand, 0, len(entryPoints)+len(masked))
	for _, name := range entryPoints {
		stands = append(stands, standIn(name))
	}
	for _, unit := range masked {
		stands = append(stands, mask(unit))
	}
	unmasked := false
	for _, d := range stands {
		st := rec.Stands[d.path]
		if st == nil {
			continue
		}
		foreign, err := s.put(d)
		if err != nil {
			return replaced, err
		}
		if !foreign {
			continue
		}
		replaced, unmasked = true, unmasked || d.link != ""
		st.Replaced, st.Times = s.now(), st.Times+1
		s.say("%s was replaced; what was put there is the original now", d.path)
		if err := s.writeRecord(rec); err != nil {
			return replaced, err
		}
	}
	if !unmasked {
		return replaced, nil
	}
	if err := s.systemctl(ctx, "daemon-reload"); err != nil {
		return replaced, err
	}
	return replaced, s.systemctl(ctx, "stop", "apache2.service", "cloud-password-server@*.service")
}

// wait waits until no script of the router runs that was started by its own name, and returns one
// that still does after so long.
func (s *site) wait(ctx context.Context, atMost time.Duration) string {
	scripts := map[string]bool{binDir + "/configure.py": true}
	for _, name := range entryPoints {
		scripts[standIn(name).path] = true
	}
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	over := time.After(atMost)
	for {
		left := s.running(scripts)
		if left == "" {
			return ""
		}
		select {
		case <-poll.C:
		case <-over:
			return left
		case <-ctx.Done():
			return left
		}
	}
}

// running returns one of the scripts that a process runs, or "".
func (s *site) running(scripts map[string]bool) string {
	found := make(map[string]bool)
	files, err := filepath.Glob(s.path("/proc/[0-9]*/cmdline"))
	if err != nil {
		return ""
	}
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// The interpreter comes first, then the script.
		if args := bytes.Split(line, []byte{0}); len(args) > 1 && scripts[string(args[1])] {
			found[string(args[1])] = true
		}
	}
	if len(found) == 0 {
		return ""
	}
	return slices.Min(slices.Collect(maps.Keys(found)))
}
