// Command vragent-cloudstack stands on a CloudStack router in the place of two programs that its
// management server starts there, and answers to their names:
//
//	update_config.py NAME [false]                     takes one dropped file in
//	vr_cfg.sh -c FILE                                 takes an aggregated file in
//	vragent-extension COMMAND PAYLOAD-FILE [TIMEOUT]  takes a call of a NetworkOrchestrator extension in
//
// What guests are served from goes to the agent; everything else goes to the originals, which lie
// beside it with .cloudstack appended to their names.
//
// By its own name it is what the package's scripts and units call as root:
//
//	vragent-cloudstack enter    takes the router over and puts the diversions in force
//	vragent-cloudstack keep     keeps the files of the router's own scripts current
//	vragent-cloudstack dnsmasq  writes dnsmasq's configuration without DHCP
//	vragent-cloudstack leave    gives the router back
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
	site *site
	bin  string // the folder of the diverted programs
	in   cloudstack.Intake
	// calls takes in what an extension is called for.
	calls caller
	out   io.Writer // the management server reads it
	err   io.Writer
	log   *os.File // where the originals log as well

	// become puts a program in the place of this one; it returns only where it cannot. nil: it is
	// started and waited for.
	become func(path string, args, env []string) error
	// flush makes the router's new rules count for connections that are under way.
	flush func() error
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	client := cloudstack.Dial(cmp.Or(os.Getenv("VRAGENT_SOCKET"), "/run/vragent/api.sock"))
	// A router that boots runs its scripts while the agent is starting.
	client.Patience = 20 * time.Second
	r := &router{
		site: &site{daemon: client, start: startProgram, out: os.Stdout, now: time.Now, pause: time.Second},
		bin:  cmp.Or(os.Getenv("VRAGENT_CLOUD_BIN"), "/opt/cloud/bin"),
		in: cloudstack.Intake{
			Taker:   client,
			Archive: cloudstack.Archive{Dir: cmp.Or(os.Getenv("VRAGENT_CLOUD_DIR"), "/var/cache/cloud")},
		},
		calls: client,
		out:   os.Stdout, err: os.Stderr, log: openLog(cmp.Or(os.Getenv("VRAGENT_CLOUD_LOG"), "/var/log/cloud.log")),
		become: syscall.Exec, flush: flushConntrack,
	}
	os.Exit(r.run(ctx, filepath.Base(os.Args[0]), os.Args[1:]))
}

// openLog returns the router's log. Where it cannot be written, the management server is told all
// the same. It is a file in any case, so that what a program leaves running is not waited for.
func openLog(path string) *os.File {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		f, _ = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	return f
}

// run returns the exit status of the program called name.
func (r *router) run(ctx context.Context, name string, args []string) int {
	switch name {
	case "update_config.py":
		return r.updateConfig(ctx, way{env: os.Environ(), out: r.out, replace: true}, args)
	case "vr_cfg.sh":
		return r.vrConfig(ctx, args)
	case "vragent-extension":
		return r.extension(ctx, args)
	case "vragent-cloudstack":
		return r.site.command(ctx, args)
	}
	fmt.Fprintln(r.err, "vragent-cloudstack: call it as update_config.py, vr_cfg.sh or vragent-extension, by a symbolic link of that name")
	return 64
}

// logf writes a line to the log that the originals write to.
func (r *router) logf(format string, args ...any) {
	fmt.Fprintf(r.log, "%s vragent: %s\n", time.Now().Format("2006-01-02 15:04:05"), fmt.Sprintf(format, args...))
}

// sayf tells the management server, and the log.
func (r *router) sayf(format string, args ...any) {
	fmt.Fprintf(r.out, format+"\n", args...)
	r.logf(format, args...)
}
