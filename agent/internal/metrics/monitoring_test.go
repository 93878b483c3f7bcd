package metrics

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is shipped to operators speaks of the metrics that are there, and of no others.

func shipped(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../../packaging/monitoring", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func firsts(pattern, text string) []string {
	var all []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func TestEveryMetricIsDocumented(t *testing.T) {
	if diff := cmp.Diff(names(t), firsts("(?m)^\\| `(vragent_[a-z_]+)`", shipped(t, "README.md"))); diff != "" {
		t.Errorf("README.md (-there +documented):\n%s", diff)
	}
}

func TestEveryAlertIsDocumented(t *testing.T) {
	if diff := cmp.Diff(firsts(`(?m)- alert: (\w+)`, shipped(t, "alerts.yaml")), firsts("(?m)^\\| `(Vragent[A-Za-z]+)`", shipped(t, "README.md"))); diff != "" {
		t.Errorf("README.md (-there +documented):\n%s", diff)
	}
}

var histogramSuffix = regexp.MustCompile(`_(bucket|count|sum)$`)

func TestAlertsAndDashboardUseMetricsThatAreThere(t *testing.T) {
	known := names(t)
	for _, file := range []string{"alerts.yaml", "alerts_test.yaml", "grafana-dashboard.json"} {
		for _, name := range firsts(`\b(vragent_[a-z_]+)`, shipped(t, file)) {
			if !slices.Contains(known, name) && !slices.Contains(known, histogramSuffix.ReplaceAllString(name, "")) {
				t.Errorf("%s: there is no %s", file, name)
			}
		}
	}
}

// dashboard is what matters here of Grafana's format.
type dashboard struct {
	UID    string
	Panels []struct {
		ID      int
		Type    string
		Title   string
		GridPos struct{ X, Y, W, H int }
		Targets []struct{ Expr string }
	}
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal([]byte(shipped(t, "grafana-dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDashboardShowsEveryMetric(t *testing.T) {
	text := shipped(t, "grafana-dashboard.json")
	for _, name := range names(t) {
		// When the configuration was read is for alerts of one's own, pool addresses are among leases.
		if name != "vragent_config_loaded_timestamp_seconds" && name != "vragent_pool_addresses" && !strings.Contains(text, name) {
			t.Errorf("%s is in no panel", name)
		}
	}
}

func TestPanelsDoNotOverlap(t *testing.T) {
	panels := readDashboard(t).Panels
	ids := map[int]bool{}
	for i, a := range panels {
		if ids[a.ID] || a.GridPos.X+a.GridPos.W > 24 || a.Type != "row" && len(a.Targets) == 0 {
			t.Errorf("%s: %+v", a.Title, a)
		}
		ids[a.ID] = true
		for _, b := range panels[:i] {
			p, q := a.GridPos, b.GridPos
			if p.X < q.X+q.W && q.X < p.X+p.W && p.Y < q.Y+q.H && q.Y < p.Y+p.H {
				t.Errorf("%s overlaps %s", a.Title, b.Title)
			}
		}
	}
}

func TestDashboardsExpressionsAreGood(t *testing.T) {
	var rules strings.Builder
	rules.WriteString("groups:\n  - name: dashboard\n    rules:\n")
	variables := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*")
	for _, p := range readDashboard(t).Panels {
		for i, target := range p.Targets {
			expr, err := json.Marshal(variables.Replace(target.Expr))
			if err != nil {
				t.Fatal(err)
			}
			rules.WriteString("      - record: panel:" + strings.Repeat("x", p.ID) + ":" + strings.Repeat("y", i+1) + "\n        expr: " + string(expr) + "\n")
		}
	}
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool(t), "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

func TestAlertsRaiseWhatTheyShould(t *testing.T) {
	program := promtool(t)
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.Command(program, args...)
		cmd.Dir = "../../../packaging/monitoring"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
