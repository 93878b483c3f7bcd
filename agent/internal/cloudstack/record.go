package cloudstack

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// RecordFile is where the package vragent-cloudstack keeps its Record. Everybody may read it.
const RecordFile = "/var/lib/vragent-cloudstack/status.json"

// Record is what the package remembers of a router that it was installed on: what is to be undone
// when it is removed, and what an operator wants to know.
type Record struct {
	// InForce: the router is taken over, and the programs that a management server calls are ours.
	InForce bool      `json:"in_force"`
	Since   time.Time `json:"since,omitzero"`
	// Problem is why the router could not be taken over, or not all of it.
	Problem string `json:"problem,omitempty"`
	// Stands are the files that something of ours is in the place of, by path.
	Stands map[string]*Standing `json:"stands,omitempty"`
	// Stopped are the services that ran before.
	Stopped []string `json:"stopped,omitempty"`
}

// Standing is what has happened to one file.
type Standing struct {
	Replaced time.Time `json:"replaced,omitzero"` // when somebody last put another one in the place of ours
	Times    int       `json:"times,omitempty"`   // how often that was
}

// ReadRecord reads the record at path; where there is none the error is fs.ErrNotExist.
func ReadRecord(path string) (Record, error) {
	r := Record{Stands: make(map[string]*Standing)}
	data, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	if r.Stands == nil {
		r.Stands = make(map[string]*Standing)
	}
	for path, s := range r.Stands {
		if s == nil {
			r.Stands[path] = &Standing{}
		}
	}
	return r, nil
}
