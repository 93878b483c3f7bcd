package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/status"
)

// member is one server of the cluster.
type member struct {
	endpoint string
	tls      *TLS // nil where it is spoken to in clear
	client   *clientv3.Client
	fault    atomic.Pointer[error] // what the newest connection came to, nil while it works
}

const (
	dialTime = 2 * time.Second
	// A member that could not be reached is tried again after retryAfter at the latest.
	retryAfter = time.Second
	// A connection that nothing comes on for pingAfter is asked whether it is alive, and given up when
	// there is no answer within pingTime. Servers do not bear being asked more often.
	pingAfter = 10 * time.Second
	pingTime  = 2 * time.Second
)

// quietLibraries has the libraries write nothing: faults are returned, and whoever gets them logs them.
var quietLibraries = sync.OnceFunc(func() {
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
})

func newMember(endpoint string, t TLS) (*member, error) {
	quietLibraries()
	m := &member{endpoint: endpoint}
	address, secure := strings.CutPrefix(endpoint, "https://")
	if secure {
		m.tls = &t
	}
	address = strings.TrimPrefix(address, "http://")
	var err error
	m.client, err = clientv3.New(clientv3.Config{
		Endpoints:            []string{address}, // without a scheme: the dialer sees to TLS
		DialKeepAliveTime:    pingAfter,
		DialKeepAliveTimeout: pingTime,
		MaxUnaryRetries:      1, // none: the next member is tried
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(m.dial),
			grpc.WithChainUnaryInterceptor(failFast),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: retryAfter / 10, Multiplier: 2, Jitter: 0.2, MaxDelay: retryAfter},
				MinConnectTimeout: dialTime,
			}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", endpoint, err)
	}
	return m, nil
}

// failFast has a request fail when its member cannot be reached, where the library would wait for it.
func failFast(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, request, reply, conn, append(opts, grpc.WaitForReady(false))...)
}

// dial makes a connection, with the certificates as their files are now.
func (m *member) dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := m.connect(ctx, address)
	if err != nil {
		err = advise(err)
		m.fault.Store(&err)
		return nil, err
	}
	m.fault.Store(nil)
	return &connection{Conn: conn, member: m}, nil
}

func (m *member) connect(ctx context.Context, address string) (net.Conn, error) {
	dialer := net.Dialer{Control: setPatience}
	if m.tls == nil {
		return dialer.DialContext(ctx, "tcp", address)
	}
	config, err := m.tls.load()
	if err != nil {
		return nil, err
	}
	return (&tls.Dialer{NetDialer: &dialer, Config: config}).DialContext(ctx, "tcp", address)
}

// setPatience has the kernel give up a connection on which the other side acknowledges nothing, so that the
// next request gets a new one.
func setPatience(_, _ string, raw syscall.RawConn) error {
	var fault error
	err := raw.Control(func(fd uintptr) {
		fault = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(pingTime/time.Millisecond))
	})
	return errors.Join(err, os.NewSyscallError("TCP_USER_TIMEOUT", fault))
}

// connection remembers what the other side refuses after the handshake: with TLS 1.3, the certificate.
type connection struct {
	net.Conn
	member *member
}

func (c *connection) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, c.note(err)
}

// Write looks for the other side's reason when it fails: that may have come before the first Read.
func (c *connection) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil && c.Conn.SetReadDeadline(time.Now().Add(dialTime)) == nil {
		if _, reason := c.Conn.Read(make([]byte, 1)); isRefusal(reason) {
			err = reason
		}
	}
	return n, c.note(err)
}

func (c *connection) note(err error) error {
	if isRefusal(err) {
		err = advise(err)
		c.member.fault.Store(&err)
	}
	return err
}

// code is the gRPC status of a request that failed.
func code(err error) codes.Code {
	var answer interface{ Code() codes.Code } // of etcd itself
	switch {
	case errors.As(err, &answer):
		return answer.Code()
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	return status.Code(err)
}

// explain says which member failed, and why in the words of the connection rather than the library's.
func (m *member) explain(ctx context.Context, err error) error {
	switch fault := m.fault.Load(); {
	case fault != nil:
		err = *fault
	case context.Cause(ctx) != nil:
		err = advise(context.Cause(ctx))
	default:
		if s, ok := status.FromError(err); ok {
			err = errors.New(s.Message())
		}
	}
	return fmt.Errorf("%s: %w", m.endpoint, err)
}

// advise says what an operator can do about an error of a connection.
func advise(err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("the server's certificate is not signed by tls.ca: %w", err)
	case errors.As(err, &name):
		return fmt.Errorf("the server's certificate is for another name than the endpoint's: %w", err)
	case isRefusal(err):
		return fmt.Errorf("the server refuses tls.cert: %w", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", err)
	}
	return err
}

// isRefusal tells whether an error is an alert of the other side; "remote error" is what crypto/tls calls
// that.
func isRefusal(err error) bool {
	var remote *net.OpError
	return errors.As(err, &remote) && remote.Op == "remote error"
}
