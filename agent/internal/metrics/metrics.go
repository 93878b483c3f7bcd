package metrics

import (
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Outcome is what became of a change of the drop directory.
type Outcome string

// The outcomes of a change.
const (
	Applied  Outcome = "applied"  // the new content is in force
	Pending  Outcome = "pending"  // valid, and waits for its network or device
	Rejected Outcome = "rejected" // invalid or in conflict; the old content stays in force
	Removed  Outcome = "removed"  // the unit is gone, and out of force
	Failed   Outcome = "failed"   // the state directory had no room for it; it is tried again
)

var outcomes = []Outcome{Applied, Pending, Rejected, Removed, Failed}

// changeBuckets are around the 100 ms that a change may take, in seconds.
var changeBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30}

// Metrics are the agent's metrics, in a registry of their own. All methods are safe for concurrent
// use.
type Metrics struct {
	registry *prometheus.Registry
	changes  *prometheus.HistogramVec
	requests *prometheus.CounterVec
}

// New returns the metrics of an agent of that version.
func New(version string, s Sources) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		changes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "vragent_change_duration_seconds",
			Help:    "Time from the last change of a unit's files, or from when its writer was done, until it was in force or judged, by outcome.",
			Buckets: changeBuckets,
		}, []string{"outcome"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vragent_api_requests_total",
			Help: "Requests to the agent's own API, status page and health checks, by listener and status code.",
		}, []string{"listener", "code"}),
	}
	for _, o := range outcomes {
		m.changes.WithLabelValues(string(o)) // a series that begins at 0 shows its first increase
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "vragent_build_info",
		Help:        "Always 1; the labels tell what was built.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(m.changes, m.requests, build, &collector{s},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// ObserveChange counts a change that came to its outcome after that time.
func (m *Metrics) ObserveChange(o Outcome, latency time.Duration) {
	if !slices.Contains(outcomes, o) {
		o = other
	}
	m.changes.WithLabelValues(string(o)).Observe(max(0, latency).Seconds())
}

// Count returns a handler that has next answer and counts the requests of a listener: socket or api.
func (m *Metrics) Count(listener string, next http.Handler) http.Handler {
	counter := m.requests.MustCurryWith(prometheus.Labels{"listener": oneOf(services, listener)})
	for _, code := range []string{"200", "401", "500"} {
		counter.WithLabelValues(code)
	}
	return promhttp.InstrumentHandlerCounter(counter, next)
}

func oneOf(known []string, value string) string {
	if slices.Contains(known, value) {
		return value
	}
	return other
}
