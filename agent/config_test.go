package agent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// files writes name -> text into a folder and returns the path of agent.yaml there.
func files(t *testing.T, texts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range texts {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "agent.yaml")
}

func TestEmptyConfigurationIsTheDefaults(t *testing.T) {
	cfg, err := LoadConfig(files(t, map[string]string{"agent.yaml": ""}))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(defaultConfig(), cfg, cmpopts.IgnoreFields(Config{}, "Files"), cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPackagedConfigurationIsTheDefaults(t *testing.T) {
	// Every key with its default stands there as a comment; taking the marks away must change nothing.
	data, err := os.ReadFile("../packaging/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && rest != "" && rest[0] != ' ' && rest[0] != '\n' && rest[0] != '#' {
			line = rest
		}
		b.WriteString(line)
	}
	for name, text := range map[string]string{"as it is": string(data), "without comment marks": b.String()} {
		cfg, err := LoadConfig(files(t, map[string]string{"agent.yaml": text}))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(defaultConfig(), cfg, cmpopts.IgnoreFields(Config{}, "Files"), cmpopts.IgnoreUnexported(Config{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestLaterFilesAreLaidOverKeyByKey(t *testing.T) {
	path := files(t, map[string]string{
		"agent.yaml":              "log: {level: debug, format: json}\nmetadata: {hosts: [a.example], guest_rate: 5}\n",
		"agent.d/20-more.yaml":    "log: {level: warn}\n",
		"agent.d/10-first.yaml":   "log: {level: error}\nmetadata: {hosts: [B.example.]}\n",
		"agent.d/.hidden.yaml":    "nonsense: [\n",
		"agent.d/notes.txt":       "nonsense: [\n",
		"agent.d/30-api.yaml":     "api: {listen: \"127.0.0.1:8080\", max_bundle: 1GiB, job_retention: 1h}\n",
		"agent.d/40-public.yaml":  "public_interface: \"\"\n",
		"agent.d/50-nothing.yaml": "# nothing\n",
	})
	cfg, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	want := defaultConfig()
	want.Log = LogConfig{Level: slog.LevelWarn, JSON: true}
	want.Metadata.Hosts, want.Metadata.GuestRate = []string{"b.example"}, 5
	want.API.Listen, want.API.MaxBundle, want.API.JobRetention = "127.0.0.1:8080", 1<<30, time.Hour
	want.PublicInterface = ""
	if diff := cmp.Diff(want, cfg, cmpopts.IgnoreFields(Config{}, "Files"), cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var names []string
	for _, f := range cfg.Files {
		names = append(names, filepath.Base(f))
	}
	if diff := cmp.Diff([]string{"agent.yaml", "10-first.yaml", "20-more.yaml", "30-api.yaml", "40-public.yaml", "50-nothing.yaml"}, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestConfigurationFaultsNameTheirPlace(t *testing.T) {
	for name, test := range map[string]struct {
		texts map[string]string
		want  []string
	}{
		"unknown key":      {map[string]string{"agent.yaml": "drop_dri: /x\n"}, []string{`agent.yaml:1:1: unknown key "drop_dri"; did you mean drop_dir?`}},
		"relative path":    {map[string]string{"agent.yaml": "\nstate_dir: x\n"}, []string{`agent.yaml:2:12: state_dir: is "x"; it must be an absolute path, like /var/lib/vragent/state`}},
		"level":            {map[string]string{"agent.yaml": "log: {level: loud}\n"}, []string{`agent.yaml:1:14: log.level: is "loud"; it must be debug, info, warn or error`}},
		"syntax":           {map[string]string{"agent.yaml": "a: [\n"}, []string{"agent.yaml:1: not valid YAML: did not find expected node content"}},
		"nested":           {map[string]string{"agent.yaml": "drop_dir: /a\nstate_dir: /a/b\n"}, []string{"agent.yaml:2:12: state_dir: state_dir /a/b and drop_dir /a lie in one another; they must be apart"}},
		"off loopback":     {map[string]string{"agent.yaml": "api:\n  listen: \"192.0.2.1:8443\"\n"}, []string{"agent.yaml:2:11: api.listen: 192.0.2.1:8443: not a loopback address, so tls.cert and tls.key are required"}},
		"one half of TLS":  {map[string]string{"agent.yaml": "api: {listen: \"127.0.0.1:8443\", tls: {cert: /c.pem}}\n"}, []string{"agent.yaml:1:15: api.listen: tls.cert and tls.key go together"}},
		"missing":          {nil, []string{"agent.yaml: does not exist; make it (an empty file will do) or name another one by --config"}},
		"faults of two":    {map[string]string{"agent.yaml": "x: 1\n", "agent.d/a.yaml": "metadata: {guest_rate: -1}\n"}, []string{`agent.yaml:1:1: unknown key "x"; allowed are api, cloudstack, drop_dir, log, metadata, public_interface, shared_state, state_dir`, `a.yaml:1:24: metadata.guest_rate: is "-1"; it must be a whole number from 0 to 1000000`}},
		"bad host":         {map[string]string{"agent.yaml": "metadata: {hosts: [ok, \"a b\"]}\n"}, []string{`agent.yaml:1:24: metadata.hosts: "a b" is no host name`}},
		"etcd elsewhere":   {map[string]string{"agent.yaml": "shared_state: {etcd: {hosts: [a]}}\n"}, []string{`agent.yaml:1:23: unknown key "shared_state.etcd.hosts"; allowed are endpoints, prefix, tls`}},
		"etcd endpoint":    {map[string]string{"agent.yaml": "shared_state:\n  etcd:\n    endpoints: [192.0.2.1]\n"}, []string{`agent.yaml:3:5: shared_state.etcd: endpoint "192.0.2.1": want http://HOST:PORT or https://HOST:PORT`}},
		"etcd prefix":      {map[string]string{"agent.yaml": "shared_state: {etcd: {prefix: vragent/}}\n"}, []string{`agent.yaml:1:31: shared_state.etcd.prefix: is "vragent/"; it must be like /vragent/pair-7`}},
		"etcd certificate": {map[string]string{"agent.yaml": "shared_state: {etcd: {endpoints: [\"https://192.0.2.1:2379\"], tls: {ca: /nowhere.pem}}}\n"}, []string{`agent.yaml:1:22: shared_state.etcd: tls.ca: open /nowhere.pem: no such file or directory`}},
		"etcd TLS in vain": {map[string]string{"agent.yaml": "shared_state: {etcd: {endpoints: [\"http://192.0.2.1:2379\"]}}\n", "agent.d/a.yaml": "shared_state:\n  etcd: {tls: {cert: /c.pem, key: /k.pem}}\n"}, []string{`a.yaml:2:9: shared_state.etcd: tls is set, and the endpoints are http: want https`}},
		"size of userdata": {map[string]string{"agent.yaml": "api: {max_userdata: 2MiB}\n"}, []string{`agent.yaml:1:21: api.max_userdata: is "2MiB"; it must be a number of bytes from 1 to 1048576, like 32768, 512KiB or 256MiB`}},
	} {
		t.Run(name, func(t *testing.T) {
			path := files(t, test.texts)
			_, err := LoadConfig(path)
			var got []string
			for _, err := range unjoin(err) {
				var f ConfigFault
				if !errors.As(err, &f) {
					t.Fatalf("%v is no ConfigFault", err)
				}
				f.File = filepath.Base(f.File)
				got = append(got, f.Error())
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzLoadConfig(f *testing.F) {
	f.Add("drop_dir: /a\nlog: {level: info}\n")
	f.Add("api: {tls: {cert: [}}")
	f.Fuzz(func(t *testing.T, text string) {
		cfg := defaultConfig()
		for _, fault := range cfg.lay("agent.yaml", []byte(text)) {
			if fault.Line < 1 {
				t.Errorf("fault without a line: %v", fault)
			}
		}
	})
}
