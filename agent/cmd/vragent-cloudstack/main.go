// Command vragent-cloudstack stands on a CloudStack router in the place of two programs that its
// management server starts there, and answers to their names:
//
//	update_config.py NAME [false]   takes one dropped file in
//	vr_cfg.sh -c FILE               takes an aggregated file in
//
// What guests are served from goes to the agent; everything else goes to the originals, which lie
// beside it with .cloudstack appended to their names.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"vragent/agent/internal/cloudstack"
)

// router is where things are.
type router struct {
	bin string // the folder of the diverted programs
	in  cloudstack.Intake
	out io.Writer // the management server reads it
	err io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	client := cloudstack.Dial(cmp.Or(os.Getenv("VRAGENT_SOCKET"), "/run/vragent/api.sock"))
	// A router that boots runs its scripts while the agent is starting.
	client.Patience = 20 * time.Second
	r := &router{
		bin: cmp.Or(os.Getenv("VRAGENT_CLOUD_BIN"), "/opt/cloud/bin"),
		in: cloudstack.Intake{
			Taker:   client,
			Archive: cloudstack.Archive{Dir: cmp.Or(os.Getenv("VRAGENT_CLOUD_DIR"), "/var/cache/cloud")},
		},
		out: os.Stdout, err: os.Stderr,
	}
	os.Exit(r.run(ctx, filepath.Base(os.Args[0]), os.Args[1:]))
}

// run returns the exit status of the program called name.
func (r *router) run(ctx context.Context, name string, args []string) int {
	switch name {
	case "update_config.py":
		return r.updateConfig(ctx, os.Environ(), args)
	case "vr_cfg.sh":
		return r.vrConfig(ctx, args)
	}
	fmt.Fprintln(r.err, "vragent-cloudstack: call it as update_config.py or vr_cfg.sh, by a symbolic link of that name")
	return 64
}
