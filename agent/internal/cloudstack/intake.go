package cloudstack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
)

// Taker takes files in: a Dialect, or a Client of one.
type Taker interface {
	Apply(ctx context.Context, files []File) ([]Result, error)
}

// Intake hands the files that lie in a management server's folder to the dialect, and archives them.
type Intake struct {
	Taker   Taker
	Archive Archive
	// LeaveShared leaves files that other programs need as well where they are.
	LeaveShared bool
}

// IsAggregated tells whether a file of that name holds many others.
func IsAggregated(name string) bool {
	base := filepath.Base(name)
	return strings.HasPrefix(base, "VR-") && strings.Contains(base, ".cfg")
}

// Take takes the files at paths in, in order, and returns what became of each; a name without a
// folder is looked for in the server's. An aggregated file stands for the files in it, and commands
// of others in it are rejected. A file that is gone and has an archived copy has been taken in
// before. What was taken in and lies in the server's folder is archived, or only removed where keep
// is false. The error is that of Dialect.Apply.
func (in Intake) Take(ctx context.Context, paths []string, keep bool) ([]Result, error) {
	type source struct {
		path    string
		data    []byte
		results []int
	}
	var results []Result
	var files []File
	var at []int // of files, in results
	var sources []source
	add := func(s *source, f File) {
		s.results = append(s.results, len(results))
		at = append(at, len(results))
		results = append(results, Result{Name: filepath.Base(f.Name)})
		files = append(files, f)
	}
	refuse := func(s *source, name, format string, args ...any) {
		s.results = append(s.results, len(results))
		results = append(results, Result{Name: filepath.Base(name), State: Rejected, Reason: fmt.Sprintf(format, args...)})
	}
	for _, p := range paths {
		s := source{path: in.Archive.Path(p)}
		var err error
		s.data, err = readFile(s.path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && in.Archive.Has(p):
			results = append(results, Result{Name: filepath.Base(p), State: Applied, Notes: []string{"it was taken in before"}})
			continue
		case err != nil:
			refuse(&s, p, "%v", err)
		case IsAggregated(p):
			items, err := Aggregated(s.data)
			inside := make(map[string][]byte)
			for _, item := range items {
				if item.Path != "" {
					inside[filepath.Base(item.Path)] = item.Data
					continue
				}
				args, ok := item.UpdateConfig()
				if !ok || !KindOf(args[0]).Ours() && !KindOf(args[0]).Shared() {
					refuse(&s, item.Line, "is a command for others, which vr_cfg.sh of vragent-cloudstack runs")
					continue
				}
				data, ok := inside[filepath.Base(args[0])]
				if !ok {
					refuse(&s, args[0], "is not in %s", filepath.Base(p))
					continue
				}
				add(&s, File{Name: args[0], Data: data})
			}
			if err != nil {
				refuse(&s, p, "%v", err)
			}
		default:
			add(&s, File{Name: p, Data: s.data})
		}
		sources = append(sources, s)
	}
	if len(files) > 0 {
		taken, err := in.Taker.Apply(ctx, files)
		for i, r := range taken {
			results[at[i]] = r
		}
		if err != nil {
			return results, err
		}
	}
	for _, s := range sources {
		whole := true
		for _, i := range s.results {
			whole = whole && results[i].State != Rejected
		}
		shared := in.LeaveShared && KindOf(s.path).Shared()
		if !whole || shared || !in.Archive.Holds(s.path) {
			continue
		}
		// It is in force; that it cannot be archived, on a full disk, is no reason to say otherwise.
		if err := in.Archive.Done(filepath.Base(s.path), s.data, keep); err != nil && len(s.results) > 0 {
			r := &results[s.results[0]]
			r.Notes = append(r.Notes, err.Error())
		}
	}
	if err := in.Archive.Prune(time.Now()); err != nil && len(results) > 0 {
		results[0].Notes = append(results[0].Notes, err.Error())
	}
	return results, nil
}
