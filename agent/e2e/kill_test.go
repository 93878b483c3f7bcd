package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// killed makes a router with one guest that has all of the addresses, so that a test can ask as
// any of the VMs.
func killed(t *testing.T, addresses ...string) (r *router, clients []*http.Client) {
	t.Helper()
	r = newRouter(t)
	r.configure(t, "metadata: {guest_rate: 0}\n")
	g := r.guest(t, "g", "eth0", macA)
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	for _, a := range addresses {
		g.AddAddr(t, "eth0", a+"/24")
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(a)}}
		clients = append(clients, &http.Client{Timeout: waitTime, Transport: &http.Transport{
			DisableKeepAlives: true, // with connections to keep it may still be dialing when the test ends
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return g.Dial(ctx, dialer, network, addr)
			},
		}})
	}
	return r, clients
}

// ask returns what a guest is answered: an error where there is no answer, and the empty text for 404.
func ask(client *http.Client, path string) (string, error) { return askAt(client, "10.1.1.1", path) }

// askAt is ask at another gateway.
func askAt(client *http.Client, gateway, path string) (string, error) {
	res, err := client.Get("http://" + gateway + "/latest/" + path)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return "", err
	case res.StatusCode == http.StatusNotFound:
		return "", nil
	case res.StatusCode != http.StatusOK:
		return "", fmt.Errorf("%s: %s", path, res.Status)
	}
	return string(body), nil
}

// versioned is user data that tells its version, and whether all of it is there.
func versioned(version string) string { return strings.Repeat(version+"\n", 1000) }

// versionOf returns the version of user data; it is empty where the data is not all there.
func versionOf(data string) string {
	version, _, _ := strings.Cut(data, "\n")
	if data != versioned(version) {
		return ""
	}
	return version
}

// A pushed unit is a VM that one client of the API pushes again and again. Hostname and user data
// of each push tell its number.
type pushed struct {
	name, ip     string
	tried, acked int // the newest push, and the newest that was acknowledged
	jobs         []string
}

func (p *pushed) version(n int) string { return fmt.Sprintf("%s-%d", p.name, n) }

// allowed tells whether a version may be in force: that of the newest acknowledged push, or of one
// after it whose answer was lost.
func (p *pushed) allowed(version string) bool {
	n, err := strconv.Atoi(strings.TrimPrefix(version, p.name+"-"))
	return err == nil && n >= p.acked && n <= p.tried
}

// errNoAnswer is returned where the daemon did not answer, or not to the end.
var errNoAnswer = errors.New("no answer")

// push pushes the next version over the socket.
func (p *pushed) push(client *http.Client) error {
	p.tried++
	version := p.version(p.tried)
	res, err := client.PostForm("http://vragent"+api.Path, url.Values{
		"command": {"pushVirtualMachine"}, "response": {"json"}, "id": {p.name}, "hostname": {version},
		"nics[0].network": {"guest-1"}, "nics[0].ipaddress": {p.ip},
		"userdata": {base64.StdEncoding.EncodeToString([]byte(versioned(version)))},
	})
	if err != nil {
		return errNoAnswer
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return errNoAnswer
	}
	var answer struct {
		Response struct {
			JobID string `json:"jobid"`
		} `json:"pushvirtualmachineresponse"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Response.JobID == "" {
		return fmt.Errorf("push of %s: %s: %s", version, res.Status, body)
	}
	p.acked = p.tried
	p.jobs = append(p.jobs, answer.Response.JobID)
	return nil
}

// overSocket returns an HTTP client for the daemon's socket.
func overSocket(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
}

func TestAcknowledgedPushesOutliveKills(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv")
	const pushers, vmsOfEach = 20, 2
	var units []*pushed
	var addresses []string
	for i := range pushers * vmsOfEach {
		units = append(units, &pushed{name: fmt.Sprintf("vm%d", i), ip: fmt.Sprintf("10.1.1.%d", 10+i)})
		addresses = append(addresses, units[i].ip)
	}
	r, guests := killed(t, addresses...)
	p := r.startAs(t, binary)
	r.put(t, "networks/guest-1.yaml", network+"pin_neighbors: false\n")
	r.applied(t)

	// A guest must never see the host name of one push with the user data of another.
	watch, stopWatch := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	t.Cleanup(func() { stopWatch(); watching.Wait() }) // where the test ends early
	seen := 0
	watching.Go(func() {
		for i := 0; watch.Err() == nil; i = (i + 1) % len(units) {
			before, err1 := ask(guests[i], "local-hostname")
			data, err2 := ask(guests[i], "user-data")
			after, err3 := ask(guests[i], "local-hostname")
			if err1 != nil || err2 != nil || err3 != nil || before == "" || before != after {
				continue // the daemon is down, the VM is not there yet, or it has just changed
			}
			seen++
			if got := versionOf(data); got != before {
				t.Errorf("%s has the host name %s and user data of %q, %d bytes", units[i].name, before, got, len(data))
			}
		}
	})

	check := func() {
		t.Helper()
		// A push that was taken in and whose answer was lost is a job as well.
		nstest.Poll(t, waitTime, "all jobs to end", func() bool {
			jobs, err := r.client.Jobs(t.Context(), 10*len(units))
			if err != nil {
				t.Fatal(err)
			}
			return !slices.ContainsFunc(jobs, func(j api.Job) bool { return j.State == "open" })
		})
		for i, u := range units {
			for _, id := range u.jobs {
				var j api.Job
				nstest.Poll(t, waitTime, "job "+id+" to end", func() bool {
					var err error
					if j, err = r.client.Job(t.Context(), id); err != nil {
						t.Fatalf("an acknowledged job of %s is lost: %v", u.name, err)
					}
					return j.State != "open"
				})
				if j.State != "done" {
					t.Errorf("job %s of %s is %s: %s", id, u.name, j.State, j.Error)
				}
			}
			if u.tried == 0 {
				continue
			}
			r.applied(t, "vms/"+u.name)
			hostname, err := ask(guests[i], "local-hostname")
			if err != nil || u.acked > 0 && !u.allowed(hostname) {
				t.Errorf("%s has the host name %q (%v), pushes %d to %d were not lost", u.name, hostname, err, u.acked, u.tried)
			}
			data, err := ask(guests[i], "user-data")
			if err != nil || versionOf(data) != hostname {
				t.Errorf("%s has the host name %q and user data of %q, %v", u.name, hostname, versionOf(data), err)
			}
			if hostname == "" {
				continue // the first push was not acknowledged and is lost
			}
			definition, err := os.ReadFile(r.drop + "/vms/" + u.name + "/vm.yaml")
			if err != nil || !strings.Contains(string(definition), "hostname: "+hostname+"\n") {
				t.Errorf("%s is served as %s; its file is %q, %v", u.name, hostname, definition, err)
			}
			if file, err := os.ReadFile(r.drop + "/vms/" + u.name + "/user-data"); err != nil || string(file) != data {
				t.Errorf("user data of %s in its file is of %q, in force of %q (%v)", u.name, versionOf(string(file)), versionOf(data), err)
			}
		}
	}

	// round lets all push until each has as many answers as it wants, or the daemon is killed, once
	// that many pushes of all were acknowledged.
	round := func(each int, killAfter int64) {
		var acked atomic.Int64
		enough := make(chan struct{})
		var pushing sync.WaitGroup
		for i := range pushers {
			pushing.Go(func() {
				client := overSocket(r.dir + "/api.sock")
				defer client.CloseIdleConnections()
				for n := range each {
					if err := units[i*vmsOfEach+n%vmsOfEach].push(client); err != nil {
						if !errors.Is(err, errNoAnswer) || killAfter == 0 {
							t.Error(err)
						}
						return
					}
					if acked.Add(1) == killAfter {
						close(enough)
					}
				}
			})
		}
		all := make(chan struct{})
		go func() { pushing.Wait(); close(all) }()
		select {
		case <-enough:
		case <-all: // many jobs are still open
		}
		crash(t, p)
		<-all
		p = r.startAs(t, binary)
		check()
	}
	for _, after := range []int64{1, 17, 60, 111, 193} {
		round(1000, after)
	}
	round(6, 0) // now every push has its answer, so that only the last one of each will do
	for _, u := range units {
		if u.acked != u.tried {
			t.Errorf("%s: %d of %d pushes acknowledged", u.name, u.acked, u.tried)
		}
	}
	stopWatch()
	watching.Wait()
	if seen == 0 {
		t.Error("no guest was ever answered")
	}
	end(t, p)
}

func TestDroppedFilesOutliveKills(t *testing.T) {
	t.Parallel()
	binary := buildDaemon(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "setpriv")
	names := []string{"renamed", "written", "held", "broken"}
	r, guests := killed(t, "10.1.1.10", "10.1.1.11", "10.1.1.12", "10.1.1.13")
	renamed, written, held, broken := guests[0], guests[1], guests[2], guests[3]
	p := r.startAs(t, binary)
	r.put(t, "networks/guest-1.yaml", network+"pin_neighbors: false\n")
	definition := func(i int, hostname string) string {
		return fmt.Sprintf("hostname: %s\nnics:\n- {network: guest-1, ipv4: 10.1.1.%d}\n", hostname, 10+i)
	}
	for i, name := range names {
		r.put(t, "vms/"+name+"/user-data", versioned("0"))
		r.put(t, "vms/"+name+"/vm.yaml", definition(i, name))
	}
	r.applied(t)
	file := func(name string) string { return r.drop + "/vms/" + name + "/user-data" }
	// inForce fails the test unless a guest is served this at once.
	inForce := func(guest *http.Client, path, want string) {
		t.Helper()
		got, err := ask(guest, path)
		if path == "user-data" && err == nil {
			got = versionOf(got)
		}
		if err != nil || got != want {
			t.Errorf("%s = %q, %v; want %s", path, got, err, want)
		}
	}

	// What a guest sees is complete, and never older than what it has seen before.
	watch, stopWatch := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	t.Cleanup(func() { stopWatch(); watching.Wait() }) // where the test ends early
	for i, guest := range []*http.Client{renamed, written} {
		watching.Go(func() {
			for last := 0; watch.Err() == nil; {
				data, err := ask(guest, "user-data")
				if err != nil {
					continue // the daemon is down
				}
				n, err := strconv.Atoi(versionOf(data))
				if err != nil || n < last {
					t.Errorf("%s: user data of %d bytes and version %d after version %d", names[i], len(data), n, last)
					return
				}
				last = n
			}
		})
	}

	version := 0
	for i := 1; i <= 20; i++ {
		// A good definition comes into force, and a bad one takes its place.
		r.put(t, "vms/broken/vm.yaml", definition(3, fmt.Sprint("good-", i)))
		r.applied(t, "vms/broken")
		r.put(t, "vms/broken/vm.yaml", "nics: none\n")
		// A slow writer has half of its file written.
		slow, err := os.OpenFile(file("held"), os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		next := versioned(fmt.Sprint(i))
		if _, err := io.WriteString(slow, next[:len(next)/2]); err != nil {
			t.Fatal(err)
		}
		// Two writers are at it when the daemon is killed, and for one file more each.
		enough, dead, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for n := 1; ; n++ {
				version++
				content := []byte(versioned(fmt.Sprint(version)))
				err := os.WriteFile(file("renamed")+".tmp", content, 0o660)
				if err == nil {
					err = os.Rename(file("renamed")+".tmp", file("renamed"))
				}
				if err := errors.Join(err, os.WriteFile(file("written"), content, 0o660)); err != nil {
					t.Error(err)
				}
				if n == i {
					close(enough)
				}
				select {
				case <-dead:
					return
				default:
				}
			}
		}()
		<-enough
		crash(t, p)
		close(dead)
		<-ended

		p = r.startAs(t, binary)
		inForce(renamed, "user-data", fmt.Sprint(version))
		inForce(written, "user-data", fmt.Sprint(version))
		inForce(held, "user-data", fmt.Sprint(i-1))
		inForce(broken, "local-hostname", fmt.Sprint("good-", i))
		if why := r.rejected(t, "vms/broken"); !strings.HasPrefix(why, "vms/broken/vm.yaml:1:7: ") {
			t.Errorf("reason = %q", why)
		}
		if _, err := io.WriteString(slow, next[len(next)/2:]); err != nil {
			t.Fatal(err)
		}
		if err := slow.Close(); err != nil {
			t.Fatal(err)
		}
		r.applied(t, "vms/held")
		inForce(held, "user-data", fmt.Sprint(i))
	}
	stopWatch()
	watching.Wait()
	end(t, p)
}
