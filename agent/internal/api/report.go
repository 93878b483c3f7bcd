package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// State is what became of a unit.
type State string

const (
	// Applied: all of the unit's newest content is in force.
	Applied State = "applied"
	// Pending: valid, but something it needs is not there yet; it takes effect by itself.
	Pending State = "pending"
	// Rejected: invalid or in conflict; the last good content, if any, stays in force.
	Rejected State = "rejected"
)

// ErrUnknown is returned for a subject, path or unit that nothing is known of.
var ErrUnknown = errors.New("unknown")

// Backend is what the API needs of the agent. All methods are safe for concurrent use and none
// of them waits for another one's caller.
type Backend interface {
	Status(ctx context.Context) Status
	Networks(ctx context.Context) []Network
	VMs(ctx context.Context) []VM
	// Explain finds a guest by VM name, MAC or address and returns ErrUnknown where there is none.
	Explain(ctx context.Context, subject string) (Explanation, error)
	// Wait returns once all that was in the drop directory at the call has been judged, or what
	// is at the given paths, which are absolute or relative to the drop directory. When ctx ends
	// first, the result lists what is still open and the error is ctx's.
	Wait(ctx context.Context, paths []string) (WaitResult, error)
}

// Fault is one thing that is wrong with a unit. Line and Column count from 1; 0 is unknown.
type Fault struct {
	File   string `json:"file,omitempty" yaml:"file,omitempty"` // relative to the drop directory
	Line   int    `json:"line,omitempty" yaml:"line,omitempty"`
	Column int    `json:"column,omitempty" yaml:"column,omitempty"`
	What   string `json:"what" yaml:"what"`
}

// String returns the fault as file:line:col: what, as far as it is known.
func (f Fault) String() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d", f.Line)
			if f.Column > 0 {
				fmt.Fprintf(&b, ":%d", f.Column)
			}
		}
		b.WriteString(": ")
	}
	return b.String() + f.What
}

// Unit is the state of one unit: a network's file or a VM's folder.
type Unit struct {
	Unit    string    `json:"unit" yaml:"unit"` // networks/guest-1.yaml, vms/i-2-34-VM
	State   State     `json:"state" yaml:"state"`
	InForce bool      `json:"in_force" yaml:"in_force"` // some content of it, perhaps an older one, is in force
	Since   time.Time `json:"since" yaml:"since"`       // of this state
	Reasons []Fault   `json:"reasons,omitempty" yaml:"reasons,omitempty"`
	Notes   []string  `json:"notes,omitempty" yaml:"notes,omitempty"` // worth knowing, no fault: files that are not read
}

// Status is the daemon at a glance.
type Status struct {
	Version  string          `json:"version" yaml:"version"`
	Started  time.Time       `json:"started" yaml:"started"`
	DropDir  string          `json:"drop_dir" yaml:"drop_dir"`
	Config   ConfigStatus    `json:"config" yaml:"config"`
	Networks map[State]int   `json:"networks" yaml:"networks"`
	VMs      map[State]int   `json:"vms" yaml:"vms"`
	Watch    WatchStatus     `json:"watch" yaml:"watch"`
	Units    []Unit          `json:"units,omitempty" yaml:"units,omitempty"`   // those that are pending, rejected or have notes
	Faults   []string        `json:"faults,omitempty" yaml:"faults,omitempty"` // of the daemon itself: disk full, a port taken
	Powers   map[string]bool `json:"powers" yaml:"powers"`                     // net_admin, net_raw, net_bind_service, lease
	Shared   *SharedStatus   `json:"shared,omitempty" yaml:"shared,omitempty"` // nil: the router shares nothing

	CloudStack *CloudStackStatus `json:"cloudstack,omitempty" yaml:"cloudstack,omitempty"` // nil without vragent-cloudstack
}

// SharedStatus tells how a router stands with what it shares with the other one of a pair.
type SharedStatus struct {
	Endpoints []string `json:"endpoints" yaml:"endpoints"`
	Endpoint  string   `json:"endpoint" yaml:"endpoint"` // that requests go to now
	// Current is true while the router is told what the other one writes. Else no new pool leases and
	// no waiting passwords are given.
	Current bool      `json:"current" yaml:"current"`
	Since   time.Time `json:"since" yaml:"since"`
	Why     string    `json:"why,omitempty" yaml:"why,omitempty"` // not current: why
}

// CloudStackStatus tells how the package vragent-cloudstack stands in for a router's own scripts.
type CloudStackStatus struct {
	InForce  bool       `json:"in_force" yaml:"in_force"`                     // the diversions
	Since    time.Time  `json:"since,omitzero" yaml:"since,omitempty"`        // when they came into force
	Problem  string     `json:"problem,omitempty" yaml:"problem,omitempty"`   // why they are not, or what was not taken over
	Replaced []Replaced `json:"replaced,omitempty" yaml:"replaced,omitempty"` // files that had to be put back, by path
}

// Replaced is a file of ours that somebody has put another one in the place of: a live patch of the
// router, as a rule. Ours is back, and the other one is the original now.
type Replaced struct {
	Path  string    `json:"path" yaml:"path"`
	Last  time.Time `json:"last" yaml:"last"`
	Times int       `json:"times" yaml:"times"`
}

// ConfigStatus tells which configuration is in force.
type ConfigStatus struct {
	Files  []string  `json:"files" yaml:"files"`
	Loaded time.Time `json:"loaded" yaml:"loaded"`
	// Faults of the newest files on disk, if they could not be put in force.
	Faults []Fault `json:"faults,omitempty" yaml:"faults,omitempty"`
	// Restart lists changed keys that take effect at the next start only.
	Restart []string `json:"restart,omitempty" yaml:"restart,omitempty"`
}

// WatchStatus tells how changes of the drop directory are noticed.
type WatchStatus struct {
	Watched   int `json:"watched" yaml:"watched"`     // folders with a watch
	Unwatched int `json:"unwatched" yaml:"unwatched"` // folders scanned each second, for want of watches
	// Unsettled units have a file that someone holds open for writing.
	Unsettled []string `json:"unsettled,omitempty" yaml:"unsettled,omitempty"`
	// QuietTime is true where the file system has no leases, so that only a second without a
	// change tells that a file is complete.
	QuietTime bool `json:"quiet_time,omitempty" yaml:"quiet_time,omitempty"`
}

// Network is a guest network and how it is served.
type Network struct {
	Unit      `yaml:",inline"`
	Name      string `json:"name" yaml:"name"`
	Device    string `json:"device,omitempty" yaml:"device,omitempty"`
	Subnet    string `json:"subnet,omitempty" yaml:"subnet,omitempty"`
	Gateway   string `json:"gateway,omitempty" yaml:"gateway,omitempty"`
	Serving   string `json:"serving,omitempty" yaml:"serving,omitempty"` // the serving address
	Standby   bool   `json:"standby" yaml:"standby"`                     // applied, but its address is not on the device
	Guests    int    `json:"guests" yaml:"guests"`                       // NICs in force
	PoolTotal int    `json:"pool_total,omitempty" yaml:"pool_total,omitempty"`
	PoolUsed  int    `json:"pool_used,omitempty" yaml:"pool_used,omitempty"`
}

// VM is a VM in force or wanted.
type VM struct {
	Unit     `yaml:",inline"`
	Name     string `json:"name" yaml:"name"`
	Hostname string `json:"hostname,omitempty" yaml:"hostname,omitempty"`
	NICs     []NIC  `json:"nics" yaml:"nics"`
}

// NIC is one NIC of a VM.
type NIC struct {
	Network  string     `json:"network" yaml:"network"`
	MAC      string     `json:"mac,omitempty" yaml:"mac,omitempty"`
	IPv4     string     `json:"ipv4" yaml:"ipv4"`
	Default  bool       `json:"default" yaml:"default"`
	Served   bool       `json:"served" yaml:"served"` // its network is applied and not standing by
	LastSeen *time.Time `json:"last_seen,omitempty" yaml:"last_seen,omitempty"`
	// LeaseEnds is when the last lease that was given out for the NIC ends; absent where none was
	// given out since the daemon started, or the lease is infinite.
	LeaseEnds *time.Time `json:"lease_ends,omitempty" yaml:"lease_ends,omitempty"`
	Why       string     `json:"why,omitempty" yaml:"why,omitempty"` // not served: why
}

// Explanation tells why a guest gets what it gets.
type Explanation struct {
	Subject string `json:"subject" yaml:"subject"`
	// Answer is one or two sentences: does the guest get an address and its data, and if not, why not.
	Answer string `json:"answer" yaml:"answer"`
	// Next is what to do about it; empty where nothing is wrong.
	Next      string            `json:"next,omitempty" yaml:"next,omitempty"`
	VM        *VM               `json:"vm,omitempty" yaml:"vm,omitempty"`
	Networks  []Network         `json:"networks,omitempty" yaml:"networks,omitempty"`
	Files     []FileInfo        `json:"files,omitempty" yaml:"files,omitempty"`
	Served    []ServedEntry     `json:"served,omitempty" yaml:"served,omitempty"`
	DHCP      []DHCPExchange    `json:"dhcp,omitempty" yaml:"dhcp,omitempty"`         // newest first
	Requests  []MetadataRequest `json:"requests,omitempty" yaml:"requests,omitempty"` // newest first
	Obstacles []string          `json:"obstacles,omitempty" yaml:"obstacles,omitempty"`
}

// FileInfo is one file of a unit as it lies in the drop directory.
type FileInfo struct {
	Path     string    `json:"path" yaml:"path"`
	Size     int64     `json:"size" yaml:"size"`
	Modified time.Time `json:"modified" yaml:"modified"`
}

// ServedEntry is one metadata name with its value, or the size of user data (never a password).
type ServedEntry struct {
	NIC   string `json:"nic" yaml:"nic"` // the address it is served to
	Name  string `json:"name" yaml:"name"`
	Value string `json:"value,omitempty" yaml:"value,omitempty"`
	Size  int64  `json:"size" yaml:"size"`
}

// DHCPExchange is one message of a guest and what it was answered.
type DHCPExchange struct {
	Time    time.Time `json:"time" yaml:"time"`
	Network string    `json:"network,omitempty" yaml:"network,omitempty"`
	Device  string    `json:"device,omitempty" yaml:"device,omitempty"`
	MAC     string    `json:"mac" yaml:"mac"`
	Message string    `json:"message" yaml:"message"` // DISCOVER, REQUEST (SELECTING), ...
	Answer  string    `json:"answer" yaml:"answer"`   // OFFER, ACK, NAK, none
	Address string    `json:"address,omitempty" yaml:"address,omitempty"`
	Why     string    `json:"why,omitempty" yaml:"why,omitempty"` // of a NAK or a silence
}

// MetadataRequest is one request of a guest to the metadata or password server.
type MetadataRequest struct {
	Time   time.Time `json:"time" yaml:"time"`
	Path   string    `json:"path" yaml:"path"`
	Status int       `json:"status" yaml:"status"`
	Why    string    `json:"why,omitempty" yaml:"why,omitempty"`
}

// WaitResult is what became of the units that a wait was for.
type WaitResult struct {
	State     State    `json:"state" yaml:"state"`                             // the worst of them: rejected, then pending, then applied
	Units     []Unit   `json:"units,omitempty" yaml:"units,omitempty"`         // those that are not applied
	Unsettled []string `json:"unsettled,omitempty" yaml:"unsettled,omitempty"` // still open when the time was over
}

// Job is a job of the companion API.
type Job struct {
	ID        string     `json:"id" yaml:"id"`
	Command   string     `json:"command" yaml:"command"`
	Unit      string     `json:"unit,omitempty" yaml:"unit,omitempty"` // none: a bundle
	User      string     `json:"user" yaml:"user"`
	State     string     `json:"state" yaml:"state"` // open, done, failed
	Percent   int        `json:"percent" yaml:"percent"`
	Note      string     `json:"note,omitempty" yaml:"note,omitempty"`   // what an open job waits for
	Error     string     `json:"error,omitempty" yaml:"error,omitempty"` // why it failed
	Created   time.Time  `json:"created" yaml:"created"`
	Completed *time.Time `json:"completed,omitempty" yaml:"completed,omitempty"`
}

// User is a user of the companion API.
type User struct {
	Name    string    `json:"name" yaml:"name"`
	Role    string    `json:"role" yaml:"role"`
	State   string    `json:"state" yaml:"state"`   // enabled, disabled, locked
	Source  string    `json:"source" yaml:"source"` // native, ldap
	Keys    bool      `json:"keys" yaml:"keys"`     // it has API keys
	Created time.Time `json:"created" yaml:"created"`
}

// Keys are the API keys of a user; they are shown when they are made.
type Keys struct {
	APIKey    string `json:"apikey" yaml:"apikey"`
	SecretKey string `json:"secretkey" yaml:"secretkey"`
}
