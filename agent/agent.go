package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"vragent/agent/internal/api"
	"vragent/agent/internal/cloudstack"
	"vragent/agent/internal/drop"
	"vragent/agent/internal/engine"
	"vragent/agent/internal/handover"
	"vragent/agent/internal/metrics"
	"vragent/agent/internal/state"
	"vragent/dhcp"
	"vragent/metadata"
	"vragent/netcfg"
)

// Options are what the command line and tests give an agent. All may be left out.
type Options struct {
	Config  string    // path of agent.yaml; DefaultConfig if empty
	Version string    // for status
	Log     io.Writer // where log lines go; os.Stderr if nil
	Ready   func()    // called once, when guests are served
	// Now is the clock of leases, sessions, jobs and reports; nil is time.Now. A test may set it.
	Now func() time.Time

	// Notify is the address of systemd's notification socket. With it sockets outlive the agent, for
	// the next one.
	Notify string
	// Inherited are the sockets of the agent before this one, which New takes.
	Inherited []handover.Socket
}

// Agent is a daemon that has been built and not yet run, or that runs.
type Agent struct {
	opts    Options
	log     *slog.Logger
	logs    *logSwitch
	started time.Time
	sockets *handover.Store

	kernel   *netcfg.Kernel
	units    *state.Store // what is in force
	leases   *state.Store // of pools
	users    *state.Store // of the API, and LDAP servers
	jobs     *state.Store
	dialect  *state.Store // of the CloudStack dialect; nil where it is off
	dir      *drop.Dir
	hosts    *dhcp.Table
	dhcp     *dhcp.Server
	metadata *metadata.Server
	engine   *engine.Engine
	pair     *pair // nil where nothing is shared

	companion  *companion
	cloudstack *cloudstack.Dialect // nil where it is off
	metrics    *metrics.Metrics
	token      *metrics.Token // for metrics off loopback
	socket     *api.UnixListener
	tcp        net.Listener // nil without api.listen
	header     int          // bytes that a request on it may have before its body

	ready chan struct{} // closes when guests are served

	mu     sync.Mutex // guards what follows
	cfg    *Config
	loaded time.Time
	faults []error  // of the newest configuration on disk, if it could not be put in force
	later  []string // changed keys that wait for a restart
	notes  []string // what went wrong at the start without keeping the agent from it
}

// group is who may use the socket and the drop directory beside root.
const group = "vragent"

// New reads the configuration and opens what the agent needs: its state, the drop directory, the
// kernel's network and the socket. Nothing is served yet. Faults of the configuration are
// ConfigFaults, joined.
func New(opts Options) (a *Agent, err error) {
	if opts.Config == "" {
		opts.Config = DefaultConfig
	}
	if opts.Log == nil {
		opts.Log = os.Stderr
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	cfg, err := LoadConfig(opts.Config)
	if err != nil {
		return nil, err
	}
	a = &Agent{opts: opts, cfg: cfg, started: time.Now(), loaded: time.Now(), logs: newLogSwitch(opts.Log), ready: make(chan struct{})}
	a.logs.set(cfg.Log)
	a.log = slog.New(a.logs)
	a.sockets = handover.New(handover.Options{Notify: opts.Notify, Inherited: opts.Inherited, Log: a.log})
	defer func() {
		if err != nil {
			a.close()
			a = nil
		}
	}()

	powers, err := netcfg.ReadPowers()
	if err != nil {
		return a, fmt.Errorf("powers of the process: %w", err)
	}
	// One store each, so that damage of one leaves the others alone.
	stores := map[string]**state.Store{"units": &a.units, "leases": &a.leases, "users": &a.users, "jobs": &a.jobs}
	if cfg.CloudStack.Enabled {
		stores["cloudstack"] = &a.dialect
	}
	if err := checkStores(cfg.StateDir, slices.Sorted(maps.Keys(stores))); err != nil {
		return a, err
	}
	for name, store := range stores {
		if *store, err = a.openStore(filepath.Join(cfg.StateDir, name)); err != nil {
			return a, err
		}
	}
	if a.dir, err = drop.Open(cfg.DropDir, drop.Options{Logger: a.log, Group: group}); err != nil {
		return a, err
	}
	if a.kernel, err = netcfg.Open(netcfg.Options{Log: a.log, RecordFile: filepath.Join(filepath.Dir(cfg.API.Socket), "addresses")}); err != nil {
		return a, fmt.Errorf("network: %w", err)
	}
	key, err := tokenKey(a.units)
	if err != nil {
		// Tokens of this run end with it then, and clients fetch new ones.
		a.log.Warn("key of session tokens is not kept", "err", err)
	}
	hosts, data := dhcp.NewTable(), metadata.NewTable()
	a.hosts = hosts
	if a.pair, err = a.newPair(cfg); err != nil {
		return a, err
	}
	storage := dhcp.ServerOptions{Logger: a.log, Now: opts.Now, Leases: leases{a.leases, a.lost("leases")}, Sockets: a.sockets}
	if a.pair != nil {
		storage.Leases, storage.Shared = nil, a.pair.leases
	}
	a.dhcp = dhcp.NewServer(hosts, storage)
	a.metadata = metadata.NewServer(data, metadata.Options{
		Logger: a.log, TokenKey: key, Hosts: cfg.Metadata.Hosts, Limits: limits(cfg),
		Passwords: passwords{a}, Sockets: a.sockets,
	})
	parts := engine.Parts{
		Dir: a.dir, Store: a.units, Kernel: a.kernel, Powers: powers,
		DHCPTable: hosts, DHCP: a.dhcp, GuestData: data, Metadata: a.metadata, Log: a.log, Now: opts.Now,
		Observe: func(outcome string, took time.Duration) { a.metrics.ObserveChange(metrics.Outcome(outcome), took) },
	}
	if a.pair != nil {
		parts.Shared = a.pair.passwords
	}
	a.engine = engine.New(parts, settings(cfg))
	if a.companion, err = newCompanion(a, cfg); err != nil {
		return a, err
	}
	if cfg.CloudStack.Enabled {
		if a.cloudstack, err = cloudstack.New(door{a.engine}, records{a.dialect, a.lost("cloudstack")}, a.log); err != nil {
			return a, fmt.Errorf("CloudStack dialect: %w", err)
		}
		a.cloudstack.DropDir, a.cloudstack.Databags = cfg.DropDir, cfg.CloudStack.Databags
	}
	a.metrics = a.newMetrics()
	a.token = metrics.NewToken(cfg.API.MetricsToken, a.log)
	if a.socket, err = api.ListenUnix(cfg.API.Socket, group, a.sockets); err != nil {
		return a, fmt.Errorf("socket: %w", err)
	}
	a.header = api.HeaderFor(cfg.API.MaxUserDataGet)
	if cfg.API.Listen != "" {
		if a.tcp, err = api.Listen(context.Background(), cfg.API.Listen, api.ListenOptions{
			Cert: cfg.API.Cert, Key: cfg.API.Key, Refuse: a.engine.GuestSide, Sockets: a.sockets, Log: a.log,
		}); err != nil {
			return a, fmt.Errorf("api.listen: %w", err)
		}
	}
	return a, nil
}

// close frees what New has opened.
func (a *Agent) close() {
	if a.tcp != nil {
		a.tcp.Close()
	}
	if a.socket != nil {
		a.socket.Close()
	}
	if a.kernel != nil {
		a.kernel.Close()
	}
	if a.dir != nil {
		a.dir.Close()
	}
	if a.pair != nil {
		a.pair.client.Close()
	}
	for _, store := range []*state.Store{a.units, a.leases, a.users, a.jobs, a.dialect} {
		if store == nil {
			continue
		}
		if err := store.Close(); err != nil {
			a.log.Error("state directory", "err", err)
		}
	}
}

// checkStores makes sure that all stores can be read before the first one is opened, which may tidy it up:
// what a newer release wrote stays as it is.
func checkStores(dir string, names []string) error {
	var faults []error
	for _, name := range names {
		if err := state.Check(filepath.Join(dir, name)); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("%w; nothing was changed: install that release again, or move %s away to begin anew", errors.Join(faults...), dir)
}

// openStore opens one of the stores in the state directory and reports what is wrong with it.
func (a *Agent) openStore(dir string) (*state.Store, error) {
	store, report, err := state.Open(dir, state.Options{Logger: a.log})
	if err != nil {
		return nil, fmt.Errorf("state directory: %s: %w", dir, err)
	}
	if !report.Empty() {
		a.log.Error("state was damaged", "dir", dir, "report", report.String())
		a.notes = append(a.notes, fmt.Sprintf("%s: %s", dir, report))
	}
	return store, nil
}

// lost returns what reports records of a store that cannot be read. Opening a store finds most of them;
// it does not read everything.
func (a *Agent) lost(name string) func(error) {
	return func(err error) {
		a.log.Error("records are lost", "store", name, "err", err)
		note := fmt.Sprintf("%s: records are lost: %v", name, err)
		a.mu.Lock()
		defer a.mu.Unlock()
		if !slices.Contains(a.notes, note) {
			a.notes = append(a.notes, note)
		}
	}
}

// Run serves until ctx ends, then stops and returns nil; an error is what ended it before. It is called
// once.
//
// What guests and programs see of a stop is short, and they are served to the end of what they began:
// the API takes no more requests first, then changes stop, then HTTP for guests, and DHCP last.
func (a *Agent) Run(ctx context.Context) error {
	defer a.close()
	if err := a.engine.Restore(); err != nil {
		return err
	}
	g, broken := errgroup.WithContext(context.WithoutCancel(ctx))
	programs, changes, guests, network := newStage(g), newStage(g), newStage(g), newStage(g)
	network.start(a.kernel.Run)
	network.start(a.dhcp.Run)
	guests.start(a.metadata.Run)
	programs.start(func(ctx context.Context) error {
		mux := http.NewServeMux()
		mux.Handle("/metrics", a.metrics.Handler(nil))
		mux.Handle("/", a.metrics.Count("socket", a.onceReady(ctx, api.Local(a, api.LocalOptions{
			Ready: a.isReady, Healthy: a.isHealthy, Companion: a.companion.api, Leases: a.engine, Backup: a.Backup, More: a.dialectHandlers(), Log: a.log,
		}))))
		return api.Serve(ctx, a.socket, mux, api.HeaderFor(maxUserData), a.log)
	})
	if a.tcp != nil {
		programs.start(func(ctx context.Context) error {
			return api.Serve(ctx, a.tcp, a.onceReady(ctx, a.companion.remote(a)), a.header, a.log)
		})
	}
	changes.start(func(ctx context.Context) error { return a.change(ctx, changes) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-broken.Done():
		}
		for _, s := range []*stage{programs, changes, guests, network} {
			s.stop()
		}
		return nil
	})
	return g.Wait()
}

// change brings the drop directory into force and what follows it, in the stage that it runs in.
func (a *Agent) change(ctx context.Context, changes *stage) error {
	err := a.engine.Load(ctx)
	if err == nil {
		select {
		case <-a.dhcp.Started():
		case <-ctx.Done():
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	a.sockets.Prune()
	changes.start(a.dir.Run)
	changes.start(a.engine.Run)
	changes.start(a.companion.run)
	close(a.ready)
	a.log.Info("serving", "drop_dir", a.dir.Path(), "after", time.Since(a.started).Round(time.Millisecond))
	if a.opts.Ready != nil {
		a.opts.Ready()
	}
	return nil
}

// stage is what starts and stops together.
type stage struct {
	group *errgroup.Group
	ctx   context.Context
	end   context.CancelFunc
	parts sync.WaitGroup
}

func newStage(g *errgroup.Group) *stage {
	s := &stage{group: g}
	s.ctx, s.end = context.WithCancel(context.Background())
	return s
}

// start runs a part until stop. It is called before stop, or by a part of the stage.
func (s *stage) start(run func(context.Context) error) {
	s.parts.Add(1)
	s.group.Go(func() error {
		defer s.parts.Done()
		return run(s.ctx)
	})
}

// stop ends all parts and waits until they have.
func (s *stage) stop() {
	s.end()
	s.parts.Wait()
}

// onceReady has requests wait until the agent is ready: before, it does not know all that is in force,
// and whoever asks has no need to notice that it was restarted. Those for its health and status do not
// wait. Where ctx ends first, they are refused.
func (a *Agent) onceReady(ctx context.Context, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/healthz", "/readyz", "/metrics", "/v1/status":
			next.ServeHTTP(w, r)
			return
		}
		select {
		case <-a.ready:
		case <-r.Context().Done():
			return
		case <-ctx.Done():
			if a.isReady() == nil {
				break // it ends, but knows
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"error":"the daemon is stopping"}`+"\n")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Reload reads the configuration again and the whole drop directory. What can change does; a fault
// keeps the old configuration in force and is reported.
func (a *Agent) Reload() error {
	cfg, err := LoadConfig(a.opts.Config)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.engine.Rescan()
	if err != nil {
		a.faults = unjoin(err)
		for _, f := range a.faults {
			a.log.Error("configuration not put in force; the old one stays", "fault", f)
		}
		return err
	}
	old := a.cfg
	a.later = restartKeys(old, cfg)
	if a.tcp != nil && api.HeaderFor(cfg.API.MaxUserDataGet) > a.header {
		a.later = append(a.later, "api.max_userdata_get") // the listener reads no more than at its start
	}
	if len(a.later) > 0 {
		a.log.Warn("some keys change at the next start only", "keys", a.later)
		// They go on being compared with what is in force.
		cfg.DropDir, cfg.StateDir = old.DropDir, old.StateDir
		api := old.API
		api.MaxUserData, api.MaxUserDataGet, api.MaxBundle = cfg.API.MaxUserData, cfg.API.MaxUserDataGet, cfg.API.MaxBundle
		api.MetricsToken = cfg.API.MetricsToken
		cfg.API, cfg.CloudStack, cfg.Shared = api, old.CloudStack, old.Shared
	}
	a.cfg, a.faults, a.loaded = cfg, nil, time.Now()
	a.logs.set(cfg.Log)
	a.metadata.SetLimits(limits(cfg))
	a.metadata.SetHosts(cfg.Metadata.Hosts)
	a.companion.api.SetLimits(apiLimits(cfg))
	a.token.SetFile(cfg.API.MetricsToken)
	a.engine.Set(settings(cfg))
	a.log.Info("configuration in force", "files", cfg.Files)
	return nil
}

// isHealthy tells whether the agent works: whether its one writer can still be reached.
func (a *Agent) isHealthy() error {
	done := make(chan struct{})
	go func() {
		a.engine.Alive()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(healthTime):
		return errors.New("the engine does not answer")
	}
}

const healthTime = 5 * time.Second

// Healthy is isHealthy for the watchdog.
func (a *Agent) Healthy() error { return a.isHealthy() }

func (a *Agent) isReady() error {
	select {
	case <-a.ready:
		return nil
	default:
		return errors.New("starting: the drop directory is being read")
	}
}

func settings(cfg *Config) engine.Settings {
	return engine.Settings{PublicInterface: cfg.PublicInterface, TokensRequired: cfg.Metadata.TokensRequired}
}

func limits(cfg *Config) metadata.Limits {
	return metadata.Limits{Rate: cfg.Metadata.GuestRate, Connections: cfg.Metadata.GuestConns}
}

// tokenKey returns the key that signs session tokens, the same at every start.
func tokenKey(store *state.Store) ([]byte, error) {
	const name = "key/tokens"
	key, err := store.Get(name)
	if err == nil && len(key) == 32 {
		return key, nil
	}
	key = randomKey()
	var batch state.Batch
	batch.Put(name, key)
	return key, store.Commit(&batch)
}

func unjoin(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// passwords hands the engine to the password server, which is made before it.
type passwords struct{ a *Agent }

func (p passwords) Password(ctx context.Context, vm string) (string, bool, error) {
	return p.a.engine.Password(ctx, vm)
}
func (p passwords) Taken(ctx context.Context, vm, password string) error {
	return p.a.engine.Taken(ctx, vm, password)
}
