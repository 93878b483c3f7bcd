package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"vragent/agent/internal/cloudstack"
)

// vrConfig takes an aggregated file in, item by item in its order. Files of ours that follow each
// other go to the agent together. A failing item stops no other. What programs print goes to the
// router's log, as it always has; the management server is told which failed, and the end of that.
func (r *router) vrConfig(ctx context.Context, args []string) int {
	if len(args) != 2 || args[0] != "-c" {
		r.sayf("usage: vr_cfg.sh -c FILE")
		return 1
	}
	archive := r.in.Archive
	path := archive.Path(args[1])
	name := filepath.Base(path)
	data, err := os.ReadFile(path)
	if err != nil {
		if archive.Has(path) {
			r.logf("%s: was taken in before", name)
			return 0
		}
		r.sayf("%v", err)
		return 1
	}
	items, err := cloudstack.Aggregated(data)
	status := 0
	if err != nil {
		r.sayf("%s: %v", name, err)
		status = 1
	}
	r.logf("%s: begins, %d items", name, len(items))
	worst := func(s int) {
		if s != 0 {
			status = 1
		}
	}
	env := append(os.Environ(), "DEFER_CONFIG=true")
	inside := make(map[string][]byte) // files of ours, which nobody else reads
	var batch []cloudstack.File
	first := true
	flush := func() {
		if len(batch) > 0 {
			if first {
				r.ownFirst(ctx)
				first = false
			}
			results, err := r.in.Taker.Apply(ctx, batch)
			worst(r.report(results, err))
			batch = nil
		}
	}
	for _, item := range items {
		if item.Path != "" {
			if cloudstack.KindOf(item.Path).Ours() {
				inside[filepath.Base(item.Path)] = item.Data
			} else if err := writeAnew(item.Path, item.Data); err != nil {
				r.sayf("%v", err)
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
		r.logf("%s: runs %s", name, item.Line)
		before := r.logged()
		by := way{env: env, out: r.log}
		var s int
		if ok {
			s = r.updateConfig(ctx, by, args)
		} else {
			s = r.start(ctx, by, shell(), "-c", item.Line)
		}
		if s != 0 {
			worst(s)
			r.sayf("%s: exit status %d%s", item.Line, s, r.tail(before))
		}
	}
	flush()
	// Connections under way are judged by the new rules.
	if err := r.flush(); err != nil {
		r.logf("%v", err)
	}
	// A file that failed stays, so that trying it again does try again.
	if status == 0 && filepath.Dir(path) == filepath.Clean(archive.Dir) {
		if err := archive.Done(name, data, true); err != nil {
			r.sayf("%v", err)
		}
		if err := archive.Prune(time.Now()); err != nil {
			r.sayf("%v", err)
		}
	}
	r.logf("%s: ends with exit status %d", name, status)
	return status
}

// ownFirst takes in what the router is, where that still lies there. The original needs it as well.
func (r *router) ownFirst(ctx context.Context) {
	if _, err := os.Stat(r.in.Archive.Path(ownFile)); err != nil {
		return
	}
	in := r.in
	in.LeaveShared = r.original("update_config.py") != ""
	results, err := in.Take(ctx, []string{ownFile}, true)
	r.report(results, err)
}

// writeAnew writes a file of others in the place of one that may lie there, or that a link there
// leads to.
func writeAnew(path string, data []byte) error {
	_ = os.Remove(path)
	return os.WriteFile(path, data, 0o600)
}

// shell is the one that command lines of aggregated files are written for.
func shell() string {
	if path, err := exec.LookPath("bash"); err == nil {
		return path
	}
	return "/bin/sh"
}

// logged is how much the log holds.
func (r *router) logged() int64 {
	info, err := r.log.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// tail is the end of what has been logged since it held from, to be put behind other text.
func (r *router) tail(from int64) string {
	buf := make([]byte, 1000)
	n, _ := r.log.ReadAt(buf, max(from, r.logged()-int64(len(buf)))) // a short one is at the log's end
	text := strings.TrimSpace(strings.ToValidUTF8(string(buf[:n]), ""))
	if text == "" {
		return ""
	}
	return "; it said, by the end of " + r.log.Name() + ":\n" + text
}
