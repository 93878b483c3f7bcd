package page

import (
	"cmp"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api"
	"vragent/agent/internal/job"
)

const (
	perPage       = 50 // rows of a long table
	overviewUnits = 10
	overviewJobs  = 5
	overviewNets  = 10
	similarVMs    = 20
)

// parseViews makes the templates, each with the layout around it.
func parseViews(now func() time.Time, assets map[string]string) map[string]*template.Template {
	layout := template.Must(template.New("").Funcs(template.FuncMap{
		"ago":     func(t time.Time) string { return ago(now().Sub(t)) },
		"until":   func(t time.Time) string { return until(t.Sub(now())) },
		"span":    func(t time.Time) string { return span(now().Sub(t)) },
		"full":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
		"machine": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"past":    func(t time.Time) bool { return !t.After(now()) },
		"count":   count,
		"bytes":   size,
		"unitURL": unitURL,
		"asset":   func(name string) string { return assets[name] },
		"state":   stateOf,
		"percent": func(part, whole int) int { return 100 * part / max(1, whole) },
		"of":      func(counts map[api.State]int, s string) int { return counts[api.State(s)] },
	}).ParseFS(files, "templates/layout.html", "templates/parts.html"))
	views := map[string]*template.Template{}
	for _, name := range []string{"overview", "networks", "vms", "jobs", "explain", "login", "missing"} {
		views[name] = template.Must(template.Must(layout.Clone()).ParseFS(files, "templates/"+name+".html"))
	}
	return views
}

// badge is a state in a word and a mark; the mark tells without colour too.
type badge struct{ Class, Mark, Word string }

func stateOf(of any) badge {
	switch v := of.(type) {
	case api.Network:
		if v.State == api.Applied && v.Standby {
			return badge{"standby", "◐", "standing by"}
		}
		return stateOf(v.State)
	case api.State:
		switch v {
		case api.Applied:
			return badge{"good", "●", "applied"}
		case api.Pending:
			return badge{"wait", "◌", "pending"}
		}
		return badge{"bad", "✕", "rejected"}
	case job.State:
		switch v {
		case job.Done:
			return badge{"good", "●", "done"}
		case job.Open:
			return badge{"wait", "◌", "open"}
		}
		return badge{"bad", "✕", "failed"}
	}
	return badge{"", "", fmt.Sprint(of)}
}

// overviewData is the first view.
type overviewData struct {
	snapshot
	Trouble            int // things that need somebody
	Waiting            int // things that come right by themselves
	Faults             []string
	ConfigFaults       []api.Fault
	Units              []api.Unit // rejected first
	MoreUnits          int
	Nets               []api.Network
	MoreNets           int
	Standby            int
	PoolUsed, PoolSize int
	Jobs               []job.Job
	HasJobs            bool
	Started            time.Time
	Status             api.Status
	VMTotal, NetTotal  int
}

func (p *page) overview(w http.ResponseWriter, r *http.Request, user account.User) {
	shot := p.current(r.Context())
	s := shot.status
	d := overviewData{snapshot: shot, Status: s, Started: s.Started, Faults: s.Faults, ConfigFaults: s.Config.Faults,
		VMTotal: len(shot.vms), NetTotal: len(shot.networks), HasJobs: p.opts.Jobs != nil}
	for _, u := range s.Units {
		if u.State != api.Applied {
			d.Units = append(d.Units, u)
		}
	}
	slices.SortStableFunc(d.Units, func(a, b api.Unit) int { return cmp.Compare(urgency(a.State), urgency(b.State)) })
	d.Units, d.MoreUnits = cut(d.Units, overviewUnits)
	for _, n := range shot.networks {
		if n.Standby {
			d.Standby++
		}
		d.PoolUsed += n.PoolUsed
		d.PoolSize += n.PoolTotal
	}
	d.Nets, d.MoreNets = cut(shot.networks, overviewNets)
	d.Trouble = len(d.Faults) + len(d.ConfigFaults) + s.Networks[api.Rejected] + s.VMs[api.Rejected]
	d.Waiting = s.Networks[api.Pending] + s.VMs[api.Pending]
	if d.HasJobs {
		jobs, _, err := p.jobsAt("", 0, overviewJobs)
		if err != nil {
			d.Faults = append(slices.Clone(d.Faults), "jobs cannot be read: "+err.Error())
		}
		d.Jobs = jobs
	}
	p.render(w, r, http.StatusOK, "overview", user, d)
}

func urgency(s api.State) int {
	if s == api.Rejected {
		return 0
	}
	return 1
}

// cut returns the first of a list, and how many are left out.
func cut[T any](list []T, most int) ([]T, int) {
	if len(list) <= most {
		return list, 0
	}
	return list[:most], len(list) - most
}

// choice is one of the states that a table can be narrowed to.
type choice struct {
	Word    string
	Count   int // negative: not counted
	URL     string
	Current bool
}

// pager tells which rows of a long table are shown.
type pager struct {
	From, To, Total int // From counts from 1
	Number, Pages   int
	Previous, Next  string
	rows            int
	first           int
	path            string
	query           url.Values
}

// paging reads the number of the page from the query. A number that is out of bounds is the nearest.
func paging(r *http.Request, total int) pager {
	number, _ := strconv.Atoi(r.URL.Query().Get("page"))
	g := pager{Total: total, Pages: max(1, (total+perPage-1)/perPage), path: r.URL.Path, query: r.URL.Query()}
	g.Number = min(max(1, number), g.Pages)
	g.first = (g.Number - 1) * perPage
	g.rows = min(perPage, total-g.first)
	g.From, g.To = g.first+1, g.first+g.rows
	if g.Number > 1 {
		g.Previous = g.url(g.Number - 1)
	}
	if g.Number < g.Pages {
		g.Next = g.url(g.Number + 1)
	}
	return g
}

func (g pager) url(number int) string { return with(g.path, g.query, "page", strconv.Itoa(number)) }

// with returns the address of a view with one parameter changed; empty removes it.
func with(path string, query url.Values, key, value string) string {
	changed := url.Values{}
	for k, v := range query {
		if k != key && k != "page" {
			changed[k] = v
		}
	}
	if value != "" {
		changed.Set(key, value)
	}
	if len(changed) == 0 {
		return path
	}
	return path + "?" + changed.Encode()
}

// choices are all states and each of them, as links that keep the rest of the query.
func choices(r *http.Request, current string, total int, counts map[string]int, words ...string) []choice {
	list := []choice{{Word: "all", Count: total, URL: with(r.URL.Path, r.URL.Query(), "state", ""), Current: current == ""}}
	for _, word := range words {
		n := -1
		if counts != nil {
			n = counts[word]
		}
		list = append(list, choice{word, n, with(r.URL.Path, r.URL.Query(), "state", word), current == word})
	}
	return list
}

func oneOf(value string, known ...string) string {
	if slices.Contains(known, value) {
		return value
	}
	return ""
}

// tableData is a long table: what was asked for, and the part of it that is shown.
type tableData[T any] struct {
	Query   string
	State   string
	Choices []choice
	Rows    []T
	Pager   pager
	Any     bool // there are some, whether they are shown or not
	DropDir string
	HasJobs bool
}

func (p *page) networks(w http.ResponseWriter, r *http.Request, user account.User) {
	shot := p.current(r.Context())
	query := r.URL.Query().Get("q")
	d := filtered(r, shot.networks, func(n api.Network) (string, bool) {
		return string(n.State), matches(query, n.Name, n.Device, n.Subnet, n.Gateway, n.Serving)
	})
	d.DropDir = shot.status.DropDir
	p.render(w, r, http.StatusOK, "networks", user, d)
}

func (p *page) vms(w http.ResponseWriter, r *http.Request, user account.User) {
	shot := p.current(r.Context())
	query := r.URL.Query().Get("q")
	d := filtered(r, shot.vms, func(vm api.VM) (string, bool) { return string(vm.State), vmMatches(vm, query) })
	d.DropDir = shot.status.DropDir
	p.render(w, r, http.StatusOK, "vms", user, d)
}

// filtered narrows a list by the request's query and state, and shows a page of it.
func filtered[T any](r *http.Request, list []T, of func(T) (state string, matches bool)) tableData[T] {
	words := []string{string(api.Applied), string(api.Pending), string(api.Rejected)}
	wanted := oneOf(r.URL.Query().Get("state"), words...)
	counts := map[string]int{}
	total := 0
	var rows []T
	for _, item := range list {
		state, ok := of(item)
		if !ok {
			continue
		}
		total++
		counts[state]++
		if wanted == "" || state == wanted {
			rows = append(rows, item)
		}
	}
	d := tableData[T]{Query: r.URL.Query().Get("q"), State: wanted, Any: len(list) > 0, Pager: paging(r, len(rows))}
	d.Choices = choices(r, wanted, total, counts, words...)
	d.Rows = rows[d.Pager.first : d.Pager.first+d.Pager.rows]
	return d
}

func vmMatches(vm api.VM, query string) bool {
	if matches(query, vm.Name, vm.Hostname) {
		return true
	}
	return slices.ContainsFunc(vm.NICs, func(n api.NIC) bool { return matches(query, n.IPv4, n.MAC, n.Network) })
}

// matches tells whether one of the texts has the query in it, whatever the case. Nothing is in all.
func matches(query string, texts ...string) bool {
	query = strings.ToLower(strings.TrimSpace(query))
	return slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(strings.ToLower(s), query) })
}

func (p *page) jobs(w http.ResponseWriter, r *http.Request, user account.User) {
	words := []string{job.Open.String(), job.Done.String(), job.Failed.String()}
	wanted := oneOf(r.URL.Query().Get("state"), words...)
	d := tableData[job.Job]{State: wanted, HasJobs: p.opts.Jobs != nil}
	d.Choices = choices(r, wanted, -1, nil, words...)
	number, _ := strconv.Atoi(r.URL.Query().Get("page"))
	number = min(max(1, number), 1_000_000)
	if d.HasJobs {
		rows, more, err := p.jobsAt(wanted, (number-1)*perPage, perPage)
		if err != nil {
			p.log.Error("jobs", "reason", err)
			http.Error(w, "jobs cannot be read, see the agent's log", http.StatusInternalServerError)
			return
		}
		// How many there are is not known without reading them all.
		d.Rows, d.Any = rows, len(rows) > 0 || number > 1 || wanted != ""
		d.Pager = pager{Number: number, From: (number-1)*perPage + 1, To: (number-1)*perPage + len(rows), Total: -1, path: r.URL.Path, query: r.URL.Query()}
		if number > 1 {
			d.Pager.Previous = d.Pager.url(number - 1)
		}
		if more {
			d.Pager.Next = d.Pager.url(number + 1)
		}
	}
	p.render(w, r, http.StatusOK, "jobs", user, d)
}

// jobsAt returns jobs of a state, or of all for "", from the one at first on, and whether there are
// more.
func (p *page) jobsAt(state string, first, most int) (jobs []job.Job, more bool, err error) {
	at := -1
	jobs, err = p.opts.Jobs.List(func(j job.Job) (ok, goOn bool) {
		if state != "" && j.State.String() != state {
			return false, true
		}
		at++
		more = at >= first+most
		return at >= first && !more, !more
	})
	return jobs, more, err
}

// explainData is why a guest gets what it gets.
type explainData struct {
	Subject string
	Known   bool
	api.Explanation
	Tone    string // good, wait or bad
	Similar []api.VM
	More    int
	Served  []servedTo
}

// servedTo is what one NIC is served.
type servedTo struct {
	NIC     string
	Entries []api.ServedEntry
}

func (p *page) explain(w http.ResponseWriter, r *http.Request, user account.User) {
	d := explainData{Subject: strings.TrimSpace(r.URL.Query().Get("subject"))}
	status := http.StatusOK
	if d.Subject != "" {
		e, err := p.opts.Reports.Explain(r.Context(), d.Subject)
		switch {
		case errors.Is(err, api.ErrUnknown):
			status = http.StatusNotFound
			for _, vm := range p.current(r.Context()).vms {
				if vmMatches(vm, d.Subject) {
					d.Similar = append(d.Similar, vm)
				}
			}
			d.Similar, d.More = cut(d.Similar, similarVMs)
		case err != nil:
			p.log.Error("explain", "subject", d.Subject, "reason", err)
			http.Error(w, "the guest cannot be explained, see the agent's log", http.StatusInternalServerError)
			return
		default:
			d.Known, d.Explanation = true, e
			d.Tone = tone(e)
			for _, entry := range e.Served {
				if n := len(d.Served); n == 0 || d.Served[n-1].NIC != entry.NIC {
					d.Served = append(d.Served, servedTo{NIC: entry.NIC})
				}
				last := &d.Served[len(d.Served)-1]
				last.Entries = append(last.Entries, entry)
			}
		}
	}
	p.render(w, r, status, "explain", user, d)
}

// tone is how an explanation sounds: bad where the guest gets nothing.
func tone(e api.Explanation) string {
	switch {
	case e.VM != nil && e.VM.State == api.Rejected && !e.VM.InForce:
		return "bad"
	case len(e.Obstacles) > 0 || e.Next != "":
		return "wait"
	}
	return "good"
}

// unitURL is where more is told of a unit.
func unitURL(unit string) string {
	if vm, ok := strings.CutPrefix(unit, "vms/"); ok {
		return "/client/explain?" + url.Values{"subject": {vm}}.Encode()
	}
	network := strings.TrimSuffix(strings.TrimPrefix(unit, "networks/"), ".yaml")
	return "/client/networks?" + url.Values{"q": {network}}.Encode()
}
