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

// batchBytes is from how many bytes on files of ours that follow each other go to the agent, so that
// a large aggregated file is never held as a whole.
const batchBytes = 1 << 20

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
	f, err := cloudstack.Open(path)
	if err != nil {
		if archive.Has(path) {
			r.logf("%s: was taken in before", name)
			return 0
		}
		r.sayf("%v", err)
		return 1
	}
	defer f.Close()
	r.logf("%s: begins", name)
	status := 0
	worst := func(s int) {
		if s != 0 {
			status = 1
		}
	}
	env := append(os.Environ(), "DEFER_CONFIG=true")
	inside := make(map[string][]byte) // files of ours, which nobody else reads
	taken := make(map[string]bool)    // those that a command has named
	var batch []cloudstack.File
	size := 0 // of the batch
	first := true
	flush := func() {
		if len(batch) > 0 {
			if first {
				r.ownFirst(ctx)
				first = false
			}
			results, err := r.in.Taker.Apply(ctx, batch)
			worst(r.report(results, err))
			batch, size = nil, 0
		}
	}
	for item, err := range cloudstack.Items(f) {
		if err != nil {
			r.sayf("%s: %v", name, err)
			worst(1)
			break
		}
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
			file := filepath.Base(args[0])
			if content, held := inside[file]; held {
				delete(inside, file)
				taken[file] = true
				batch, size = append(batch, cloudstack.File{Name: args[0], Data: content}), size+len(content)
				if size >= batchBytes {
					flush()
				}
				continue
			}
			if taken[file] {
				continue // it is in force, or the server is told why not
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
	if status == 0 && archive.Holds(path) {
		if err := archive.DoneFile(name); err != nil {
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
