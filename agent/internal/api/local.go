package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"time"
)

// maxWaitBody bounds the body of a wait: the paths of some ten thousand units.
const maxWaitBody = 4 << 20

// LocalOptions are the parts of the local API that not every agent has.
type LocalOptions struct {
	// Ready tells whether the agent serves guests, with the reason where it does not. Nil: always.
	Ready func() error
	// Healthy tells whether the agent works, with the reason where it does not. Nil: always.
	Healthy func() error
	// Companion answers at Path, where local callers are administrators, and below /v1/users and
	// /v1/jobs. Nil: there is none.
	Companion *Companion
	// Leases answers at /v1/leases. Nil: there are none.
	Leases Leases
	// Backup writes a backup of what no drop directory holds, at /v1/backup. Nil: there is none.
	Backup func(ctx context.Context, out io.Writer) error
	// More are handlers of other parts by the pattern that they answer at. Callers are looked at
	// first, as for everything else here.
	More map[string]http.Handler
	// Log hears of refused callers. Nil discards.
	Log *slog.Logger
}

// waitRequest is the body of POST /v1/wait.
type waitRequest struct {
	// Paths are absolute or relative to the drop directory; none means all that is there.
	Paths []string `json:"paths"`
	// TimeoutSeconds ends the wait; 0 waits for as long as the client stays.
	TimeoutSeconds float64 `json:"timeout_seconds"`
}

// problem is the body of every answer of the local API that is an error.
type problem struct {
	Error string `json:"error"`
}

// Local is the API of the unix socket: reports as JSON for the command line and local tools,
// without a login. Callers that ListenUnix does not trust get 403.
//
//	GET  /v1/status, /v1/networks, /v1/vms    the reports
//	GET  /v1/explain?subject=VM|MAC|IP        404 for a subject that nothing is known of
//	POST /v1/wait                             {"paths": [...], "timeout_seconds": 30}; 504 with what is still open
//	GET  /healthz, /readyz                    200 "ok", 503 with the reason
//	GET  /v1/jobs?limit=N, /v1/jobs/{id}      jobs, the newest first
//	GET  /v1/leases                           known NICs and pool addresses
//	DELETE /v1/leases/{ip}?network=           ends a pool lease; 404 where there is none
//	GET  /v1/users                            users
//	POST /v1/users                            {"name": ..., "role": ...}: a user with new keys
//	POST /v1/users/{name}/keys                new keys
//	DELETE /v1/users/{name}                   404 for a user that does not exist
//	GET  /v1/backup                           users, pool leases and taken passwords; broken off where that fails
func Local(b Backend, opts LocalOptions) http.Handler {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, b.Status(r.Context()))
	})
	mux.HandleFunc("GET /v1/networks", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, notNil(b.Networks(r.Context())))
	})
	mux.HandleFunc("GET /v1/vms", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, notNil(b.VMs(r.Context())))
	})
	mux.HandleFunc("GET /v1/explain", explain(b))
	mux.HandleFunc("POST /v1/wait", wait(b))
	Health(mux, opts.Healthy, opts.Ready)
	if opts.Companion != nil {
		opts.Companion.local(mux)
	}
	if opts.Leases != nil {
		leases(mux, opts.Leases)
	}
	if opts.Backup != nil {
		mux.HandleFunc("GET /v1/backup", backup(opts.Backup, opts.Log))
	}
	for pattern, h := range opts.More {
		mux.Handle(pattern, h)
	}
	return trusted(mux, opts.Log)
}

// Health adds GET /healthz and /readyz to mux. A nil check is one that always passes.
func Health(mux *http.ServeMux, healthy, ready func() error) {
	probe := func(check func() error) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("Cache-Control", "no-store")
			if check != nil {
				if err := check(); err != nil {
					w.WriteHeader(http.StatusServiceUnavailable)
					fmt.Fprintln(w, err)
					return
				}
			}
			fmt.Fprintln(w, "ok")
		}
	}
	mux.Handle("GET /healthz", probe(healthy))
	mux.Handle("GET /readyz", probe(ready))
}

// trusted lets only requests through whose peer may use the socket.
func trusted(next http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, ok := PeerFrom(r.Context()); !ok || !peer.Trust {
			log.Warn("local caller refused", "peer", peer.String(), "path", r.URL.Path)
			writeJSON(w, http.StatusForbidden, problem{"only root and members of the socket's group may use this socket"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func explain(b Backend) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		subject := r.URL.Query().Get("subject")
		if subject == "" {
			writeJSON(w, http.StatusBadRequest, problem{"subject is missing: a VM's name, a MAC or an address"})
			return
		}
		e, err := b.Explain(r.Context(), subject)
		switch {
		case errors.Is(err, ErrUnknown):
			writeJSON(w, http.StatusNotFound, problem{err.Error()})
		case err != nil:
			writeJSON(w, http.StatusInternalServerError, problem{err.Error()})
		default:
			writeJSON(w, http.StatusOK, e)
		}
	}
}

func wait(b Backend) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		// The body is read whole: only then does net/http notice that the client is gone.
		var req waitRequest
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxWaitBody))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&req); err != nil || dec.More() {
			writeJSON(w, http.StatusBadRequest, problem{fmt.Sprintf("body: want one object with paths and timeout_seconds: %v", err)})
			return
		}
		ctx, cancel := waiting(r)
		defer cancel()
		switch s := req.TimeoutSeconds; {
		case s < 0 || math.IsNaN(s):
			writeJSON(w, http.StatusBadRequest, problem{fmt.Sprintf("timeout_seconds %v: want 0 or more", s)})
			return
		case s > 0 && s < float64(math.MaxInt64/time.Second):
			limited, cancel := context.WithTimeout(ctx, time.Duration(s*float64(time.Second)))
			defer cancel()
			ctx = limited
		}
		var res WaitResult
		err := ctx.Err()
		if err == nil {
			res, err = b.Wait(ctx, req.Paths)
		}
		switch {
		case err == nil:
			writeJSON(w, http.StatusOK, res)
		case errors.Is(err, ErrUnknown):
			writeJSON(w, http.StatusNotFound, problem{err.Error()})
		case errors.Is(err, context.DeadlineExceeded):
			writeJSON(w, http.StatusGatewayTimeout, res)
		case errors.Is(err, context.Canceled):
			// The client is gone, or else the daemon is about to be. The client asks the next one.
			writeJSON(w, http.StatusServiceUnavailable, problem{"the daemon is stopping"})
		default:
			writeJSON(w, http.StatusInternalServerError, problem{err.Error()})
		}
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // a report that cannot be written as JSON
		status, body = http.StatusInternalServerError, []byte(`{"error":"internal"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

// notNil makes an empty list of a missing one: programs get [], never null.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
