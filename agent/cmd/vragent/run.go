package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"vragent/agent"
	"vragent/agent/internal/handover"
)

func runCommand(opts *options, std stdio) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the daemon in the foreground",
		Long: `Run the daemon in the foreground until SIGTERM or SIGINT. SIGHUP reads the
configuration again and rescans the drop directory; a fault keeps the old
configuration in force.

Exit status 0, or 1 with the reason.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), opts.config, std)
		},
	}
}

// serve runs the agent until ctx ends, and passes on what systemd and signals have to say: READY=1,
// the watchdog, SIGHUP.
func serve(ctx context.Context, config string, std stdio) error {
	// Samples of who allocates take more than 1 MB of the router's memory after a while, and nobody reads
	// them.
	runtime.MemProfileRate = 0
	collect := func(int) {}
	if os.Getenv("GOGC") == "" {
		collect = func(percent int) { debug.SetGCPercent(percent) }
	}
	// What is read at the start stays, so that to collect often would cost a fifth of the time for
	// nothing, and guests may be waiting.
	collect(200)
	version, _ := buildVersion()
	a, err := agent.New(agent.Options{
		Config:  config,
		Version: version,
		Log:     std.err,
		Ready: func() {
			// A router has 256 MB. What lives is small and stays for long, so collecting three times as
			// often costs little and saves a third of the memory.
			collect(30)
			tell(std, daemon.SdNotifyReady)
		},

		Notify:    os.Getenv("NOTIFY_SOCKET"),
		Inherited: handover.Inherited(),
	})
	if err != nil {
		return err
	}

	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	beat, stop := heartbeat(std)
	defer stop()

	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stopping := ctx.Done()
	for {
		select {
		case err := <-ended:
			return err
		case <-hangup:
			tell(std, daemon.SdNotifyReloading)
			_ = a.Reload() // logged, and reported by vragent status
			tell(std, daemon.SdNotifyReady)
		case <-beat:
			// A daemon that does not answer is not reported alive, and systemd replaces it.
			if a.Healthy() == nil {
				tell(std, daemon.SdNotifyWatchdog)
			}
		case <-stopping:
			stopping = nil
			tell(std, daemon.SdNotifyStopping)
		}
	}
}

// heartbeat ticks twice in the time that systemd's watchdog grants, never where there is none.
func heartbeat(std stdio) (beat <-chan time.Time, stop func()) {
	granted, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		fmt.Fprintln(std.err, "vragent: watchdog of systemd: "+err.Error())
	}
	if granted <= 0 {
		return nil, func() {}
	}
	t := time.NewTicker(granted / 2)
	return t.C, t.Stop
}

// tell tells systemd of a state, where it has asked for that.
func tell(std stdio, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		fmt.Fprintln(std.err, "vragent: systemd is not told "+state+": "+err.Error())
	}
}
