package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"vragent/agent/internal/desired"
	"vragent/agent/internal/drop"
)

// Check reads the configuration and the drop directory as a daemon would at its first start, and
// returns every fault, each with its file, line and column, and notes on files that would not be read.
// With paths it checks what is at them: units of any drop directory, or whole drop directories. No
// daemon is asked, and nothing is changed.
func Check(config string, paths []string) (faults []error, notes []string) {
	cfg, err := LoadConfig(config)
	if err != nil {
		faults = append(faults, unjoin(err)...)
		cfg = defaultConfig()
	}
	trees := make(map[string]map[drop.Unit]bool) // drop directory -> the units asked for; nil: all
	if len(paths) == 0 && err == nil {
		trees[cfg.DropDir] = nil
	}
	for _, path := range paths {
		root, unit, err := findUnit(path)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		asked, known := trees[root]
		switch {
		case unit == (drop.Unit{}):
			trees[root] = nil
		case !known:
			trees[root] = map[drop.Unit]bool{unit: true}
		case asked != nil:
			asked[unit] = true
		}
	}
	for root, asked := range trees {
		f, n := checkTree(root, asked)
		faults, notes = append(faults, f...), append(notes, n...)
	}
	return faults, notes
}

// findUnit returns the drop directory that path lies in and the unit that it belongs to, none for a
// drop directory itself.
func findUnit(path string) (root string, unit drop.Unit, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return "", unit, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", unit, ConfigFault{File: path, What: "cannot be read: " + err.(*os.PathError).Err.Error()}
	}
	if info.IsDir() {
		for _, folder := range []string{"networks", "vms"} {
			if sub, err := os.Stat(filepath.Join(path, folder)); err == nil && sub.IsDir() {
				return path, unit, nil
			}
		}
	}
	for root := filepath.Dir(path); ; root = filepath.Dir(root) {
		rel, err := filepath.Rel(root, path)
		if err != nil {
			break
		}
		if unit, err := drop.ParsePath(rel); err == nil {
			return root, unit, nil
		}
		if root == filepath.Dir(root) {
			break
		}
	}
	return "", unit, ConfigFault{File: path, What: "is no unit: name a networks/*.yaml, a folder in vms/ or a drop directory"}
}

// checkTree judges a whole drop directory, since units are judged beside each other, and returns what
// concerns the units asked for.
func checkTree(root string, asked map[drop.Unit]bool) (faults []error, notes []string) {
	dir, units, err := drop.Peek(root)
	if errors.Is(err, drop.ErrMissing) {
		return nil, []string{root + ": is not there yet; the daemon makes it when it starts"}
	}
	if err != nil {
		return []error{err}, nil
	}
	defer dir.Close()
	model := desired.NewModel()
	now := time.Now()
	var changes []desired.Change
	wanted := func(u drop.Unit) bool { return asked == nil || asked[u] }
	for _, u := range units {
		c, err := dir.Read(u)
		if err != nil {
			if wanted(u) {
				faults = append(faults, ConfigFault{File: filepath.Join(root, u.Path()), What: err.Error()})
			}
			continue
		}
		content, list := desired.Parse(c, desired.Powers{NetAdmin: true})
		changes = append(changes, desired.Change{Unit: u, Content: content, Faults: list, Notes: c.Notes})
	}
	model.Accept(model.Judge(changes, now), now)
	for _, c := range changes {
		if !wanted(c.Unit) {
			continue
		}
		v, _ := model.View(c.Unit)
		for _, f := range v.Faults {
			faults = append(faults, ConfigFault{File: filepath.Join(root, f.File), Line: f.Line, Column: f.Column, What: f.What})
		}
		for _, note := range c.Notes {
			notes = append(notes, fmt.Sprintf("%s: %s", filepath.Join(root, c.Unit.Path()), note))
		}
	}
	return faults, notes
}
