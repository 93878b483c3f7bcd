package api_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// served is a server on a unix socket whose handler answers "ok", and those at /slow once told to.
type served struct {
	path   string
	begun  chan struct{} // a request at /slow has
	answer chan struct{}
	stop   func() error
}

func startServer(t *testing.T, sockets api.Sockets) *served {
	t.Helper()
	s := &served{path: filepath.Join(t.TempDir(), "api.sock"), begun: make(chan struct{}), answer: make(chan struct{})}
	ln, err := api.ListenUnix(s.path, "", sockets)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	mux.HandleFunc("POST /slow", func(w http.ResponseWriter, r *http.Request) {
		close(s.begun)
		<-s.answer
		if r.Context().Err() == nil {
			io.WriteString(w, "ok")
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- api.ServePatiently(ctx, ln, mux) }()
	s.stop = func() error {
		cancel()
		return <-done
	}
	return s
}

// connect opens a connection.
func (s *served) connect(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

// say sends a request, and hear reads the answer to it.
func say(conn net.Conn, request string) {
	io.WriteString(conn, request+" HTTP/1.1\r\nHost: vragent\r\nContent-Length: 0\r\n\r\n")
}

func hear(t *testing.T, conn net.Conn) (body string, last bool) {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), res.Close
}

func TestServeAnswersWhatWasBegunBeforeItStops(t *testing.T) {
	s := startServer(t, nil)
	kept, slow, silent := s.connect(t), s.connect(t), s.connect(t)
	say(kept, "GET /")
	if body, last := hear(t, kept); body != "ok" || last {
		t.Fatalf("answer = %q, last %v", body, last)
	}
	say(slow, "POST /slow")
	<-s.begun
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	nstest.Poll(t, 10*time.Second, "nobody to listen", func() bool {
		conn, err := net.Dial("unix", s.path)
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
	})

	if n, err := kept.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a kept connection: %d bytes, %v; want its end", n, err)
	}
	say(silent, "GET /")
	if body, last := hear(t, silent); body != "ok" || !last {
		t.Errorf("answer on a connection of just before = %q, last %v", body, last)
	}
	close(s.answer)
	if body, last := hear(t, slow); body != "ok" || !last {
		t.Errorf("answer to a request under way = %q, last %v", body, last)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Serve() = %v", err)
	}
}

// keptSockets keeps one socket, as whoever starts the next process would.
type keptSockets struct {
	t    *testing.T
	file *os.File
}

func (k *keptSockets) Keeps() bool { return true }

func (k *keptSockets) Open(_ string, check func(int) error, open func() (int, error)) (int, error) {
	if k.file == nil {
		fd, err := open()
		if err != nil {
			return fd, err
		}
		k.file = os.NewFile(uintptr(fd), "kept")
		k.t.Cleanup(func() { k.file.Close() })
	}
	fd, err := syscall.Dup(int(k.file.Fd()))
	return fd, errors.Join(err, syscall.SetNonblock(fd, true), check(fd))
}

func TestRequestBetweenTwoServersIsAnswered(t *testing.T) {
	sockets := &keptSockets{t: t}
	s := startServer(t, sockets)
	say(s.connect(t), "GET /")
	if err := s.stop(); err != nil {
		t.Errorf("Serve() = %v", err)
	}
	between := s.connect(t)
	say(between, "GET /")
	ln, err := api.ListenUnix(s.path, "", sockets)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- api.Serve(ctx, ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "next") }), api.HeaderFor(0), nil)
	}()
	if body, last := hear(t, between); body != "next" || last {
		t.Errorf("answer = %q, last %v", body, last)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve() = %v", err)
	}
	if err := os.Remove(s.path); err != nil {
		t.Errorf("the socket that is kept: %v", err)
	}
	// Without its file nobody finds it any more, and another one is made.
	if _, err := api.ListenUnix(s.path, "", sockets); err == nil {
		t.Error("a socket without a file was taken over")
	}
}
