package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"vragent/agent/internal/cloudstack"
)

// vrConfig takes an aggregated file in, item by item in its order. Files of ours that follow each
// other go to the agent together. A failing item stops no other.
func (r *router) vrConfig(ctx context.Context, args []string) int {
	if len(args) != 2 || args[0] != "-c" {
		fmt.Fprintln(r.out, "usage: vr_cfg.sh -c FILE")
		return 1
	}
	archive := r.in.Archive
	path := archive.Path(args[1])
	data, err := os.ReadFile(path)
	if err != nil {
		if archive.Has(path) {
			return 0
		}
		fmt.Fprintln(r.out, err)
		return 1
	}
	items, err := cloudstack.Aggregated(data)
	status := 0
	if err != nil {
		fmt.Fprintf(r.out, "%s: %v\n", filepath.Base(path), err)
		status = 1
	}
	worst := func(s int) {
		if s != 0 {
			status = 1
		}
	}
	env := append(os.Environ(), "DEFER_CONFIG=true")
	inside := make(map[string][]byte) // files of ours, which nobody else reads
	var batch []cloudstack.File
	flush := func() {
		if len(batch) > 0 {
			results, err := r.in.Taker.Apply(ctx, batch)
			worst(r.report(results, err))
			batch = nil
		}
	}
	for _, item := range items {
		if item.Path != "" {
			if cloudstack.KindOf(item.Path).Ours() {
				inside[filepath.Base(item.Path)] = item.Data
			} else if err := os.WriteFile(item.Path, item.Data, 0o600); err != nil {
				fmt.Fprintln(r.out, err)
				worst(1)
			}
			continue
		}
		args, ok := item.UpdateConfig()
		if ok {
			if content, held := inside[filepath.Base(args[0])]; held {
				batch = append(batch, cloudstack.File{Name: args[0], Data: content})
				continue
			}
		}
		flush()
		if ok {
			worst(r.updateConfig(ctx, env, args))
			continue
		}
		if s := r.start(ctx, env, "/bin/sh", "-c", item.Line); s != 0 {
			fmt.Fprintf(r.out, "%s: exit status %d\n", item.Line, s)
			worst(s)
		}
	}
	flush()
	// A file that failed stays, so that trying it again does try again.
	if status == 0 && filepath.Dir(path) == filepath.Clean(archive.Dir) {
		if err := archive.Done(filepath.Base(path), data, true); err != nil {
			fmt.Fprintln(r.out, err)
		}
	}
	return status
}
