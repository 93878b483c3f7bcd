package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"vragent/agent"
)

func backupCommand(opts *options, std stdio) *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Save what no drop directory holds: users, pool leases, taken passwords",
		Long: `Save users of the API (with LDAP servers and links), pool leases and which passwords
were taken, while the daemon serves. FILE is replaced once the backup is complete,
and only its owner may read it: it holds keys of users. - is standard output.

Exit status 0, or 1 with the reason.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "-" {
				contents, err := fetchBackup(cmd.Context(), opts, std.out)
				if err != nil {
					return err
				}
				return writeContents(std.err, contents, "saved", "")
			}
			contents, err := saveBackup(cmd.Context(), opts, args[0])
			if err != nil {
				return err
			}
			return writeContents(std.out, contents, "saved", " to "+args[0])
		},
	}
}

// fetchBackup copies the daemon's backup to out and checks it on its way.
func fetchBackup(ctx context.Context, opts *options, out io.Writer) (agent.Contents, error) {
	daemon := opts.dial()
	defer daemon.Close()
	r, w := io.Pipe()
	type outcome struct {
		contents agent.Contents
		err      error
	}
	checked := make(chan outcome, 1)
	go func() {
		contents, err := agent.ReadBackup(r)
		_, _ = io.Copy(io.Discard, r) // what is wrong does not keep the rest from being saved
		checked <- outcome{contents, err}
	}()
	err := daemon.Backup(ctx, io.MultiWriter(out, w))
	w.Close()
	o := <-checked
	if err == nil && o.err != nil {
		err = fmt.Errorf("the daemon's backup: %w", o.err)
	}
	return o.contents, err
}

// saveBackup has the daemon's backup in a file.
func saveBackup(ctx context.Context, opts *options, path string) (contents agent.Contents, err error) {
	err = putFile(path, func(out io.Writer) error {
		contents, err = fetchBackup(ctx, opts, out)
		return err
	})
	return contents, err
}

// putFile writes a file whose name is there only once it is complete and on disk. It takes the place of a
// regular file alone, not of a device. An error leaves what was there, unless it says that the file is
// complete.
func putFile(path string, write func(io.Writer) error) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s: is no regular file: name one, or - for standard output", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp") // mode 0600
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return fmt.Errorf("%s is complete, but may not outlast a power failure: sync its folder: %w", path, err)
	}
	return nil
}

func restoreCommand(opts *options, std stdio) *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE",
		Short: "Bring a backup back, while the daemon is stopped",
		Long: `Bring back what vragent backup saved, while the daemon is stopped. FILE is checked
as a whole before anything is changed; - is standard input. Users become those of the
backup; none is removed where it says that it lacks some. A pool lease stays where the
state directory has a newer one, and a password that was taken stays taken.

Exit status 0, or 1 with the reason.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			in, name := std.in, "standard input"
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in, name = f, args[0]
			}
			owner, err := agent.StateOwner(opts.config)
			if err != nil {
				return err
			}
			if err := become(owner); err != nil {
				return err
			}
			done, err := agent.Restore(opts.config, in)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return writeRestored(std.out, std.now(), done, name)
		},
	}
}

// become gives the rights of root up for those of a file's owner, so that what is written is the owner's.
func become(owner os.FileInfo) error {
	st, ok := owner.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 || st.Uid == 0 {
		return nil
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(int(st.Gid)), syscall.Setuid(int(st.Uid))); err != nil {
		return fmt.Errorf("become user %d, whose the state directory is: %w", st.Uid, err)
	}
	return nil
}

// writeContents says what was saved or restored, and what was missing when the backup was made.
func writeContents(w io.Writer, c agent.Contents, verb, where string) error {
	parts := []string{some(c.Users, "user"), some(c.Leases, "pool lease"), some(c.Taken, "taken password")}
	if c.LDAP > 0 {
		parts = append(parts, some(c.LDAP, "LDAP record"))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s%s\n", verb, strings.Join(parts, ", "), where)
	for _, fault := range c.Faults {
		fmt.Fprintf(&b, "not in the backup: %s\n", printable(fault))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeRestored(w io.Writer, now time.Time, done agent.Restored, name string) error {
	if err := writeContents(w, done.Contents, "restored", " from "+name); err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "the backup is %s old, of vragent %s\n", age(now, done.Created), printable(done.Release))
	for _, line := range []struct {
		n          int
		what, text string
	}{
		{done.RemovedUsers, "user", "removed, not in the backup"},
		{done.RemovedLDAP, "LDAP record", "removed, not in the backup"},
		{done.KeptUsers, "record", "of users and LDAP not removed: the backup, which lacks some, may lack them"},
		{done.NewerLeases, "pool lease", "not changed: the state directory has a newer one"},
		{done.KeptTaken, "taken password", "not changed: the state directory has it already"},
	} {
		if line.n > 0 {
			fmt.Fprintf(&b, "%s: %s\n", some(line.n, line.what), line.text)
		}
	}
	for _, damage := range done.Damage {
		fmt.Fprintf(&b, "state directory: %s\n", printable(damage))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
