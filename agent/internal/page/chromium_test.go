package page

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vragent/agent/internal/api"
)

var screenshots = flag.String("screenshots", "", "folder to write pictures of the page to")

// tab is a page in a headless Chromium that is spoken to by its DevTools protocol, over pipes.
type tab struct {
	t       *testing.T
	in      *os.File
	session string
	next    int
	answers map[int]chan json.RawMessage
	calls   chan call
	trouble atomic.Pointer[string] // the first line that the console should not have
}

type call struct {
	id     int
	answer chan json.RawMessage
}

type message struct {
	ID     int             `json:"id,omitempty"`
	Method string          `json:"method,omitempty"`
	Params json.RawMessage `json:"params,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
	SessionID string `json:"sessionId,omitempty"`
}

const patience = 30 * time.Second

// open starts a browser with one empty tab. The test is skipped where there is none.
func open(t *testing.T) *tab {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not installed")
	}
	fromUs, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, toUs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	profile, err := os.MkdirTemp("", "page")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--user-data-dir="+profile, "--remote-debugging-pipe",
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
	cmd.ExtraFiles = []*os.File{fromUs, toUs} // descriptors 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fromUs.Close()
	toUs.Close()
	b := &tab{t: t, in: in, answers: map[int]chan json.RawMessage{}, calls: make(chan call)}
	messages, ended := make(chan message), make(chan struct{})
	go func() {
		defer close(messages)
		read := bufio.NewReader(out)
		for {
			data, err := read.ReadBytes(0)
			if err != nil {
				return
			}
			var m message
			if json.Unmarshal(data[:len(data)-1], &m) == nil {
				messages <- m
			}
		}
	}()
	go func() {
		defer close(ended)
		b.dispatch(messages)
	}()
	t.Cleanup(func() {
		b.send("", "Browser.close", nil)
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Logf("chromium: %v", err)
		}
		<-ended
		out.Close()
		if err := os.RemoveAll(profile); err != nil {
			t.Logf("profile: %v", err)
		}
	})
	var target struct{ TargetID string }
	b.do("", "Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.do("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		b.do(b.session, domain+".enable", nil, nil)
	}
	return b
}

// dispatch hands answers to who waits for them, and keeps what the console complains of.
func (b *tab) dispatch(messages <-chan message) {
	for {
		select {
		case c := <-b.calls:
			b.answers[c.id] = c.answer
		case m, ok := <-messages:
			if !ok {
				return
			}
			if m.Method == "Log.entryAdded" || m.Method == "Runtime.exceptionThrown" {
				text := string(m.Params)
				b.trouble.CompareAndSwap(nil, &text)
			}
			if answer := b.answers[m.ID]; answer != nil {
				delete(b.answers, m.ID)
				if m.Error != nil {
					m.Result, _ = json.Marshal(map[string]string{"failed": m.Error.Message})
				}
				answer <- m.Result
			}
		}
	}
}

func (b *tab) send(session, method string, params any) chan json.RawMessage {
	b.t.Helper()
	b.next++
	if params == nil {
		params = struct{}{}
	}
	data, err := json.Marshal(params)
	if err != nil {
		b.t.Fatal(err)
	}
	data, err = json.Marshal(message{ID: b.next, Method: method, Params: data, SessionID: session})
	if err != nil {
		b.t.Fatal(err)
	}
	answer := make(chan json.RawMessage, 1)
	select {
	case b.calls <- call{b.next, answer}:
	case <-time.After(patience):
		b.t.Fatalf("%s: the browser is gone", method)
	}
	if _, err := b.in.Write(append(data, 0)); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	return answer
}

func (b *tab) do(session, method string, params, result any) {
	b.t.Helper()
	select {
	case answer := <-b.send(session, method, params):
		var failed struct{ Failed string }
		if err := json.Unmarshal(answer, &failed); err != nil || failed.Failed != "" {
			b.t.Fatalf("%s: %v %s", method, err, failed.Failed)
		}
		if result != nil {
			if err := json.Unmarshal(answer, result); err != nil {
				b.t.Fatalf("%s: %v", method, err)
			}
		}
	case <-time.After(patience):
		b.t.Fatalf("%s: no answer", method)
	}
}

// eval returns what an expression comes to in the page, as text.
func (b *tab) eval(expression string) string {
	b.t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	b.do(b.session, "Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &r)
	if r.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, r.ExceptionDetails)
	}
	return fmt.Sprint(r.Result.Value)
}

// until waits until an expression is true in the page.
func (b *tab) until(what, expression string) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		var r struct{ Result struct{ Value any } } // an exception is no value: the page is on its way
		b.do(b.session, "Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &r)
		if r.Result.Value == true {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("waited in vain until %s; the page is at %s:\n%s", what, b.eval("location.href"), b.eval("document.body.innerText"))
		}
	}
}

func (b *tab) visit(address string) {
	b.t.Helper()
	b.eval("window.left = true")
	b.do(b.session, "Page.navigate", map[string]any{"url": address}, nil)
	b.until("the page is there", "!window.left && document.readyState === 'complete'")
}

// logIn fills in the form that stands in the page.
func (b *tab) logIn() {
	b.t.Helper()
	b.until("the form is there", "!!document.querySelector('form.login')")
	b.eval(`document.getElementById("name").value = "vera"; document.getElementById("password").value = "` + password + `"; document.querySelector("form.login button").click()`)
	b.until("vera is in", "!!document.querySelector('form.who') && document.readyState === 'complete'")
}

func (b *tab) device(width, height int, phone bool, scheme string) {
	b.t.Helper()
	scale := 1
	if phone {
		scale = 2
	}
	b.do(b.session, "Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone}, nil)
	b.do(b.session, "Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

func (b *tab) picture(name string) {
	b.t.Helper()
	if *screenshots == "" {
		return
	}
	var shot struct{ Data string }
	b.do(b.session, "Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
	data, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*screenshots, name+".png"), data, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// clean fails the test where the browser complained: of a script, of the policy, of a missing file.
func (b *tab) clean() {
	b.t.Helper()
	if text := b.trouble.Load(); text != nil {
		b.t.Errorf("the console says: %s", *text)
	}
}

var views = []struct{ name, path string }{
	{"overview", "/client/"},
	{"vms", "/client/vms"},
	{"networks", "/client/networks"},
	{"jobs", "/client/jobs"},
	{"explain", "/client/explain?subject=i-2-5-VM"},
}

func TestBrowserShowsEveryViewOnEveryScreen(t *testing.T) {
	r := serve(t, manyVMs(10_000), someJobs(120))
	b := open(t)
	for _, screen := range []struct {
		name          string
		width, height int
		phone         bool
		scheme        string
	}{
		{"light", 1280, 900, false, "light"},
		{"dark", 1280, 900, false, "dark"},
		{"phone", 390, 844, true, "light"},
		{"small-phone-dark", 320, 640, true, "dark"},
	} {
		b.device(screen.width, screen.height, screen.phone, screen.scheme)
		b.visit(r.URL + "/client/login")
		b.picture("login-" + screen.name)
		b.logIn()
		backs := map[string]bool{}
		for _, view := range views {
			b.visit(r.URL + view.path)
			b.picture(view.name + "-" + screen.name)
			if got := b.eval("document.documentElement.scrollWidth - innerWidth"); got != "0" && !strings.HasPrefix(got, "-") {
				t.Errorf("%s, %s: %s pixels too wide", view.name, screen.name, got)
			}
			backs[b.eval("getComputedStyle(document.body).backgroundColor")] = true
			if got := b.eval(`[...document.querySelectorAll("main table, main h2")].every(e => e.offsetHeight > 0)`); got != "true" {
				t.Errorf("%s, %s: something has no height", view.name, screen.name)
			}
		}
		if dark := backs["rgb(15, 20, 25)"]; len(backs) != 1 || dark != (screen.scheme == "dark") {
			t.Errorf("%s: backgrounds %v", screen.name, backs)
		}
		b.eval(`document.querySelector("form.who button").click()`)
		b.until("vera is out", "document.body.innerText.includes('You are logged out.')")
	}
	b.clean()
}

func TestBrowserWithoutScriptsCanDoAll(t *testing.T) {
	r := serve(t, manyVMs(10_000), nil)
	b := open(t)
	b.do(b.session, "Emulation.setScriptExecutionDisabled", map[string]any{"value": true}, nil)
	b.visit(r.URL + "/client/vms?q=web")
	b.logIn()
	if got, want := b.eval("location.pathname + location.search"), "/client/vms?q=web"; got != want {
		t.Errorf("login leads to %s, want %s", got, want)
	}
	b.eval(`document.querySelector("a[rel=next]").click()`)
	b.until("the next page is there", "document.body.innerText.includes('51 to 100 of 2,000')")
	b.eval(`document.getElementById("subject").value = "i-2-5-VM"; document.querySelector(".search button").click()`)
	b.until("the guest is explained", "document.body.innerText.includes('its newest content is rejected')")
	if got := b.eval("document.title"); got != "i-2-5-VM · vragent on r-14-VM" {
		t.Errorf("title = %q", got)
	}
	b.clean()
}

func TestBrowserKeepsViewsUpToDate(t *testing.T) {
	r := serve(t, manyVMs(3), nil)
	b := open(t)
	b.visit(r.URL + "/client/")
	b.logIn()
	b.until("the page is live", "document.getElementById('pulse').classList.contains('on')")
	r.world.faults.Store(&[]string{"the disk is full"})
	r.later.Store(int64(snapshotTime))
	b.until("the fault is there by itself", "document.getElementById('live').innerText.includes('the disk is full')")
	b.clean() // what comes next is a refusal, which the console tells of
	vera, err := r.users.Named("vera")
	if err != nil {
		t.Fatal(err)
	}
	r.users.EndSessions(vera.ID)
	b.until("the page asks for a login by itself", "!!document.querySelector('form.login')")
	if next, err := url.Parse(b.eval("location.href")); err != nil || next.Path != "/client/login" {
		t.Errorf("the page is at %v, %v", next, err)
	}
}

func TestBrowserShowsTextOfGuestsAsText(t *testing.T) {
	w := manyVMs(3)
	w.machines[0].Hostname = `<img src=x onerror="document.title='taken'">`
	w.machines[0].State = api.Rejected
	w.machines[0].Reasons = []api.Fault{{What: `</li><script>document.title='taken'</script>`}}
	r := serve(t, w, nil)
	b := open(t)
	b.visit(r.URL + "/client/vms")
	b.logIn()
	if got := b.eval("document.title"); got != "VMs · vragent on r-14-VM" {
		t.Errorf("title = %q", got)
	}
	if got := b.eval("document.querySelectorAll('main img, main script').length"); got != "0" {
		t.Errorf("%s elements of a guest's", got)
	}
	b.clean()
}
