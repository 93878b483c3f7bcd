package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"vragent/agent/internal/account"
	"vragent/agent/internal/job"
)

// newUser is the body of POST /v1/users.
type newUser struct {
	Name string `json:"name"`
	Role string `json:"role"`
}

// local adds to mux what the command line needs beside the wire format: users that have no
// password, and jobs as reports.
func (c *Companion) local(mux *http.ServeMux) {
	mux.Handle(Path, c)
	mux.HandleFunc("GET /v1/jobs", c.localJobs)
	mux.HandleFunc("GET /v1/jobs/{id}", func(w http.ResponseWriter, r *http.Request) {
		j, err := c.opts.Jobs.Get(r.PathValue("id"))
		if err != nil {
			writeProblem(w, err)
			return
		}
		writeJSON(w, http.StatusOK, jobReport(j))
	})
	mux.HandleFunc("GET /v1/users", func(w http.ResponseWriter, _ *http.Request) {
		users := []User{}
		for _, u := range c.opts.Users.All() {
			users = append(users, User{Name: u.Name, Role: string(u.Role), State: string(u.State), Source: u.Source, Keys: u.APIKey != "", Created: u.Created})
		}
		writeJSON(w, http.StatusOK, users)
	})
	mux.HandleFunc("POST /v1/users", c.localAddUser)
	mux.HandleFunc("POST /v1/users/{name}/keys", func(w http.ResponseWriter, r *http.Request) {
		c.localUser(w, r, "registerUserKeys", func(u account.User) (any, error) {
			u, err := c.opts.Users.NewKeys(u.ID)
			return Keys{u.APIKey, u.SecretKey}, err
		})
	})
	mux.HandleFunc("DELETE /v1/users/{name}", func(w http.ResponseWriter, r *http.Request) {
		c.localUser(w, r, "deleteUser", func(u account.User) (any, error) {
			return struct{}{}, c.opts.Users.Remove(u.ID)
		})
	})
}

// localUser does something with the user that the path names.
func (c *Companion) localUser(w http.ResponseWriter, r *http.Request, command string, do func(account.User) (any, error)) {
	u, err := c.opts.Users.Named(r.PathValue("name"))
	var answer any
	if err == nil {
		answer, err = do(u)
	}
	c.localAudit(r, command, r.PathValue("name"), err)
	if err != nil {
		writeProblem(w, err)
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

func (c *Companion) localAddUser(w http.ResponseWriter, r *http.Request) {
	var req newUser
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		writeJSON(w, http.StatusBadRequest, problem{fmt.Sprintf("body: want an object with name and role: %v", err)})
		return
	}
	keys, err := c.addKeyUser(r, req)
	c.localAudit(r, "createUser", req.Name, err)
	if err != nil {
		writeProblem(w, err)
		return
	}
	writeJSON(w, http.StatusOK, keys)
}

// addKeyUser makes a user and its keys.
func (c *Companion) addKeyUser(r *http.Request, req newUser) (Keys, error) {
	role, err := account.ParseRole(req.Role)
	if err != nil {
		return Keys{}, err
	}
	u, err := c.opts.Users.Add(r.Context(), account.User{Name: req.Name, Role: role}, "")
	if err != nil {
		return Keys{}, err
	}
	u, err = c.opts.Users.NewKeys(u.ID)
	return Keys{u.APIKey, u.SecretKey}, err
}

func (c *Companion) localAudit(r *http.Request, command, name string, err error) {
	peer, _ := PeerFrom(r.Context())
	args := []any{"user", peer.String(), "account", string(account.Admin), "from", peer.Socket, "command", command, "resource", name}
	if err != nil {
		c.log.Warn("audit", append(args, "outcome", "refused", "reason", err)...)
		return
	}
	c.log.Info("audit", append(args, "outcome", "done")...)
}

func (c *Companion) localJobs(w http.ResponseWriter, r *http.Request) {
	limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil && r.URL.Query().Has("limit") || limit < 0 {
		writeJSON(w, http.StatusBadRequest, problem{fmt.Sprintf("limit %q: want a number", r.URL.Query().Get("limit"))})
		return
	}
	n := 0
	jobs, err := c.opts.Jobs.List(func(job.Job) (ok, more bool) {
		n++
		return true, limit == 0 || n < limit
	})
	if err != nil {
		writeProblem(w, err)
		return
	}
	reports := []Job{}
	for _, j := range jobs {
		reports = append(reports, jobReport(j))
	}
	writeJSON(w, http.StatusOK, reports)
}

func jobReport(j job.Job) Job {
	report := Job{ID: j.ID, Command: j.Command, Unit: j.Unit, User: j.User, State: j.State.String(), Percent: j.Percent, Note: j.Note, Error: j.Text, Created: j.Created}
	if j.State != job.Open {
		report.Completed = &j.Completed
	}
	return report
}

// writeProblem answers with what an error of users or jobs is over HTTP.
func writeProblem(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, job.ErrNotFound), errors.Is(err, account.ErrNotFound), errors.Is(err, ErrUnknown):
		status = http.StatusNotFound
	case errors.Is(err, account.ErrExists), errors.Is(err, account.ErrLastAdmin):
		status = http.StatusConflict
	}
	writeJSON(w, status, problem{err.Error()})
}
