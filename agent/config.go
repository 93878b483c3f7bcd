package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"vragent/agent/internal/api"
	"vragent/agent/internal/etcd"
	"vragent/agent/internal/strict"
)

// DefaultConfig is where the packages put the configuration.
const DefaultConfig = "/etc/vragent/agent.yaml"

// Config is a valid configuration: agent.yaml with agent.d/*.yaml laid over it.
type Config struct {
	DropDir         string
	StateDir        string
	Log             LogConfig
	API             APIConfig
	PublicInterface string
	Metadata        MetadataConfig
	CloudStack      CloudStackConfig
	Shared          SharedConfig

	// Files are those that were read, in order.
	Files []string

	// Where api.listen and shared_state.etcd stand, for faults that show when all is read.
	listenAt, sharedAt ConfigFault
}

// LogConfig says what is logged, and how.
type LogConfig struct {
	Level slog.Level
	JSON  bool
}

// APIConfig says where the agent is spoken to, and the limits of that.
type APIConfig struct {
	Socket         string
	Listen         string // address:port, "": no TCP
	Cert, Key      string
	MaxUserData    int   // bytes after base64 decoding
	MaxUserDataGet int   // the same in a GET
	MaxBundle      int64 // bytes
	JobRetention   time.Duration
	MetricsToken   string // file with the bearer token for metrics off loopback; "": nobody
}

// MetadataConfig says how guests are served by default.
type MetadataConfig struct {
	TokensRequired bool
	GuestRate      int // requests a second, 0 = no limit
	GuestConns     int // 0 = no limit
	Hosts          []string
}

// CloudStackConfig is about the dialect of a CloudStack management server.
type CloudStackConfig struct {
	Enabled  bool
	Dir      string // where the server drops its files
	Databags bool   // the files of the router's own scripts are kept, by vragent-cloudstack
}

// SharedConfig is where a pair of routers shares pool leases and taken passwords.
type SharedConfig struct {
	Endpoints     []string // of etcd; none: nothing is shared
	Prefix        string   // of all keys
	CA, Cert, Key string   // PEM files
}

func (c *SharedConfig) etcd() etcd.Options {
	return etcd.Options{Endpoints: c.Endpoints, TLS: etcd.TLS{CA: c.CA, Cert: c.Cert, Key: c.Key}}
}

// ConfigFault is one thing that is wrong with a configuration file. Line and Column count from 1;
// Column is 0 for faults of YAML's own syntax, both are 0 where the file cannot be read.
type ConfigFault struct {
	File         string
	Line, Column int
	What         string
}

func (f ConfigFault) Error() string {
	if f.Line == 0 {
		return f.File + ": " + f.What
	}
	return f.File + ":" + strict.Fault{Line: f.Line, Column: f.Column, What: f.What}.Error()
}

func defaultConfig() *Config {
	return &Config{
		DropDir:  "/var/lib/vragent/drop",
		StateDir: "/var/lib/vragent/state",
		API: APIConfig{
			Socket: "/run/vragent/api.sock", MaxUserData: 32768, MaxUserDataGet: 32768,
			MaxBundle: 256 << 20, JobRetention: 24 * time.Hour,
		},
		PublicInterface: "eth2",
		Metadata:        MetadataConfig{GuestRate: 200, GuestConns: 64},
		CloudStack:      CloudStackConfig{Dir: "/var/cache/cloud", Databags: true},
		Shared:          SharedConfig{Prefix: "/vragent"},
	}
}

// LoadConfig reads the configuration at path and what is laid over it. The error joins all faults,
// each a ConfigFault.
func LoadConfig(path string) (*Config, error) {
	cfg := defaultConfig()
	files := []string{path}
	over, err := filepath.Glob(filepath.Join(filepath.Dir(path), "agent.d", "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	slices.Sort(over)
	var faults []error
	for _, file := range append(files, over...) {
		if strings.HasPrefix(filepath.Base(file), ".") {
			continue
		}
		data, err := os.ReadFile(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			faults = append(faults, ConfigFault{File: file, What: "does not exist; make it (an empty file will do) or name another one by --config"})
			continue
		case err != nil:
			var pathErr *fs.PathError
			if errors.As(err, &pathErr) {
				err = pathErr.Err
			}
			faults = append(faults, ConfigFault{File: file, What: "cannot be read: " + err.Error()})
			continue
		}
		cfg.Files = append(cfg.Files, file)
		for _, f := range cfg.lay(file, data) {
			faults = append(faults, ConfigFault{File: file, Line: f.Line, Column: f.Column, What: f.What})
		}
	}
	if cfg.API.Listen != "" && len(faults) == 0 {
		// Address and certificate may stand in different files, so they are looked at together.
		if err := api.CheckListen(cfg.API.Listen, cfg.API.Cert, cfg.API.Key); err != nil {
			fault := cfg.listenAt
			fault.What = "api.listen: " + err.Error()
			faults = append(faults, fault)
		}
	}
	if len(cfg.Shared.Endpoints) > 0 && len(faults) == 0 {
		options := cfg.Shared.etcd()
		if err := options.Check(); err != nil {
			fault := cfg.sharedAt
			fault.What = "shared_state.etcd: " + err.Error()
			faults = append(faults, fault)
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return cfg, nil
}

// lay reads one file over what cfg holds, key by key.
func (cfg *Config) lay(file string, data []byte) []strict.Fault {
	d, m := strict.Read(data)
	if faults := d.Faults(); len(faults) > 0 {
		return faults
	}
	absolute(m, "drop_dir", &cfg.DropDir)
	absolute(m, "state_dir", &cfg.StateDir)
	if within(cfg.StateDir, cfg.DropDir) || within(cfg.DropDir, cfg.StateDir) {
		m.Faultf(cmp.Or(present(m, "state_dir"), "drop_dir"), "state_dir %s and drop_dir %s lie in one another; they must be apart", cfg.StateDir, cfg.DropDir)
	}
	log := m.Mapping("log")
	if t := log.Text("level"); t.Set {
		if err := cfg.Log.Level.UnmarshalText([]byte(t.Value)); err != nil || !slices.Contains([]string{"debug", "info", "warn", "error"}, t.Value) {
			log.Faultf("level", "is %q; it must be debug, info, warn or error", t.Value)
		}
	}
	if t := log.Text("format"); t.Set {
		if cfg.Log.JSON = t.Value == "json"; t.Value != "json" && t.Value != "text" {
			log.Faultf("format", "is %q; it must be text or json", t.Value)
		}
	}
	log.Done()
	cfg.layAPI(file, m.Mapping("api"))
	if t := m.Text("public_interface"); t.Set {
		cfg.PublicInterface = t.Value
		if !regexp.MustCompile(`^[^\s/:%]{0,15}$`).MatchString(t.Value) {
			m.Faultf("public_interface", "is %q; it must be the name of a network device, like eth2", t.Value)
		}
	}
	cs := m.Mapping("cloudstack")
	cfg.CloudStack.Enabled = cs.Bool("enabled", cfg.CloudStack.Enabled)
	absolute(cs, "dir", &cfg.CloudStack.Dir)
	cfg.CloudStack.Databags = cs.Bool("databags", cfg.CloudStack.Databags)
	cs.Done()
	cfg.layShared(file, m.Mapping("shared_state"))
	md := m.Mapping("metadata")
	if t := md.Text("tokens"); t.Set {
		if cfg.Metadata.TokensRequired = t.Value == "required"; t.Value != "required" && t.Value != "optional" {
			md.Faultf("tokens", "is %q; it must be optional or required", t.Value)
		}
	}
	cfg.Metadata.GuestRate = int(md.Int("guest_rate", int64(cfg.Metadata.GuestRate), 0, 1_000_000))
	cfg.Metadata.GuestConns = int(md.Int("guest_connections", int64(cfg.Metadata.GuestConns), 0, 1_000_000))
	if md.Has("hosts") {
		cfg.Metadata.Hosts = nil
		for _, t := range md.Texts("hosts") {
			host := strings.ToLower(strings.TrimSuffix(t.Value, "."))
			if !hostPattern.MatchString(host) {
				md.FaultAt(t.Pos, "hosts", "%q is no host name", t.Value)
			}
			cfg.Metadata.Hosts = append(cfg.Metadata.Hosts, host)
		}
	}
	md.Done()
	m.Done()
	return d.Faults()
}

func (cfg *Config) layAPI(file string, m *strict.Mapping) {
	absolute(m, "socket", &cfg.API.Socket)
	if most := 107 - len(".XXXXXX"); len(cfg.API.Socket) > most {
		m.Faultf("socket", "is %d bytes long; %d are allowed", len(cfg.API.Socket), most)
	}
	if t := m.Text("listen"); t.Set {
		cfg.API.Listen = t.Value
		cfg.listenAt = ConfigFault{File: file, Line: t.Line, Column: t.Column}
	}
	tls := m.Mapping("tls")
	absoluteOrNone(tls, "cert", &cfg.API.Cert)
	absoluteOrNone(tls, "key", &cfg.API.Key)
	tls.Done()
	absoluteOrNone(m, "metrics_token_file", &cfg.API.MetricsToken)
	cfg.API.MaxUserData = int(m.Size("max_userdata", int64(cfg.API.MaxUserData), 1, maxUserData))
	cfg.API.MaxUserDataGet = int(m.Size("max_userdata_get", int64(cfg.API.MaxUserDataGet), 1, maxUserData))
	cfg.API.MaxBundle = m.Size("max_bundle", cfg.API.MaxBundle, 1, 64<<30)
	cfg.API.JobRetention = m.Duration("job_retention", cfg.API.JobRetention, time.Minute, 10*365*24*time.Hour)
	m.Done()
}

func (cfg *Config) layShared(file string, m *strict.Mapping) {
	c := m.Mapping("etcd")
	if m.Has("etcd") {
		at := m.At("etcd")
		cfg.sharedAt = ConfigFault{File: file, Line: at.Line, Column: at.Column}
	}
	if c.Has("endpoints") {
		cfg.Shared.Endpoints = nil
		for _, t := range c.Texts("endpoints") {
			cfg.Shared.Endpoints = append(cfg.Shared.Endpoints, strings.TrimSuffix(t.Value, "/"))
		}
	}
	if t := c.Text("prefix"); t.Set {
		cfg.Shared.Prefix = t.Value
		if !prefixPattern.MatchString(t.Value) {
			c.Faultf("prefix", "is %q; it must be like /vragent/pair-7", t.Value)
		}
	}
	tls := c.Mapping("tls")
	absoluteOrNone(tls, "ca", &cfg.Shared.CA)
	absoluteOrNone(tls, "cert", &cfg.Shared.Cert)
	absoluteOrNone(tls, "key", &cfg.Shared.Key)
	tls.Done()
	c.Done()
	m.Done()
}

var prefixPattern = regexp.MustCompile(`^(/[A-Za-z0-9._-]+)+$`)

var hostPattern = regexp.MustCompile(`^[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?$`)

func absolute(m *strict.Mapping, key string, value *string) {
	t := m.Text(key)
	if !t.Set {
		return
	}
	if !filepath.IsAbs(t.Value) || filepath.Clean(t.Value) == "/" {
		m.Faultf(key, "is %q; it must be an absolute path, like %s", t.Value, cmp.Or(*value, "/etc/vragent/"+key))
		return
	}
	*value = filepath.Clean(t.Value)
}

// absoluteOrNone takes an empty text, too.
func absoluteOrNone(m *strict.Mapping, key string, value *string) {
	if m.Text(key).Value == "" && m.Has(key) {
		*value = ""
		return
	}
	absolute(m, key, value)
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

func present(m *strict.Mapping, key string) string {
	if m.Has(key) {
		return key
	}
	return ""
}

// maxUserData is how much user data the API may be allowed to take, in bytes.
const maxUserData = 1 << 20

// restartKeys names what differs between two configurations and cannot change live.
func restartKeys(old, new *Config) []string {
	var keys []string
	for key, differ := range map[string]bool{
		"drop_dir":          old.DropDir != new.DropDir,
		"state_dir":         old.StateDir != new.StateDir,
		"api.socket":        old.API.Socket != new.API.Socket,
		"api.listen":        old.API.Listen != new.API.Listen,
		"api.tls":           old.API.Cert != new.API.Cert || old.API.Key != new.API.Key,
		"cloudstack":        old.CloudStack != new.CloudStack,
		"shared_state":      !reflect.DeepEqual(old.Shared, new.Shared),
		"api.job_retention": old.API.JobRetention != new.API.JobRetention,
	} {
		if differ {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}
