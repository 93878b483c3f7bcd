package api

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ListenOptions are the settings of the TCP listener.
type ListenOptions struct {
	// Cert and Key are PEM files. Both are needed unless the address is a loopback one; both may
	// be empty there. They are read again when they change.
	Cert, Key string
	// Refuse tells whether a connection is not to be answered: one to a serving address of a guest
	// network, or one that came in by a guest device. The device is empty where the kernel does not
	// tell. Nil refuses none. It is called for each connection and may not block.
	Refuse  func(local netip.Addr, device string) bool
	Sockets Sockets      // opens the socket; nil: it ends with the process
	Log     *slog.Logger // nil discards
}

const (
	// maxConns bounds the open connections, and those of one client.
	maxConns       = 512
	maxClientConns = 64
)

// ErrTLSRequired is returned for an address off loopback without certificate and key.
var ErrTLSRequired = errors.New("not a loopback address, so tls.cert and tls.key are required")

// CheckListen tells what is wrong with an address to listen on and its certificate.
func CheckListen(address string, cert, key string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%q: want ADDRESS:PORT: %w", address, err)
	}
	switch {
	case (cert == "") != (key == ""):
		return errors.New("tls.cert and tls.key go together")
	case cert == "" && !ap.Addr().Unmap().IsLoopback():
		return fmt.Errorf("%s: %w", address, ErrTLSRequired)
	case cert != "":
		_, err := tls.LoadX509KeyPair(cert, key)
		return err
	}
	return nil
}

// Listen listens on a TCP address, with TLS where there is a certificate.
func Listen(ctx context.Context, address string, opts ListenOptions) (net.Listener, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if err := CheckListen(address, opts.Cert, opts.Key); err != nil {
		return nil, err
	}
	ap := netip.MustParseAddrPort(address)
	network := "tcp6"
	if ap.Addr().Unmap().Is4() {
		network = "tcp4"
	}
	sockets := opts.Sockets
	if sockets == nil {
		sockets = ownSockets{}
	}
	fd, err := sockets.Open(tcpSocket,
		func(fd int) error { return checkTCP(fd, ap, network) },
		func() (int, error) { return openTCP(ctx, address, network) })
	if err != nil {
		return nil, err
	}
	ln, err := listener(fd)
	if err != nil {
		return nil, err
	}
	guard := &guard{Listener: ln, opts: opts, network: network, clients: map[netip.Addr]int{}}
	if opts.Cert == "" {
		return guard, nil
	}
	pair := &keyPair{cert: opts.Cert, key: opts.Key, log: opts.Log}
	return tls.NewListener(guard, &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: pair.get,
	}), nil
}

func openTCP(ctx context.Context, address, network string) (int, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = tellDevice(int(fd), network) })
		return errors.Join(err, failed)
	}}
	ln, err := config.Listen(ctx, network, address)
	if err != nil {
		return -1, err
	}
	return descriptor(ln.(*net.TCPListener))
}

// checkTCP tells what a socket of the process before this one lacks to be what openTCP returns.
func checkTCP(fd int, want netip.AddrPort, network string) error {
	domain := unix.AF_INET6
	if network == "tcp4" {
		domain = unix.AF_INET
	}
	bound, err := checkListening(fd, domain)
	if err != nil {
		return err
	}
	var got netip.AddrPort
	switch at := bound.(type) {
	case *unix.SockaddrInet4:
		got = netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
	case *unix.SockaddrInet6:
		got = netip.AddrPortFrom(netip.AddrFrom16(at.Addr), uint16(at.Port))
	}
	if want = netip.AddrPortFrom(want.Addr().Unmap().WithZone(""), want.Port()); got != want {
		return fmt.Errorf("bound to %s, want %s", got, want)
	}
	return tellDevice(fd, network)
}

// guard hands out the connections that may be answered.
type guard struct {
	net.Listener
	opts    ListenOptions
	network string

	mu      sync.Mutex
	open    int
	clients map[netip.Addr]int
}

// Accept implements net.Listener. Connections that are not to be answered are reset.
func (g *guard) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp := conn.(*net.TCPConn)
		if why := g.admit(tcp); why != "" {
			g.opts.Log.Debug("connection refused", "from", conn.RemoteAddr(), "to", conn.LocalAddr(), "reason", why)
			_ = tcp.SetLinger(0)
			_ = tcp.Close()
			continue
		}
		return &guardedConn{TCPConn: tcp, guard: g, client: addrOf(tcp.RemoteAddr())}, nil
	}
}

func (g *guard) admit(conn *net.TCPConn) (why string) {
	if g.opts.Refuse != nil && g.opts.Refuse(addrOf(conn.LocalAddr()), deviceOf(conn, g.network)) {
		return "came by a guest device or to a serving address"
	}
	client := addrOf(conn.RemoteAddr())
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.open >= maxConns:
		return "too many connections"
	case g.clients[client] >= maxClientConns:
		return "too many connections of one client"
	}
	g.open++
	g.clients[client]++
	return ""
}

func (g *guard) leave(client netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	if g.clients[client]--; g.clients[client] == 0 {
		delete(g.clients, client)
	}
}

func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

type guardedConn struct {
	*net.TCPConn
	guard  *guard
	client netip.Addr
	once   sync.Once
}

// Close implements net.Conn.
func (c *guardedConn) Close() error {
	c.once.Do(func() { c.guard.leave(c.client) })
	return c.TCPConn.Close()
}

// tellDevice asks the kernel to keep the device of each connection's first packet, ip(7) IP_PKTINFO
// and ipv6(7) IPV6_RECVPKTINFO; accepted sockets inherit that.
func tellDevice(fd int, network string) error {
	if network == "tcp4" {
		return os.NewSyscallError("IP_PKTINFO", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
	}
	return os.NewSyscallError("IPV6_RECVPKTINFO", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
}

// deviceOf returns the device that the connection came in by, "" where the kernel does not tell.
func deviceOf(conn *net.TCPConn, network string) string {
	raw, err := conn.SyscallConn()
	if err != nil {
		return ""
	}
	index := 0
	err = raw.Control(func(fd uintptr) { index = incomingDevice(fd, network) })
	if err != nil || index == 0 {
		return ""
	}
	ifi, err := net.InterfaceByIndex(index)
	if err != nil {
		return ""
	}
	return ifi.Name
}

// incomingDevice reads the control messages that a TCP socket keeps of the packet that opened it.
func incomingDevice(fd uintptr, network string) int {
	level, option := unix.IPPROTO_IP, unix.IP_PKTOPTIONS
	if network != "tcp4" {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_2292PKTOPTIONS
	}
	buf := make([]byte, 256)
	n, err := getsockopt(fd, level, option, buf)
	if err != nil {
		return 0
	}
	messages, err := unix.ParseSocketControlMessage(buf[:n])
	if err != nil {
		return 0
	}
	for _, m := range messages {
		switch {
		// struct in_pktinfo begins with the index; in struct in6_pktinfo an address comes before it.
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 4:
			return int(binary.NativeEndian.Uint32(m.Data))
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 20:
			return int(binary.NativeEndian.Uint32(m.Data[16:]))
		}
	}
	return 0
}

// keyPair is a certificate that follows its files.
type keyPair struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex
	stamp   string // of the files that pair is of
	tried   string // of the files that were last read
	pair    *tls.Certificate
	checked time.Time
}

// checkTime is how long a certificate is used without a look at its files.
const checkTime = time.Second

// get implements tls.Config.GetCertificate: files that changed are read again, and while they are
// no good the certificate that they held before stays in use.
func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pair != nil && time.Since(k.checked) < checkTime {
		return k.pair, nil
	}
	k.checked = time.Now()
	stamp := stampOf(k.cert) + " " + stampOf(k.key)
	if k.pair != nil && (stamp == k.stamp || stamp == k.tried) {
		return k.pair, nil
	}
	k.tried = stamp
	pair, err := tls.LoadX509KeyPair(k.cert, k.key)
	switch {
	case err == nil:
		if k.pair != nil {
			k.log.Info("certificate read again", "file", k.cert)
		}
		k.pair, k.stamp = &pair, stamp
	case k.pair != nil:
		k.log.Error("certificate not read, the old one stays in use", "file", k.cert, "reason", err)
	default:
		return nil, err
	}
	return k.pair, nil
}

// stampOf changes when the file does.
func stampOf(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	inode := uint64(0)
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = sys.Ino
	}
	return fmt.Sprintf("%d %d %d", info.ModTime().UnixNano(), info.Size(), inode)
}
