package account

import "fmt"

// Role is what a user may do. There is one account for each, and its name is the role's.
type Role string

const (
	// Viewer lists.
	Viewer Role = "viewer"
	// Operator lists and pushes.
	Operator Role = "operator"
	// Admin does everything, users and authenticators too.
	Admin Role = "admin"
)

// Roles are all roles, the mightiest first.
func Roles() []Role { return []Role{Admin, Operator, Viewer} }

// ParseRole returns the role of that name.
func ParseRole(name string) (Role, error) {
	for _, r := range Roles() {
		if string(r) == name {
			return r, nil
		}
	}
	return "", fmt.Errorf("role %q: want admin, operator or viewer", name)
}

// Covers tells whether r may do all that other may.
func (r Role) Covers(other Role) bool { return r.rank() >= other.rank() && r.rank() > 0 }

func (r Role) rank() int {
	switch r {
	case Admin:
		return 3
	case Operator:
		return 2
	case Viewer:
		return 1
	}
	return 0
}

// ID returns the id of the role's account: the same on every router, so that a management plane
// may keep it.
func (r Role) ID() string {
	switch r {
	case Admin:
		return "5d1f0c8a-6d0e-4f0e-9b1b-0a6c1f3d0001"
	case Operator:
		return "5d1f0c8a-6d0e-4f0e-9b1b-0a6c1f3d0002"
	}
	return "5d1f0c8a-6d0e-4f0e-9b1b-0a6c1f3d0003"
}

// Domain is the one domain that all accounts are in, with its id.
const (
	Domain   = "ROOT"
	DomainID = "5d1f0c8a-6d0e-4f0e-9b1b-0a6c1f3d0000"
)
