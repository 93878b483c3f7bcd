package agent

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api"
	"vragent/agent/internal/job"
	"vragent/agent/internal/page"
)

// companion is the companion API with what stands behind it.
type companion struct {
	api       *api.Companion
	users     *account.Users
	directory *account.Directory
	jobs      *job.Queue
}

func newCompanion(a *Agent, cfg *Config) (*companion, error) {
	c := new(companion)
	var err error
	if c.directory, err = account.OpenDirectory(records{a.users, a.lost("users")}, a.log); err != nil {
		return nil, err
	}
	if c.users, err = account.Open(account.Options{
		Store: records{a.users, a.lost("users")}, Authenticators: []account.Authenticator{c.directory}, Links: c.directory, Now: a.opts.Now, Log: a.log,
	}); err != nil {
		return nil, fmt.Errorf("users: %w", err)
	}
	if c.jobs, err = job.OpenQueue(job.Options{Store: records{a.jobs, a.lost("jobs")}, Retention: cfg.API.JobRetention, Now: a.opts.Now, Log: a.log}); err != nil {
		return nil, fmt.Errorf("jobs: %w", err)
	}
	c.api = api.NewCompanion(api.CompanionOptions{
		Backend: a, Drop: a.engine, Users: c.users, Directory: c.directory, Jobs: c.jobs,
		Spool: filepath.Join(cfg.StateDir, "spool"), Limits: apiLimits(cfg), Log: a.log,
	})
	return c, nil
}

func apiLimits(cfg *Config) api.Limits {
	return api.Limits{UserData: cfg.API.MaxUserData, UserDataGet: cfg.API.MaxUserDataGet, Bundle: cfg.API.MaxBundle}
}

// run carries out jobs until ctx ends.
func (c *companion) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.api.Run(ctx) })
	g.Go(func() error { return c.jobs.Run(ctx) })
	g.Go(func() error { return c.directory.Follow(ctx, c.users) })
	return g.Wait()
}

// remote is what the TCP listener answers.
func (c *companion) remote(a *Agent) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(api.Path, c.api)
	mux.Handle(page.Path, page.New(page.Options{Reports: a, Sessions: c.users, Jobs: c.jobs, Log: a.log}))
	mux.Handle("/metrics", a.metrics.Handler(a.token))
	api.Health(mux, a.isHealthy, a.isReady)
	return a.metrics.Count("api", mux)
}
