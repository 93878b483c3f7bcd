package api

import (
	"context"
	"iter"
)

// Change is what a push makes of one unit of the drop directory.
type Change struct {
	Unit string // networks/guest-1.yaml, vms/web
	// Remove takes the whole unit away; Files is nil then.
	Remove bool
	// Files are the new contents by base name: guest-1.yaml of a network, vm.yaml, meta-data.yaml,
	// user-data, vendor-data and password of a VM. A nil value removes the file (an empty one is
	// []byte{}); a file that is not named stays as it is.
	Files map[string][]byte
}

// Drop is the one door to the drop directory, and what the API needs to know of what lies behind
// it. All methods are safe for concurrent use, except that the API calls Judge and Put from one
// goroutine. Errors that are ctx's mean that the agent stops.
type Drop interface {
	// Units returns the paths of all units in the drop directory, valid or not, in no order.
	Units(ctx context.Context) ([]string, error)

	// Read returns files of a unit as they lie in the drop directory now: those named that are
	// there, by base name; without names all of them. Where the unit is not there the error is
	// ErrUnknown. A file that a writer has open is waited for.
	Read(ctx context.Context, unit string, names ...string) (map[string][]byte, error)

	// Judge tells what would become of changes if all of them were put now, together: against
	// each other, and against the newest valid contents of all other units. Of two changes that
	// conflict and of which neither is in force the later one is rejected. The result holds the
	// units that would not be applied, with state Pending or Rejected and the reasons. Nothing is
	// written and nothing is remembered. A VM that would be left without its vm.yaml is rejected.
	//
	// An error that changes yields ends Judge with that error. The contents of a change may not
	// be used any more once the next one is asked for.
	Judge(ctx context.Context, changes iter.Seq2[Change, error]) (map[string]Unit, error)

	// Put writes changes, which are of different units, and returns when they are durable. kill -9
	// leaves of each unit the old files or the new ones, also after a restart, and a change that
	// is not named in Files, made by another program meanwhile, is not lost. Removing what is not
	// there is no error. Where the error is not nil, each unit is as it was or as it is to be.
	Put(ctx context.Context, changes []Change) error

	// Settle waits until each of units has been judged with the content that it has in the drop
	// directory at the call, or with newer content, and is in force if it can be; a unit that was
	// removed, until it is out of force. It returns what became of them, in the order of units;
	// State is empty where there is no such unit any more.
	Settle(ctx context.Context, units []string) ([]Unit, error)

	// Follow waits until the unit's state is another than from, and returns it as it is then.
	Follow(ctx context.Context, unit string, from State) (Unit, error)

	// VM and Network return the report of one unit by its name, or ErrUnknown, at a cost that does
	// not depend on how many there are.
	VM(ctx context.Context, name string) (VM, error)
	Network(ctx context.Context, name string) (Network, error)
}
