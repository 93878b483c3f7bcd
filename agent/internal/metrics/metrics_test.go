package metrics

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// fullSources are sources of everything.
func fullSources() Sources {
	return Sources{
		Ready: func() bool { return true },
		Status: func() Status {
			return Status{
				Networks: map[string]int{"applied": 2, "pending": 1},
				VMs:      map[string]int{"applied": 40, "rejected": 3},
				Standby:  1, Watched: 44, Scanned: 2, Unsettled: 1, Faults: 2, ConfigFaults: 4,
				ConfigLoaded: time.Unix(1_700_000_000, 500_000_000),
			}
		},
		DHCP: func() DHCP {
			return DHCP{
				Messages: map[string]map[string]uint64{
					"DISCOVER": {"answered": 7, "silent": 2},
					"REQUEST":  {"refused": 1},
				},
				Dropped: 5, Unsent: 6,
			}
		},
		Guests: func() Guests {
			return Guests{
				Requests:  map[string]map[int]uint64{"user-data": {200: 9, 404: 1}, "token": {401: 2}},
				Refused:   3,
				Listeners: map[string]int{"metadata": 2, "password": 2}, Connections: 8, Waiting: 4,
			}
		},
		Leases: func() (known, pool map[string]int) {
			return map[string]int{"bound": 30, "reserved": 10}, map[string]int{"bound": 5, "declined": 1}
		},
		Pools: func() []Pool {
			return []Pool{{Total: 100, Bound: 5}, {Total: 10, Bound: 6, Offered: 1, Declined: 1}}
		},
		Shared: func() Shared {
			return Shared{Current: true, Transactions: map[string]uint64{"stored": 12, "refused": 1}, Spent: 1500 * time.Millisecond}
		},
		Jobs:      func() Jobs { return Jobs{Open: 1, Done: 20, Failed: 2} },
		Listeners: func() map[string]int { return map[string]int{"dhcp": 2, "socket": 1, "api": 1} },
	}
}

// scrape returns the metrics as Prometheus gets them over loopback.
func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	srv := httptest.NewServer(m.Handler(nil))
	defer srv.Close()
	res, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Fatalf("scrape: %s\n%s", res.Status, &b)
	}
	return b.String()
}

// values are the samples of a scrape that are the agent's own, by name with labels.
func values(text string) map[string]string {
	all := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if i := strings.LastIndexByte(line, ' '); i > 0 && strings.HasPrefix(line, "vragent_") {
			all[line[:i]] = line[i+1:]
		}
	}
	return all
}

func TestMetricsTellWhatTheSourcesDo(t *testing.T) {
	m := New("1.2.3", fullSources())
	m.ObserveChange(Applied, 20*time.Millisecond)
	m.ObserveChange(Rejected, 2*time.Second)
	got := values(scrape(t, m))
	for name, want := range map[string]string{
		`vragent_ready`: "1",
		`vragent_units{kind="network",state="applied"}`:                       "2",
		`vragent_units{kind="network",state="rejected"}`:                      "0",
		`vragent_units{kind="vm",state="rejected"}`:                           "3",
		`vragent_networks_standby`:                                            "1",
		`vragent_drop_folders{notice="watched"}`:                              "44",
		`vragent_drop_folders{notice="scanned"}`:                              "2",
		`vragent_drop_unsettled_units`:                                        "1",
		`vragent_faults`:                                                      "2",
		`vragent_config_faults`:                                               "4",
		`vragent_config_loaded_timestamp_seconds`:                             "1.7000000005e+09",
		`vragent_dhcp_messages_total{message="DISCOVER",outcome="answered"}`:  "7",
		`vragent_dhcp_messages_total{message="REQUEST",outcome="refused"}`:    "1",
		`vragent_dhcp_messages_total{message="INFORM",outcome="answered"}`:    "0",
		`vragent_dhcp_requests_dropped_total`:                                 "5",
		`vragent_dhcp_replies_unsent_total`:                                   "6",
		`vragent_guest_requests_total{code="200",kind="user-data"}`:           "9",
		`vragent_guest_requests_total{code="401",kind="token"}`:               "2",
		`vragent_guest_requests_total{code="500",kind="password"}`:            "0",
		`vragent_guest_connections_refused_total`:                             "3",
		`vragent_guest_connections`:                                           "8",
		`vragent_guest_requests_waiting`:                                      "4",
		`vragent_leases{of="known",state="bound"}`:                            "30",
		`vragent_leases{of="pool",state="declined"}`:                          "1",
		`vragent_pool_addresses{state="free"}`:                                "97",
		`vragent_pool_addresses{state="bound"}`:                               "11",
		`vragent_pool_fullest_ratio`:                                          "0.8",
		`vragent_jobs{state="failed"}`:                                        "2",
		`vragent_shared_state_current`:                                        "1",
		`vragent_shared_state_transactions_total{outcome="stored"}`:           "12",
		`vragent_shared_state_transactions_total{outcome="failed"}`:           "0",
		`vragent_shared_state_transaction_seconds_total`:                      "1.5",
		`vragent_listeners{service="dhcp"}`:                                   "2",
		`vragent_listeners{service="password"}`:                               "2",
		`vragent_change_duration_seconds_bucket{outcome="applied",le="0.01"}`: "0",
		`vragent_change_duration_seconds_bucket{outcome="applied",le="0.1"}`:  "1",
		`vragent_change_duration_seconds_sum{outcome="rejected"}`:             "2",
		`vragent_change_duration_seconds_count{outcome="failed"}`:             "0",
	} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
	if !strings.Contains(scrape(t, m), `version="1.2.3"`) {
		t.Error("the version is missing")
	}
}

func TestSourcesThatAreMissingHaveNoMetrics(t *testing.T) {
	got := values(scrape(t, New("", Sources{})))
	for name := range got {
		if !strings.HasPrefix(name, "vragent_build_info") && !strings.HasPrefix(name, "vragent_change_duration_seconds") {
			t.Errorf("%s is there", name)
		}
	}
}

// Whatever the sources say, the number of time series has a bound.
func TestNothingThatIsCountedMakesANewSeries(t *testing.T) {
	s := fullSources()
	before := len(values(scrape(t, New("", s))))
	s.Status = func() Status { return Status{Networks: numbered[int](), VMs: numbered[int]()} }
	s.DHCP = func() DHCP {
		messages := map[string]map[string]uint64{}
		for i := range 1000 {
			messages[fmt.Sprint(i)] = numbered[uint64]()
		}
		return DHCP{Messages: messages}
	}
	s.Guests = func() Guests {
		requests := map[string]map[int]uint64{}
		for i := range 1000 {
			requests[fmt.Sprint(i)] = map[int]uint64{i: 1, 1000 + i: 1, -i: 1}
		}
		return Guests{Requests: requests, Listeners: numbered[int]()}
	}
	s.Leases = func() (known, pool map[string]int) { return numbered[int](), numbered[int]() }
	s.Listeners = numbered[int]
	s.Shared = func() Shared { return Shared{Transactions: numbered[uint64]()} }
	m := New("", s)
	for i := range 1000 {
		m.ObserveChange(Outcome(fmt.Sprint(i)), time.Second)
	}
	got := values(scrape(t, m))
	// Status codes are up to 500, all others of all kinds are one each.
	if added := len(got) - before; added > 550 {
		t.Errorf("%d more series", added)
	}
	if got, want := got[`vragent_dhcp_messages_total{message="other",outcome="other"}`], "1e+06"; got != want {
		t.Errorf("others = %s, want %s", got, want)
	}
}

func numbered[N int | uint64]() map[string]N {
	m := map[string]N{}
	for i := range 1000 {
		m[fmt.Sprint(i)] = 1
	}
	return m
}

func TestScrapesAreConsistentAndClean(t *testing.T) {
	m := New("1.2.3", fullSources())
	m.Count("socket", http.NotFoundHandler())
	if _, err := m.registry.Gather(); err != nil {
		t.Errorf("gather: %v", err)
	}
	// Pedantic: a metric that Describe leaves out is an error.
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(&collector{fullSources()}, m.changes, m.requests)
	if _, err := registry.Gather(); err != nil {
		t.Errorf("pedantic: %v", err)
	}
	text := scrape(t, m)
	cmd := exec.Command(promtool(t), "check", "metrics")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// promtool returns the program's path, and skips the test where it is not installed.
func promtool(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed: Debian package prometheus")
	}
	return path
}

func TestCountCountsByListenerAndCode(t *testing.T) {
	m := New("", Sources{})
	h := m.Count("api", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Errorf("flush: %v", err)
		}
		if r.URL.Path != "/" {
			panic(http.ErrAbortHandler)
		}
	}))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("BREW", "/", nil))
	missing := m.Count("invented", http.NotFoundHandler())
	missing.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	got := values(scrape(t, m))
	for name := range got {
		if !strings.HasPrefix(name, "vragent_api_requests_total") {
			delete(got, name)
		}
	}
	want := map[string]string{
		`vragent_api_requests_total{code="200",listener="api"}`:   "2",
		`vragent_api_requests_total{code="401",listener="api"}`:   "0",
		`vragent_api_requests_total{code="500",listener="api"}`:   "0",
		`vragent_api_requests_total{code="200",listener="other"}`: "0",
		`vragent_api_requests_total{code="401",listener="other"}`: "0",
		`vragent_api_requests_total{code="500",listener="other"}`: "0",
		`vragent_api_requests_total{code="404",listener="other"}`: "1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}

func TestPoolTaken(t *testing.T) {
	for _, tt := range []struct {
		pool Pool
		want float64
	}{
		{Pool{}, 0},
		{Pool{Total: 10}, 0},
		{Pool{Total: 10, Bound: 4, Offered: 1}, .5},
		{Pool{Total: 10, Bound: 12}, 1}, // shrunk under its leases
		{Pool{Total: -1, Bound: 1}, 0},
	} {
		if got := tt.pool.taken(); got != tt.want {
			t.Errorf("%+v: taken = %v, want %v", tt.pool, got, tt.want)
		}
	}
}

// names are those of all metrics of the agent's own, without the suffixes of a histogram.
func names(t *testing.T) []string {
	t.Helper()
	m := New("", fullSources())
	m.Count("api", http.NotFoundHandler())
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "vragent_") {
			all = append(all, f.GetName())
		}
	}
	slices.Sort(all)
	return all
}
