package api

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// Lease is an address and who has it: a known NIC, or a client of a pool.
type Lease struct {
	Network  string `json:"network" yaml:"network"`
	IPv4     string `json:"ipv4" yaml:"ipv4"`
	MAC      string `json:"mac,omitempty" yaml:"mac,omitempty"`
	VM       string `json:"vm,omitempty" yaml:"vm,omitempty"`
	Hostname string `json:"hostname,omitempty" yaml:"hostname,omitempty"`
	Pool     bool   `json:"pool" yaml:"pool"`
	// State of a known NIC: reserved (no lease yet), bound, expired, declined. Of a pool address:
	// offered, bound, expired, released, declined.
	State    string     `json:"state" yaml:"state"`
	Expires  *time.Time `json:"expires,omitempty" yaml:"expires,omitempty"` // absent where the state has no end
	LastSeen *time.Time `json:"last_seen,omitempty" yaml:"last_seen,omitempty"`
}

// Leases are what the local API needs of the DHCP server.
type Leases interface {
	// Leases lists known NICs and pool addresses, by network and address.
	Leases(ctx context.Context) []Lease
	// ReleaseLease ends the pool lease of an address in a network, or in the only one that has it for "";
	// several are an error. It returns when that is stored. The error wraps ErrUnknown where there is no
	// such lease.
	ReleaseLease(ctx context.Context, network string, address netip.Addr) error
}

// leases adds to mux what the command line needs of leases.
func leases(mux *http.ServeMux, l Leases) {
	mux.HandleFunc("GET /v1/leases", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, notNil(l.Leases(r.Context())))
	})
	mux.HandleFunc("DELETE /v1/leases/{ip}", func(w http.ResponseWriter, r *http.Request) {
		address, err := netip.ParseAddr(r.PathValue("ip"))
		if err != nil {
			writeJSON(w, http.StatusBadRequest, problem{fmt.Sprintf("%q is no address", r.PathValue("ip"))})
			return
		}
		if err := l.ReleaseLease(r.Context(), r.URL.Query().Get("network"), address); err != nil {
			writeProblem(w, err)
			return
		}
		writeJSON(w, http.StatusOK, struct{}{})
	})
}

// Leases lists known NICs and pool addresses.
func (c *Client) Leases(ctx context.Context) ([]Lease, error) {
	return get[[]Lease](ctx, c, "/v1/leases")
}

// ReleaseLease ends the pool lease of an address in a network, or in the only one that has it for "".
// It returns when that is stored; ErrUnknown where there is no such lease.
func (c *Client) ReleaseLease(ctx context.Context, network string, address netip.Addr) error {
	path := "/v1/leases/" + url.PathEscape(address.String())
	if network != "" {
		path += "?network=" + url.QueryEscape(network)
	}
	var none struct{}
	return c.do(ctx, http.MethodDelete, path, nil, &none)
}
