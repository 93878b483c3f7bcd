package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vragent/agent/internal/api"
)

// pollJob is how often a job is asked for.
const pollJob = 200 * time.Millisecond

func pushCommand(opts *options, std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "push FOLDER|BUNDLE",
		Short: "Push many units at once and wait until they are in force",
		Long: `Push a drop directory, as a folder or as a tar or tar.gz of one, in one job, show its
progress and wait for its end. In mode merge, what it lacks stays; in mode replace,
what it lacks is removed.

Exit status 0, or 1 with the reason.`,
		Args: cobra.ExactArgs(1),
	}
	mode := cmd.Flags().String("mode", "merge", "merge or replace")
	_ = cmd.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions([]string{"merge", "replace"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *mode != "merge" && *mode != "replace" {
			return &exitError{exitUsage, fmt.Errorf("--mode is %q; it must be merge or replace", *mode)}
		}
		pack, err := openBundle(args[0])
		if err != nil {
			return err
		}
		// It is packed twice, for its sum and to be sent: a router has no room for a copy.
		sum := sha256.New()
		if err := pack(sum); err != nil {
			return err
		}
		r, w := io.Pipe()
		defer r.Close()
		go func() { w.CloseWithError(pack(w)) }()
		daemon := opts.dial()
		defer daemon.Close()
		id, err := daemon.PushBundle(cmd.Context(), r, hex.EncodeToString(sum.Sum(nil)), *mode == "replace")
		if err != nil {
			return err
		}
		return followJob(cmd.Context(), std, daemon, id)
	}
	return cmd
}

// openBundle returns what writes the archive at path, or one of the folder that is there, the same at each
// call unless it changes in between.
func openBundle(path string) (pack func(io.Writer) error, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		// With --mode replace the wrong folder would empty the router.
		_, networks := os.Stat(filepath.Join(path, "networks"))
		_, vms := os.Stat(filepath.Join(path, "vms"))
		if networks != nil && vms != nil {
			return nil, fmt.Errorf("%s is no drop directory: it has neither networks nor vms", path)
		}
		return func(w io.Writer) error { return packFolder(w, path) }, nil
	}
	return func(w io.Writer) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	}, nil
}

// packFolder writes the drop directory at root as a tar. Hidden and temporary names are left out, as
// the daemon passes them over.
func packFolder(w io.Writer, root string) error {
	t := tar.NewWriter(w)
	for _, top := range []string{"networks", "vms"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d os.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) && path == filepath.Join(root, top) {
				return nil
			}
			if err != nil {
				return err
			}
			if name := d.Name(); strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".tmp") || strings.HasSuffix(name, ".swp") || strings.HasSuffix(name, "~") {
				if d.IsDir() {
					return filepath.SkipDir
				}
				return nil
			}
			return packEntry(t, root, path, d)
		})
		if err != nil {
			return err
		}
	}
	return t.Close()
}

func packEntry(t *tar.Writer, root, path string, d os.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return err
	}
	// What is neither file nor folder goes along as it is, for the daemon to refuse by name.
	h, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	h.Name = filepath.ToSlash(rel)
	if d.IsDir() {
		h.Name += "/"
	}
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(t, f, info.Size()); err != nil {
		return fmt.Errorf("%s changed while it was read: %w", path, err)
	}
	return nil
}

// followJob shows how far a job is until it ends: a bar on a terminal, else a line for each quarter.
func followJob(ctx context.Context, std stdio, daemon *api.Client, id string) error {
	shown, note := -1, ""
	for {
		j, err := daemon.Job(ctx, id)
		if err != nil {
			return fmt.Errorf("job %s: %w", id, err)
		}
		percent := j.Percent
		if j.State == "done" {
			percent = 100
		}
		switch {
		case std.color: // a terminal
			const cells = 40
			full := percent * cells / 100
			fmt.Fprintf(std.err, "\r%s%s %3d %%", strings.Repeat("#", full), strings.Repeat(".", cells-full), percent)
		case percent/25 > shown/25 || shown < 0:
			fmt.Fprintf(std.err, "%d %%\n", percent)
			shown = percent
		}
		if j.Note != "" && j.Note != note {
			note = j.Note
			if std.color {
				fmt.Fprintln(std.err) // below the bar
			}
			fmt.Fprintln(std.err, "waits for "+oneLine(note))
		}
		if j.State != "open" && std.color {
			fmt.Fprintln(std.err)
		}
		switch j.State {
		case "done":
			_, err := fmt.Fprintf(std.out, "job %s is done\n", id)
			return err
		case "failed":
			return fmt.Errorf("job %s failed: %s", id, j.Error)
		}
		select {
		case <-time.After(pollJob):
		case <-ctx.Done():
			return fmt.Errorf("job %s goes on without this command: vragent jobs %[1]s", id)
		}
	}
}
