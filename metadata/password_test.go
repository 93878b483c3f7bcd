package metadata_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"vragent/metadata"
	"vragent/netcfg/nstest"
)

// passwords is a record in memory.
type passwords struct {
	mu    sync.Mutex
	wait  map[string]string
	fault error // of Taken
	doubt error // of Password
}

func (p *passwords) Password(ctx context.Context, vm string) (string, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, bounded := ctx.Deadline(); !bounded {
		return "", false, errors.New("the guest would wait for ever")
	}
	password, ok := p.wait[vm]
	return password, ok && p.doubt == nil, p.doubt
}

func (p *passwords) Taken(_ context.Context, vm, password string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault != nil {
		return p.fault
	}
	if p.wait[vm] == password {
		delete(p.wait, vm)
	}
	return nil
}

func (p *passwords) set(vm, password string, fault error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wait[vm], p.fault = password, fault
}

func TestPasswordIsGivenUntilTaken(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	record := &passwords{wait: make(map[string]string)}
	s, host := small(t, metadata.Options{Passwords: record})
	other := guest("guest-1", "VM-2", "10.1.1.35")
	s.table.SetGuest(other)
	one, two, stranger := client(t, host, "10.1.1.34"), client(t, host, "10.1.1.35"), client(t, host, "10.1.1.99")
	const url = "http://10.1.1.1:8080/"
	step := func(name, want string, got answer) {
		t.Helper()
		if got.Body != want || got.Status != 200 || !strings.HasPrefix(got.Header.Get("Content-Type"), "text/plain") {
			t.Errorf("%s: %d %q %v, want 200 %q", name, got.Status, got.Body, got.Header, want)
		}
	}
	const send, saved = "send_my_password", "saved_password"
	step("none waits", "saved_password", ask(t, one, "GET", url, "DomU_Request", send))
	record.set("VM-1", "Secret-1", nil)
	step("the guest asks", "Secret-1", ask(t, one, "GET", url, "DomU_Request", send))
	step("and asks again", "Secret-1", ask(t, one, "GET", url+"any/path?x", "domu_request", send))
	step("another guest asks", "saved_password", ask(t, two, "GET", url, "DomU_Request", send))
	step("another guest says it has it", "saved_password", ask(t, two, "GET", url, "DomU_Request", saved))
	step("a stranger asks", "bad_request", ask(t, stranger, "GET", url, "DomU_Request", send))
	step("no request", "bad_request", ask(t, one, "GET", url))
	step("another request", "bad_request", ask(t, one, "POST", url, "DomU_Request", "save_password"))
	step("a rebound name", "bad_request", ask(t, one, "GET", url, "DomU_Request", send, "Host", "evil.example:8080"))

	record.set("VM-1", "Secret-1", errors.New("disk full"))
	step("it cannot be recorded", "bad_request", ask(t, one, "GET", url, "DomU_Request", saved))
	record.set("VM-1", "Secret-1", nil)
	record.mu.Lock()
	record.doubt = errors.New("nobody knows")
	record.mu.Unlock()
	step("it is not known whether one waits", "bad_request", ask(t, one, "GET", url, "DomU_Request", send))
	step("nor which one was taken", "bad_request", ask(t, one, "GET", url, "DomU_Request", saved))
	record.mu.Lock()
	record.doubt = nil
	record.mu.Unlock()
	step("it is still there", "Secret-1", ask(t, one, "GET", url, "DomU_Request", send))
	record.set("VM-1", "Secret-2", nil)
	step("another was set since", "saved_password", ask(t, one, "GET", url, "DomU_Request", saved))
	step("that one is given", "Secret-2", ask(t, one, "GET", url, "DomU_Request", send))
	step("and taken", "saved_password", ask(t, one, "GET", url, "DomU_Request", saved))
	step("once", "saved_password", ask(t, one, "GET", url, "DomU_Request", send))

	if log := s.log.String(); strings.Contains(log, "Secret") || !strings.Contains(log, "password taken") {
		t.Errorf("the log is\n%s\nwant events without a password", log)
	}
	for _, r := range s.server.Last("guest-1", guest("", "", "10.1.1.34").IP) {
		if strings.Contains(r.Path+r.Why, "Secret") {
			t.Errorf("Last() has a password: %+v", r)
		}
	}
}

func TestPasswordOfOldClients(t *testing.T) {
	if !nstest.Enter(t) {
		return
	}
	record := &passwords{wait: make(map[string]string)}
	_, host := small(t, metadata.Options{Passwords: record})
	for name, client := range map[string][]string{
		"wget":         {"wget", "-q", "-t", "3", "-T", "20", "-O", "-", "--bind-address", "10.1.1.34", "--header"},
		"curl":         {"curl", "-sf", "--interface", "10.1.1.34", "-H"},
		"curl 1.0":     {"curl", "-sf0", "--interface", "10.1.1.34", "-H"},
		"busybox wget": {"busybox", "wget", "-q", "-O", "-", "--header"},
	} {
		if name == "busybox wget" { // it cannot choose its source: the first address is the guest's
			client = append(client[:len(client):len(client)], "DomU_Request: ")
		}
		ask := func(request string) string {
			args := append([]string(nil), client[1:]...)
			if name == "busybox wget" {
				args[len(args)-1] += request
			} else {
				args = append(args, "DomU_Request: "+request)
			}
			return host.Run(t, client[0], append(args, "http://10.1.1.1:8080")...)
		}
		record.set("VM-1", "s3cret \"of\" $"+name, nil)
		if got, want := ask("send_my_password"), "s3cret \"of\" $"+name; got != want {
			t.Errorf("%s: password %q, want %q", name, got, want)
		}
		if got := ask("saved_password"); got != "saved_password" {
			t.Errorf("%s: acknowledged with %q", name, got)
		}
		if got := ask("send_my_password"); got != "saved_password" {
			t.Errorf("%s: after that %q", name, got)
		}
	}
}
