package cloudstack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"
)

// ApplyPath is where a Handler answers.
const ApplyPath = "/v1/cloudstack/apply"

const (
	leavePath          = "/v1/cloudstack/leave"
	leaveExtensionPath = "/v1/cloudstack/leave-extension"
)

// callPath is where calls of an extension go.
const callPath = "/v1/cloudstack/extension"

// maxBody bounds one request; Client sends larger numbers of files in several.
const maxBody = 64 << 20

// maxBatch is how many bytes of files Client sends in one request, as long as they are more than one.
// Larger ones need fewer syncs and more memory, of which the agent does not get rid again so well.
const maxBatch = 1 << 20

// maxFile bounds one file, and the document of a call. In base64 it fits into a body.
const maxFile = 40 << 20

// tooLarge is the result for a file that no request can hold.
func tooLarge(name string, size int) Result {
	return Result{Name: filepath.Base(name), State: Rejected, Reason: fmt.Sprintf("is of %d bytes; at most %d are taken in", size, maxFile)}
}

type applyRequest struct {
	Files []File `json:"files"`
}

type applyAnswer struct {
	Results []Result `json:"results,omitempty"`
	Error   string   `json:"error,omitempty"`
}

type callRequest struct {
	Command  string `json:"command"`
	Document []byte `json:"document"`
}

type callAnswer struct {
	Result Result          `json:"result"`
	Answer json.RawMessage `json:"answer,omitempty"`
}

// Handler answers on the local socket:
//
//	POST /v1/cloudstack/apply      {"files": [{"name": ..., "data": base64}]}: what became of each file;
//	                               503 with the reason where they could not be taken in
//	POST /v1/cloudstack/extension  {"command": ..., "document": base64}: what became of the call of an
//	                               extension, and its answer for the server, if any; 503 likewise
//	GET  /v1/cloudstack/guests     what an original of the router would know of the guests (Guests)
//	POST /v1/cloudstack/leave      all of that is taken back and forgotten (Leave)
//	POST /v1/cloudstack/leave-extension
//	                               the networks of an extension are (LeaveExtension)
//
// The handler trusts its callers, whom the socket has let in.
func (d *Dialect) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+ApplyPath, func(w http.ResponseWriter, r *http.Request) {
		var req applyRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&req); err != nil {
			answer(w, http.StatusBadRequest, applyAnswer{Error: fmt.Sprintf("body: %v", err)})
			return
		}
		results, err := d.Apply(r.Context(), req.Files)
		if err != nil {
			answer(w, http.StatusServiceUnavailable, applyAnswer{Error: err.Error()})
			return
		}
		answer(w, http.StatusOK, applyAnswer{Results: results})
		tidy(w, len(req.Files))
	})
	mux.HandleFunc("POST "+callPath, func(w http.ResponseWriter, r *http.Request) {
		var req callRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&req); err != nil {
			answer(w, http.StatusBadRequest, applyAnswer{Error: fmt.Sprintf("body: %v", err)})
			return
		}
		result, reply, err := d.Call(r.Context(), req.Command, req.Document)
		if err != nil {
			answer(w, http.StatusServiceUnavailable, applyAnswer{Error: err.Error()})
			return
		}
		answer(w, http.StatusOK, callAnswer{result, reply})
		tidy(w, len(req.Document)/1024)
	})
	mux.HandleFunc("GET "+guestsPath, d.serveGuests)
	for path, leave := range map[string]func(context.Context) error{leavePath: d.Leave, leaveExtensionPath: d.LeaveExtension} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			if err := leave(r.Context()); err != nil {
				answer(w, http.StatusServiceUnavailable, applyAnswer{Error: err.Error()})
				return
			}
			answer(w, http.StatusOK, applyAnswer{})
		})
	}
	return mux
}

// tidy sends the answer off and gives the memory back that a large request has needed, as a router
// has little and the next one may be months away.
func tidy(w http.ResponseWriter, files int) {
	if files < 250 {
		return
	}
	_ = http.NewResponseController(w).Flush() // whoever asked has gone
	debug.FreeOSMemory()
}

func answer(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":"internal"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

// ErrNoDaemon is returned where nobody listens on the socket.
var ErrNoDaemon = errors.New("no daemon is listening")

// Client hands files to the daemon over its unix socket.
type Client struct {
	path string
	http *http.Client
	// Patience is how long to wait for a daemon that is not there, which may be about to start.
	Patience time.Duration
}

// Dial returns a client for the socket at path; it connects with the first call.
func Dial(path string) *Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		},
	}}}
}

// Close ends the connections that are kept for further calls.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Apply has files taken in, in order, and returns what became of each, as Dialect.Apply does.
func (c *Client) Apply(ctx context.Context, files []File) ([]Result, error) {
	var all []Result
	for len(files) > 0 {
		if f := files[0]; len(f.Data) > maxFile {
			all, files = append(all, tooLarge(f.Name, len(f.Data))), files[1:]
			continue
		}
		n, size := 0, 0
		for n < len(files) && (n == 0 || size+len(files[n].Data) <= maxBatch) {
			size += len(files[n].Data)
			n++
		}
		body, err := json.Marshal(applyRequest{files[:n]})
		if err != nil {
			return all, err
		}
		data, err := c.do(ctx, http.MethodPost, ApplyPath, body)
		if err != nil {
			return all, err
		}
		var a applyAnswer
		if err := json.Unmarshal(data, &a); err != nil || len(a.Results) != n {
			return all, fmt.Errorf("%s: answer cannot be read: %w", c.path, err)
		}
		all = append(all, a.Results...)
		files = files[n:]
	}
	return all, nil
}

// Guests returns what is known of the guests as soon as that is something else than it was at
// generation after; 0 is no generation.
func (c *Client) Guests(ctx context.Context, after uint64) (Guests, error) {
	var g Guests
	path := guestsPath
	if after != 0 {
		path += "?after=" + strconv.FormatUint(after, 10)
	}
	data, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal(data, &g); err != nil {
		return g, fmt.Errorf("%s: answer cannot be read: %w", c.path, err)
	}
	return g, nil
}

// Leave has the dialect take everything back, as Dialect.Leave does.
func (c *Client) Leave(ctx context.Context) error {
	_, err := c.do(ctx, http.MethodPost, leavePath, nil)
	return err
}

// LeaveExtension has the networks of an extension taken back, as Dialect.LeaveExtension does.
func (c *Client) LeaveExtension(ctx context.Context) error {
	_, err := c.do(ctx, http.MethodPost, leaveExtensionPath, nil)
	return err
}

// Call has one call of an extension taken in, as Dialect.Call does.
func (c *Client) Call(ctx context.Context, command string, document []byte) (Result, json.RawMessage, error) {
	if len(document) > maxFile {
		return tooLarge(command, len(document)), nil, nil
	}
	body, err := json.Marshal(callRequest{command, document})
	if err != nil {
		return Result{}, nil, err
	}
	data, err := c.do(ctx, http.MethodPost, callPath, body)
	if err != nil {
		return Result{}, nil, err
	}
	var a callAnswer
	if err := json.Unmarshal(data, &a); err != nil {
		return Result{}, nil, fmt.Errorf("%s: answer cannot be read: %w", c.path, err)
	}
	return a.Result, a.Answer, nil
}

// do sends one request and returns the body of a good answer.
func (c *Client) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	const poll = 50 * time.Millisecond
	deadline := time.Now().Add(c.Patience)
	for {
		req, err := http.NewRequestWithContext(ctx, method, "http://vragent"+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		res, err := c.http.Do(req)
		if err == nil {
			return c.read(res, path)
		}
		switch {
		case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
			return nil, fmt.Errorf("%s: permission denied: be root or a member of group vragent", c.path)
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
			return nil, c.wentAway(err)
		case !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("%s: %w", c.path, errors.Join(errors.Unwrap(err)))
		case time.Now().After(deadline):
			return nil, fmt.Errorf("%w on %s: start it with systemctl start vragent", ErrNoDaemon, c.path)
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// wentAway is the error of a request that may have been carried out or not.
func (c *Client) wentAway(err error) error {
	return fmt.Errorf("%s: the daemon went away before it had answered: %w", c.path, err)
}

func (c *Client) read(res *http.Response, path string) ([]byte, error) {
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, c.wentAway(err)
	}
	if res.StatusCode == http.StatusOK {
		return data, nil
	}
	var a applyAnswer
	if err := json.Unmarshal(data, &a); err == nil && a.Error != "" {
		return nil, errors.New(a.Error)
	}
	if res.StatusCode == http.StatusNotFound {
		return nil, errors.New("the daemon does not speak CloudStack: set cloudstack.enabled in its configuration")
	}
	return nil, fmt.Errorf("%s: %s answers %s", c.path, path, res.Status)
}
