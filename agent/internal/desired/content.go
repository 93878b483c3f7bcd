package desired

import (
	"crypto/sha256"
	"encoding/hex"

	"vragent/agent/internal/drop"
	"vragent/agent/internal/strict"
)

// Fault is one thing that is wrong with a unit, and where.
type Fault struct {
	File string // relative to the drop directory
	strict.Fault
}

func (f Fault) Error() string {
	switch {
	case f.File == "":
		return f.What
	case f.Line == 0:
		return f.File + ": " + f.What
	}
	return f.File + ":" + f.Fault.Error()
}

// Content is a valid content of a unit: a network's or a VM's. It is never changed.
type Content struct {
	Unit    drop.Unit
	Network *Network
	VM      *VM
	Notes   []string // worth knowing, no fault
}

// Parse reads a unit as it was dropped. A content that exists comes back or its faults do; a unit
// that does not exist is nil without faults.
func Parse(c drop.Content, powers Powers) (*Content, []Fault) {
	var faults []Fault
	for _, f := range c.Faults {
		faults = append(faults, Fault{File: f.File, Fault: strict.Fault{What: f.What}})
	}
	if len(faults) > 0 || !c.Exists {
		return nil, faults
	}
	add := func(file string, list []strict.Fault) {
		for _, f := range list {
			faults = append(faults, Fault{File: file, Fault: f})
		}
	}
	content := &Content{Unit: c.Unit, Notes: c.Notes}
	path := c.Unit.Path()
	switch c.Unit.Kind {
	case drop.Network:
		n, list := parseNetwork(c.Unit.Name, c.Files[c.Unit.Name+".yaml"].Data, powers)
		add(path, list)
		content.Network = n
	case drop.VM:
		vm, list := parseVM(c.Unit.Name, c.Files["vm.yaml"].Data)
		add(path+"/vm.yaml", list)
		if vm == nil {
			vm = &VM{Name: c.Unit.Name} // the other files are checked all the same
		}
		if f, ok := c.Files["meta-data.yaml"]; ok {
			vm.Meta, list = parseMeta(f.Data)
			add(path+"/meta-data.yaml", list)
		}
		if f, ok := c.Files["password"]; ok {
			vm.Password, list = parsePassword(f.Data)
			add(path+"/password", list)
		}
		vm.UserData = blob(c, "user-data")
		vm.VendorData = blob(c, "vendor-data")
		content.VM = vm
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return content, nil
}

func blob(c drop.Content, name string) *Blob {
	f, ok := c.Files[name]
	if !ok {
		return nil
	}
	sum := sha256.Sum256(f.Data)
	return &Blob{Size: int64(len(f.Data)), Hash: hex.EncodeToString(sum[:])}
}
