package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime/pprof"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vragent/dhcp"
)

// The network of all measurements: the server on eth0, hosts and pool in parts of their own.
var (
	subnet    = netip.MustParsePrefix("10.66.0.0/16")
	serverIP  = netip.MustParseAddr("10.66.0.1")
	clientIP  = netip.MustParseAddr("10.66.0.2")
	hostsFrom = netip.MustParseAddr("10.66.16.0")
	poolFrom  = netip.MustParseAddr("10.66.128.0")
	poolTo    = netip.MustParseAddr("10.66.159.255")
)

func hostMAC(i int) dhcp.MAC {
	return dhcp.MAC{2, 0, 0x66, byte(i >> 16), byte(i >> 8), byte(i)}
}

func hostIP(i int) netip.Addr {
	first := hostsFrom.As4()
	n := binary.BigEndian.Uint32(first[:]) + uint32(i)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// setup is what a server is measured with.
type setup struct {
	hosts int  // known clients
	pool  bool // a pool for the others
	probe bool
}

const serverVariable = "VRAGENT_DHCP_BENCH_SERVER"

// TestMain makes the test binary the server that is measured, when it is started as one.
func TestMain(m *testing.M) {
	if os.Getenv(serverVariable) == "" {
		os.Exit(m.Run())
	}
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve runs the server of package dhcp on eth0 until SIGTERM.
func serve() error {
	hosts, err := strconv.Atoi(os.Getenv("HOSTS"))
	if err != nil {
		return err
	}
	table := dhcp.NewTable()
	n := &dhcp.Network{Name: "bench", Subnet: subnet, Gateway: serverIP, ServerID: serverIP, LeaseTime: time.Hour,
		Options: dhcp.Options{6: {10, 66, 0, 1}, 15: []byte("bench.internal")}}
	if os.Getenv("POOL") != "" {
		n.Pool = &dhcp.Pool{From: poolFrom, To: poolTo, Probe: os.Getenv("PROBE") != ""}
	}
	table.SetNetwork(n)
	for i := range hosts {
		table.SetHost(&dhcp.Host{Network: "bench", VM: "vm", Hostname: fmt.Sprintf("vm-%d", i), MAC: hostMAC(i), IP: hostIP(i), Default: true})
	}
	leases, err := openFileLeases(os.Getenv("LEASES"))
	if err != nil {
		return err
	}
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	server := dhcp.NewServer(table, dhcp.ServerOptions{Leases: leases})
	server.SetDevices([]dhcp.Device{{Index: link.Index, Name: "eth0", HardwareAddr: dhcp.MAC(link.HardwareAddr), MTU: link.MTU, Networks: []string{"bench"}}})
	if name := os.Getenv("CPUPROFILE"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	go func() {
		for len(server.Serving()) == 0 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		fmt.Println("serving")
	}()
	err = server.Run(ctx)
	stats := server.Stats()
	fmt.Printf("messages %v dropped %d unsent %d commits %d records %d\n", stats.Messages, stats.Dropped, stats.Unsent, leases.commits, leases.records)
	return err
}

// fileLeases is a log of records with checksums. Each commit is one write and one fdatasync.
type fileLeases struct {
	mu      sync.Mutex
	file    *os.File
	buf     []byte
	commits int
	records int
}

func openFileLeases(name string) (*fileLeases, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &fileLeases{file: f}, nil
}

func (l *fileLeases) Load(fn func(dhcp.Lease) error) error {
	if _, err := l.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	type key struct {
		network string
		ip      netip.Addr
	}
	newest := make(map[key]dhcp.Lease)
	for r := bufio.NewReader(l.file); ; {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			break // the end, or a torn tail
		}
		record := make([]byte, binary.BigEndian.Uint32(head[:])&0xffff)
		if _, err := io.ReadFull(r, record); err != nil || crc32.ChecksumIEEE(record) != binary.BigEndian.Uint32(head[4:]) {
			break
		}
		var lease dhcp.Lease
		if err := lease.UnmarshalBinary(record); err != nil {
			return err
		}
		newest[key{lease.Network, lease.IP}] = lease
	}
	for _, lease := range newest {
		if err := fn(lease); err != nil {
			return err
		}
	}
	return nil
}

func (l *fileLeases) Commit(_ context.Context, leases []dhcp.Lease) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = l.buf[:0]
	for i := range leases {
		start := len(l.buf)
		l.buf = append(l.buf, make([]byte, 8)...)
		buf, err := leases[i].AppendBinary(l.buf)
		if err != nil {
			return err
		}
		record := buf[start+8:]
		binary.BigEndian.PutUint32(buf[start:], uint32(len(record)))
		binary.BigEndian.PutUint32(buf[start+4:], crc32.ChecksumIEEE(record))
		l.buf = buf
	}
	if _, err := l.file.Write(l.buf); err != nil {
		return err
	}
	l.commits++
	l.records += len(leases)
	if err := unix.Fdatasync(int(l.file.Fd())); err != nil {
		return errors.Join(errors.New("fdatasync"), err)
	}
	return nil
}
