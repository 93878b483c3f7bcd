package state

import (
	"fmt"
	"strings"
)

// Report tells what Open found wrong. The zero value means nothing.
type Report struct {
	// Damage lists the places that could not be read.
	Damage []Damage
	// Lost are keys whose value is known to be damaged; Get of them returns
	// ErrDamaged. Large values are only checked when they are read.
	Lost []string
	// Kept are the paths of files that were kept aside for inspection.
	Kept []string
}

// Damage is one stretch of a segment that holds no sound record.
type Damage struct {
	File           string // name of the segment
	Offset, Length int64
	// Torn tells that it is the end of the last write, which a crash cut off:
	// nothing that had been acknowledged.
	Torn bool
	What string
}

// Empty tells whether all was well.
func (r Report) Empty() bool { return len(r.Damage) == 0 && len(r.Lost) == 0 && len(r.Kept) == 0 }

// String is the report in one line, for a log.
func (r Report) String() string {
	if r.Empty() {
		return "sound"
	}
	var parts []string
	for _, d := range r.Damage {
		parts = append(parts, fmt.Sprintf("%s: %d bytes at %d: %s", d.File, d.Length, d.Offset, d.What))
	}
	for _, key := range r.Lost {
		parts = append(parts, fmt.Sprintf("value of %q is damaged", key))
	}
	for _, path := range r.Kept {
		parts = append(parts, "kept "+path)
	}
	return strings.Join(parts, "; ")
}
