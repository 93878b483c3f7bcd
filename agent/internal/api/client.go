package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

var (
	// ErrNoDaemon is returned where nobody listens on the socket.
	ErrNoDaemon = errors.New("no daemon is listening")
	// ErrDenied is returned where the caller may not use the socket.
	ErrDenied = errors.New("permission denied")

	// errStopping and errWentAway are those of a daemon that ends, after which there may be another.
	errStopping = errors.New("the daemon is stopping")
	errWentAway = fmt.Errorf("it went away: %w", ErrNoDaemon)
)

// Client talks to the daemon over its unix socket. It is safe for concurrent use.
type Client struct {
	path string
	http *http.Client
}

// Dial returns a client for the socket at path. It connects with the first call, and again when
// the daemon was restarted since; calls return ErrNoDaemon while there is none.
func Dial(path string) *Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		},
		IdleConnTimeout: time.Minute,
	}}}
}

// Close ends the connections that are kept for further calls.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns the daemon's report about itself.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/v1/status")
}

// Networks returns all networks, in force or not.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	return get[[]Network](ctx, c, "/v1/networks")
}

// VMs returns all VMs, in force or not.
func (c *Client) VMs(ctx context.Context) ([]VM, error) { return get[[]VM](ctx, c, "/v1/vms") }

// Explain tells about one guest by VM name, MAC or address; ErrUnknown where nothing is known of it.
func (c *Client) Explain(ctx context.Context, subject string) (Explanation, error) {
	return get[Explanation](ctx, c, "/v1/explain?subject="+url.QueryEscape(subject))
}

// Wait returns what became of all that is in the drop directory now, or of paths, once it is
// judged. After timeout (0: never) the result lists what is still open and the error is
// context.DeadlineExceeded. A path that nothing is known of is ErrUnknown. Where the daemon is restarted
// meanwhile, the next one is asked.
func (c *Client) Wait(ctx context.Context, paths []string, timeout time.Duration) (WaitResult, error) {
	end := time.Now().Add(timeout)
	var gone error
	for {
		res, err := c.wait(ctx, paths, timeout)
		switch {
		case errors.Is(err, errStopping), errors.Is(err, errWentAway):
			if gone == nil {
				gone = err
			}
		case errors.Is(err, ErrNoDaemon) && gone != nil: // there is no next one
			return res, gone
		default:
			return res, err
		}
		select {
		case <-ctx.Done():
			return res, ctx.Err()
		case <-time.After(askAgain):
		}
		if timeout > 0 {
			if timeout = time.Until(end); timeout <= 0 {
				return res, context.DeadlineExceeded
			}
		}
	}
}

// askAgain is how long to wait before the next daemon is asked.
const askAgain = 50 * time.Millisecond

func (c *Client) wait(ctx context.Context, paths []string, timeout time.Duration) (WaitResult, error) {
	body, err := json.Marshal(waitRequest{Paths: paths, TimeoutSeconds: timeout.Seconds()})
	if err != nil {
		return WaitResult{}, err
	}
	var res WaitResult
	err = c.do(ctx, http.MethodPost, "/v1/wait", bytes.NewReader(body), &res)
	return res, err
}

// Jobs returns up to limit jobs (0: all), the newest first.
func (c *Client) Jobs(ctx context.Context, limit int) ([]Job, error) {
	return get[[]Job](ctx, c, "/v1/jobs?limit="+strconv.Itoa(limit))
}

// Job returns one job; ErrUnknown where it does not exist, or no longer.
func (c *Client) Job(ctx context.Context, id string) (Job, error) {
	return get[Job](ctx, c, "/v1/jobs/"+url.PathEscape(id))
}

// Users returns the users of the companion API by name.
func (c *Client) Users(ctx context.Context) ([]User, error) { return get[[]User](ctx, c, "/v1/users") }

// AddUser makes a user who has keys and no password.
func (c *Client) AddUser(ctx context.Context, name, role string) (Keys, error) {
	body, err := json.Marshal(newUser{name, role})
	if err != nil {
		return Keys{}, err
	}
	var keys Keys
	return keys, c.do(ctx, http.MethodPost, "/v1/users", bytes.NewReader(body), &keys)
}

// NewKeys gives a user new keys; the old ones work no longer.
func (c *Client) NewKeys(ctx context.Context, name string) (Keys, error) {
	var keys Keys
	return keys, c.do(ctx, http.MethodPost, "/v1/users/"+url.PathEscape(name)+"/keys", http.NoBody, &keys)
}

// RemoveUser deletes a user; ErrUnknown where there is none.
func (c *Client) RemoveUser(ctx context.Context, name string) error {
	var none struct{}
	return c.do(ctx, http.MethodDelete, "/v1/users/"+url.PathEscape(name), nil, &none)
}

// PushBundle sends an archive of a drop directory, whose SHA-256 in hexadecimal is sum, and
// returns the id of the job that puts it in force. With replace, what the archive lacks is
// removed.
func (c *Client) PushBundle(ctx context.Context, archive io.Reader, sum string, replace bool) (string, error) {
	mode := "merge"
	if replace {
		mode = "replace"
	}
	query := url.Values{"command": {"pushBundle"}, "response": {"json"}, "sha256": {sum}, "mode": {mode}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://vragent"+Path+"?"+query.Encode(), archive)
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-tar")
	res, err := c.http.Do(req)
	if err != nil {
		return "", c.dialError(err)
	}
	defer res.Body.Close()
	var answer map[string]struct {
		JobID string `json:"jobid"`
		Text  string `json:"errortext"`
	}
	if err := c.decode(res, &answer); err != nil {
		return "", err
	}
	for _, a := range answer {
		if a.Text != "" {
			return "", errors.New(a.Text)
		}
		return a.JobID, nil
	}
	return "", fmt.Errorf("%s: empty answer", c.path)
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	var v T
	err := c.do(ctx, http.MethodGet, path, nil, &v)
	return v, err
}

// do sends one request and decodes the answer into v, also that of a wait that timed out.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader, v any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://vragent"+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.dialError(err)
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
		return c.decode(res, v)
	case http.StatusGatewayTimeout:
		return errors.Join(c.decode(res, v), context.DeadlineExceeded)
	}
	return c.refusal(res)
}

// refusal is the error that an answer other than 200 tells of.
func (c *Client) refusal(res *http.Response) error {
	var p problem
	if err := c.decode(res, &p); err != nil {
		return err
	}
	switch res.StatusCode {
	case http.StatusNotFound:
		return remote{p.Error, ErrUnknown}
	case http.StatusForbidden:
		return remote{p.Error, ErrDenied}
	case http.StatusServiceUnavailable:
		return remote{p.Error, errStopping}
	}
	return errors.New(p.Error)
}

func (c *Client) decode(res *http.Response, v any) error {
	if err := json.NewDecoder(res.Body).Decode(v); err != nil {
		return fmt.Errorf("%s: answer %s: %w", c.path, res.Status, err)
	}
	return nil
}

// dialError says what to do about a socket that cannot be used.
func (c *Client) dialError(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return remote{fmt.Sprintf("no daemon is listening on %s: start it with systemctl start vragent", c.path), ErrNoDaemon}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return remote{fmt.Sprintf("%s: permission denied: be root or a member of group vragent", c.path), ErrDenied}
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return remote{fmt.Sprintf("the daemon on %s went away before it answered", c.path), errWentAway}
	}
	var sent *url.Error // names a URL that means nothing to a caller
	if errors.As(err, &sent) {
		err = sent.Err
	}
	return fmt.Errorf("%s: %w", c.path, err)
}

// remote is an error whose text the daemon wrote and that callers tell by its kind.
type remote struct {
	text string
	kind error
}

func (e remote) Error() string { return e.text }
func (e remote) Unwrap() error { return e.kind }
