package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vragent/netcfg/nstest"
)

// corpus reads what the fuzz targets of the given folders keep: the arguments of each entry.
func corpus(t *testing.T, folders ...string) (entries [][][]byte) {
	t.Helper()
	for _, folder := range folders {
		files, err := filepath.Glob("../../" + folder + "/*")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no corpus, %v", folder, err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(data)), "\n")
			var entry [][]byte
			for _, line := range lines[1:] { // after the version
				_, quoted, _ := strings.Cut(line, "(")
				if text, err := strconv.Unquote(strings.TrimSuffix(quoted, ")")); err == nil {
					entry = append(entry, []byte(text))
				}
			}
			if len(entry) > 0 {
				entries = append(entries, entry)
			}
		}
	}
	return entries
}

// mutate returns b, or something like it.
func mutate(rng *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	for range rng.IntN(4) {
		if len(b) == 0 {
			return b
		}
		i := rng.IntN(len(b))
		switch rng.IntN(5) {
		case 0:
			b[i] ^= 1 << rng.IntN(8)
		case 1:
			b[i] = byte(rng.IntN(256))
		case 2:
			b = b[:i]
		case 3:
			b = append(b[:i], b[min(i+1+rng.IntN(8), len(b)):]...)
		case 4:
			b = append(b[:i:i], append(bytes.Repeat(b[i:i+1], rng.IntN(300)), b[i:]...)...)
		}
	}
	return b
}

// TestFaultMalformedInput sends a hundred thousand messages that no honest program sends: DHCP, requests to
// the metadata and the password server, calls of the API. The daemon goes on as if nothing had been.
func TestFaultMalformedInput(t *testing.T) {
	binary := fault(t)
	if !nstest.Enter(t) {
		return
	}
	need(t, "prlimit", "udhcpc")
	const datagrams, requests, calls = 50_000, 35_000, 15_000
	rng := seeded(t)
	r := newRouter(t)
	r.configure(t, "metadata: {guest_rate: 0}\n")
	r.logLevel(t, "info")
	a, hostile := r.guest(t, "a", "va", macA), r.guest(t, "hostile", "vb", macB)
	r.Bridge(t, "eth0", "va", "vb")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	hostile.AddAddr(t, "eth0", "10.1.1.35/24")
	p := r.boot(t, binary)
	r.put(t, "networks/guest-1.yaml", network+"pool: {from: 10.1.1.100, to: 10.1.1.250}\n")
	r.put(t, "vms/a/user-data", "mine")
	r.put(t, "vms/a/vm.yaml", vm("a", "guest-1", macA, "10.1.1.34"))
	r.put(t, "vms/b/vm.yaml", vm("b", "guest-1", macB, "10.1.1.35"))
	r.applied(t)
	lease(t, a, "10.1.1.34")
	client := asGuest(t, a, "10.1.1.34")
	until(t, client, "user-data", "mine")
	idle := descriptors(t, p)
	sources := func(n int) []*rand.Rand {
		list := make([]*rand.Rand, n)
		for i := range list {
			list[i] = rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		}
		return list
	}

	// DHCP.
	station := newStation(t, hostile)
	packets := corpus(t, "dhcp/testdata/fuzz/FuzzAnswer", "dhcp/testdata/fuzz/FuzzParseRequest", "dhcp/testdata/fuzz/FuzzServerPath")
	heard := func() int { return int(r.counted(t, "vragent_dhcp_messages_total")) }
	for before, read := heard(), 0; read < datagrams; {
		const batch = 400 // no more than is on its way at a time
		for range batch {
			entry := packets[rng.IntN(len(packets))]
			if _, err := station.conn.WriteTo(mutate(rng, entry[rng.IntN(len(entry))]), servers); err != nil {
				t.Fatalf("after %d datagrams: %v", read, err)
			}
		}
		// The network may lose some. Those that are read are counted.
		goal := read + batch/2
		nstest.Poll(t, waitTime, "datagrams to be read", func() bool { read = heard() - before; return read >= goal })
	}

	// HTTP, from a guest's address; each on a connection of its own, since most are the last on theirs.
	texts := corpus(t, "metadata/testdata/fuzz/FuzzRequest", "metadata/testdata/fuzz/FuzzToken")
	dial := func(ctx context.Context, port string) (net.Conn, error) {
		return hostile.Dial(ctx, &net.Dialer{Timeout: waitTime}, "tcp", "10.1.1.1:"+port)
	}
	const workers = 4
	var work sync.WaitGroup
	for _, rng := range sources(workers) {
		work.Go(func() {
			for i := range requests / workers {
				entry := texts[rng.IntN(len(texts))]
				port := "80"
				if i%4 == 0 {
					port = "8080"
				}
				if err := say(t.Context(), func(ctx context.Context) (net.Conn, error) { return dial(ctx, port) }, mutate(rng, entry[rng.IntN(len(entry))])); err != nil {
					t.Errorf("request %d: %v", i, err)
					return
				}
			}
		})
	}
	work.Wait()

	// The API, as anybody who may use the socket.
	parameters := corpus(t, "agent/internal/api/wire/testdata/fuzz/FuzzRequest")
	bundles := corpus(t, "agent/internal/api/bundle/testdata/fuzz/FuzzReceive")
	commands := []string{"pushNetwork", "pushVirtualMachine", "listVirtualMachines", "queryAsyncJobResult", "createUser", "login", "updateVirtualMachine", "listApis"}
	for _, rng := range sources(workers) {
		work.Go(func() {
			for i := range calls / workers {
				if err := say(t.Context(), func(ctx context.Context) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, "unix", r.dir+"/api.sock")
				}, call(rng, parameters, bundles, commands)); err != nil {
					t.Errorf("call %d: %v", i, err)
					return
				}
			}
		})
	}
	work.Wait()

	until(t, client, "user-data", "mine")
	lease(t, a, "10.1.1.34")
	r.put(t, "vms/a/user-data", "other")
	until(t, client, "user-data", "other")
	if result := r.wait(t, "vms/a", "networks/guest-1.yaml"); result.State != "applied" {
		t.Errorf("wait: %+v", result)
	}
	nstest.Poll(t, waitTime, fmt.Sprintf("descriptors to go back to %d", idle), func() bool { return descriptors(t, p) <= idle+2 })
	if faults := r.faultsOf(t); faults != "" {
		t.Errorf("faults: %s", faults)
	}
	end(t, p)
}

// call makes up a call of the API.
func call(rng *rand.Rand, parameters, bundles [][][]byte, commands []string) []byte {
	pick := func(corpus [][][]byte) []byte {
		entry := corpus[rng.IntN(len(corpus))]
		return mutate(rng, entry[rng.IntN(len(entry))])
	}
	command := commands[rng.IntN(len(commands))]
	var request bytes.Buffer
	switch rng.IntN(4) {
	case 0: // everything in the URL, as it comes
		fmt.Fprintf(&request, "GET /client/api?command=%s&%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", command, pick(parameters))
	case 1: // a form
		body := fmt.Sprintf("command=%s&id=x&%s", command, pick(parameters))
		fmt.Fprintf(&request, "POST /client/api HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	case 2: // an archive
		body := pick(bundles)
		fmt.Fprintf(&request, "POST /client/api?command=pushBundle&response=json&sha256=%064x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-tar\r\nContent-Length: %d\r\n\r\n", rng.Uint64(), len(body))
		request.Write(body)
	case 3: // the commands' own
		paths := []string{"/v1/wait", "/v1/users", "/v1/leases/", "/v1/jobs/", "/v1/explain?subject=", "/v1/backup"}
		methods := []string{"GET", "POST", "DELETE", "PUT"}
		body := pick(parameters)
		fmt.Fprintf(&request, "%s %s%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
			methods[rng.IntN(len(methods))], paths[rng.IntN(len(paths))], mutate(rng, []byte("nobody")), len(body), body)
	}
	return request.Bytes()
}

// say sends bytes over a new connection, says that this is all, and reads what is answered to its end.
// That the other end has had enough before is no error.
func say(ctx context.Context, dial func(context.Context) (net.Conn, error), data []byte) error {
	conn, err := dial(ctx)
	if err != nil {
		return fmt.Errorf("%w\n%q", err, data)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(waitTime)); err != nil {
		return err
	}
	if _, err := conn.Write(data); err == nil {
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("not answered, nor closed: %q", data)
	}
	return nil
}
