package metadata_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vragent/netcfg/nstest"
)

// loadEnv makes TestLoad a crowd of guests: the value says what they do.
const loadEnv = "VRAGENT_METADATA_LOAD"

// loaded is what a crowd of guests saw.
type loaded struct {
	Requests, Errors int
	Median, P99      time.Duration // of one request with its connection
}

var crawl = []string{
	"/latest/meta-data/instance-id", "/latest/user-data", "/latest/meta-data/", "/latest/meta-data/availability-zone",
	"/latest/meta-data/instance-id", "/latest/meta-data/local-hostname", "/latest/meta-data/local-ipv4", "/latest/meta-data/public-hostname",
	"/latest/meta-data/public-ipv4", "/latest/meta-data/public-keys", "/latest/meta-data/service-offering", "/latest/meta-data/vm-id",
}

// TestLoad is the load of the figures, in a process of its own.
//
//	crawl GUESTS AT-A-TIME   each guest reads as cloud-init does, a connection for each request
//	wait GUESTS              each guest waits for a change, until the process ends
func TestLoad(t *testing.T) {
	load := strings.Fields(os.Getenv(loadEnv))
	if len(load) == 0 {
		t.Skip("it is the load of the figures")
	}
	guests, err := strconv.Atoi(load[1])
	if err != nil {
		t.Fatal(err)
	}
	// Guest 0 is for whoever floods.
	address := firstGuest.Next()
	var sources []netip.Addr
	for range guests {
		sources = append(sources, address)
		address = address.Next()
	}
	request := func(source netip.Addr, path string) (net.Conn, error) {
		dialer := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: source.AsSlice()}}
		c, err := dialer.Dial("tcp4", "10.0.0.1:80")
		if err != nil {
			return nil, err
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: 10.0.0.1\r\nConnection: close\r\n\r\n")
		return c, err
	}
	if load[0] == "wait" {
		var open []net.Conn
		for _, source := range sources {
			c, err := request(source, "/latest/meta-data/public-keys?wait=300")
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		fmt.Printf("%d wait\n", len(open))
		select {}
	}
	atATime, err := strconv.Atoi(load[2])
	if err != nil {
		t.Fatal(err)
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		took   []time.Duration
		errors atomic.Int64
		next   = make(chan netip.Addr)
	)
	for range atATime {
		wg.Go(func() {
			var mine []time.Duration
			for source := range next {
				for _, path := range crawl {
					start := time.Now()
					c, err := request(source, path)
					if err == nil {
						var reply []byte
						reply, err = io.ReadAll(c)
						if err == nil && !strings.HasPrefix(string(reply), "HTTP/1.1 200 OK\r\n") {
							err = syscall.EPROTO
						}
						c.Close()
					}
					if err != nil {
						errors.Add(1)
					}
					mine = append(mine, time.Since(start))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
		})
	}
	for _, source := range sources {
		next <- source
	}
	close(next)
	wg.Wait()
	slices.Sort(took)
	json.NewEncoder(os.Stdout).Encode(loaded{len(took), int(errors.Load()), took[len(took)/2], took[len(took)*99/100]})
}

// crowd runs TestLoad in the load's namespace.
func (b *bench) crowd(t *testing.T, load string) loaded {
	t.Helper()
	out := b.load.Run(t, "env", loadEnv+"="+load, os.Args[0], "-test.run=^TestLoad$", "-test.timeout=0")
	var seen loaded
	if err := json.Unmarshal([]byte(out[:strings.Index(out, "\n")]), &seen); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return seen
}

func TestFiguresOfCrowds(t *testing.T) {
	if !figures(t) {
		return
	}
	b := newBench(t)
	row := func(what string, values ...any) {
		fmt.Printf("%-34s %s\n", what, fmt.Sprintln(values...)[:len(fmt.Sprintln(values...))-1])
	}

	for _, start := range []func() *peer{
		func() *peer { return b.ours(t, "fasthttp", 5001, 2048, 200) },
		func() *peer { return b.nginx(t, b.tree(t, 1), true) },
	} {
		p := start()
		before := cpu(t, p.process.Pid())
		seen := b.crowd(t, "crawl 5000 200")
		row("boot storm of 5,000, "+p.name, seen.Requests, "requests,", seen.Errors, "errors, median", seen.Median.Round(10*time.Microsecond),
			"99th", seen.P99.Round(10*time.Microsecond), "CPU/request", ((cpu(t, p.process.Pid()) - before) / time.Duration(seen.Requests)).Round(100*time.Nanosecond))
		p.kill()
	}

	p := b.ours(t, "fasthttp", 1001, 32<<10, 200)
	quiet := b.crowd(t, "crawl 200 4")
	flood := b.load.Start(t, "wrk", "-t1", "-c32", "-d60s", "http://10.0.0.1/latest/user-data")
	beside := b.crowd(t, "crawl 200 4")
	flood.Signal(syscall.SIGKILL)
	row("others beside a flood on 32 kept", "median", quiet.Median, "->", beside.Median, "99th", quiet.P99, "->", beside.P99, "errors", beside.Errors)
	flood = b.load.Start(t, "wrk", "-t1", "-c32", "-d60s", "-H", "Connection: close", "http://10.0.0.1/latest/user-data")
	beside = b.crowd(t, "crawl 200 4")
	flood.Signal(syscall.SIGKILL)
	row("others beside a flood of new", "median", quiet.Median, "->", beside.Median, "99th", quiet.P99, "->", beside.P99, "errors", beside.Errors)
	b.crowd(t, "crawl 1000 50")
	row("resident after that, 1,000 VMs", resident(t, p.process.Pid())>>10, "KB")
	p.kill()

	p = b.ours(t, "fasthttp", 5001, 2048, 200)
	alone := resident(t, p.process.Pid())
	waiting := b.load.Start(t, "env", loadEnv+"=wait 5000", os.Args[0], "-test.run=^TestLoad$", "-test.timeout=0")
	waiting.WaitFor(t, "5000 wait\n", 60*time.Second)
	nstest.Poll(t, 20*time.Second, "the server to be quiet", func() bool {
		before := cpu(t, p.process.Pid())
		time.Sleep(500 * time.Millisecond)
		return cpu(t, p.process.Pid())-before < 5*time.Millisecond
	})
	before := cpu(t, p.process.Pid())
	time.Sleep(5 * time.Second)
	row("5,000 guests wait", "resident", resident(t, p.process.Pid())>>10, "KB, of which", alone>>10, "KB before; CPU in 5 s", cpu(t, p.process.Pid())-before)
}
