package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	probeBatch  = 512                    // addresses that are probed together
	probeRepeat = 100 * time.Millisecond // after which those that nobody answered for are asked again
	probeWait   = 250 * time.Millisecond // for answers, in all
	arpSize     = 28
)

// probeARP asks on a device who has the given addresses, and returns who answered, by address. It takes
// probeWait. The question names no sender address, so that it changes nobody's ARP table (RFC 5227,
// section 2.1.1).
func probeARP(index int, mac MAC, targets []probeTarget) (map[uint32]MAC, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket for ARP: %w", err)
	}
	etherTypeARP := hostToNetwork16(unix.ETH_P_ARP)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: etherTypeARP, Ifindex: index}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind packet socket for ARP: %w", err), unix.Close(fd))
	}
	file := os.NewFile(uintptr(fd), "arp")
	answers, err := exchangeARP(file, index, mac, targets)
	return answers, errors.Join(err, file.Close())
}

func exchangeARP(file *os.File, index int, mac MAC, targets []probeTarget) (map[uint32]MAC, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	asked := make(map[uint32]bool, len(targets))
	for _, target := range targets {
		asked[target.addr] = true
	}
	answers := make(map[uint32]MAC)
	start := time.Now()
	for _, until := range []time.Duration{probeRepeat, probeWait} {
		for _, target := range targets {
			if _, ok := answers[target.addr]; ok {
				continue
			}
			if err := askARP(raw.Write, index, mac, target.addr); err != nil {
				return nil, err
			}
		}
		if err := file.SetReadDeadline(start.Add(until)); err != nil {
			return nil, err
		}
		if err := hearARP(raw.Read, mac, asked, answers); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// askARP broadcasts one question.
func askARP(write func(func(uintptr) bool) error, index int, mac MAC, addr uint32) error {
	var packet [arpSize]byte
	copy(packet[:], []byte{0, 1, 8, 0, 6, 4, 0, 1}) // Ethernet, IPv4, request
	copy(packet[8:], mac[:])
	binary.BigEndian.PutUint32(packet[24:], addr)
	to := &unix.SockaddrLinklayer{Protocol: hostToNetwork16(unix.ETH_P_ARP), Ifindex: index, Halen: 6}
	copy(to.Addr[:], broadcastMAC[:])
	var failure error
	err := write(func(fd uintptr) bool {
		failure = unix.Sendto(int(fd), packet[:], 0, to)
		return !errors.Is(failure, unix.EAGAIN)
	})
	if err = errors.Join(err, failure); err != nil {
		return fmt.Errorf("send ARP probe: %w", err)
	}
	return nil
}

// hearARP collects answers until the read deadline.
func hearARP(read func(func(uintptr) bool) error, own MAC, asked map[uint32]bool, answers map[uint32]MAC) error {
	var buf [128]byte
	for {
		var n int
		var failure error
		err := read(func(fd uintptr) bool {
			n, _, failure = unix.Recvfrom(int(fd), buf[:], 0)
			return !errors.Is(failure, unix.EAGAIN)
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("receive ARP: %w", err)
		case failure != nil:
			return fmt.Errorf("receive ARP: %w", failure)
		}
		if addr, mac, ok := parseARP(buf[:n]); ok && asked[addr] && mac != own {
			answers[addr] = mac
		}
	}
}

// parseARP returns who an ARP packet, question or answer, says has which address.
func parseARP(packet []byte) (addr uint32, mac MAC, ok bool) {
	if len(packet) < arpSize || [6]byte(packet) != [6]byte{0, 1, 8, 0, 6, 4} {
		return 0, MAC{}, false
	}
	return binary.BigEndian.Uint32(packet[14:]), MAC(packet[8:14]), true
}

const (
	proberTick     = 30 * time.Second // between looks at the reserves without a reason
	proberWaiting  = 256              // clients that may wait for a probe
	proberPatience = 3 * time.Second  // how long one waits; it asks again by itself
)

// prober keeps the reserve of probed addresses of a port's pool, and the requests that wait for it.
type prober struct {
	started *atomic.Bool // by the server, once
	wake    chan struct{}
	mu      *sync.Mutex
	waiting map[MAC]Packet
}

func newProber() prober {
	return prober{started: new(atomic.Bool), wake: make(chan struct{}, 1), mu: new(sync.Mutex), waiting: make(map[MAC]Packet)}
}

// wait keeps a request, the newest of each client, until there is a probed address. It reports false
// where too many wait.
func (b *prober) wait(mac MAC, p *Packet) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	old, again := b.waiting[mac]
	if !again && len(b.waiting) >= proberWaiting {
		return false
	}
	kept := *p
	kept.Message = append(old.Message[:0], p.Message...)
	b.waiting[mac] = kept
	b.nudge()
	return true
}

func (b *prober) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// any reports whether requests wait.
func (b *prober) any() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting) > 0
}

// all takes the requests that wait.
func (b *prober) all() map[MAC]Packet {
	b.mu.Lock()
	defer b.mu.Unlock()
	waiting := b.waiting
	b.waiting = make(map[MAC]Packet)
	return waiting
}

// runProber keeps the reserve of a port until nothing is received there any more, and then answers once more
// those that wait.
func (s *Server) runProber(index int, p *port) {
	p.sender.hold()
	defer p.sender.release()
	work := &worker{server: s, port: p, out: outbox{index: index}}
	tick := time.NewTicker(proberTick)
	defer tick.Stop()
	defer func() {
		if p.prober.any() && s.probeRound(index, p) {
			s.answerWaiting(work)
		}
	}()
	for {
		for s.probeRound(index, p) {
			s.answerWaiting(work)
			select {
			case <-p.over:
				return
			default:
			}
		}
		s.answerWaiting(work)
		select {
		case <-p.over:
			return
		case <-tick.C:
		case <-p.prober.wake:
		}
	}
}

// probeRound probes what the pools of a port want probed, and reports whether there was anything.
func (s *Server) probeRound(index int, p *port) bool {
	device := p.device.Load()
	for _, name := range device.Networks {
		scope := s.table.scope(name)
		if scope == nil || scope.network.Load() == nil {
			continue
		}
		targets := scope.pool.probes(probeBatch, s.now())
		if len(targets) == 0 {
			continue
		}
		answers, err := probeARP(index, device.HardwareAddr, targets)
		now := s.now()
		if err != nil {
			scope.pool.unprobed(targets, now)
			s.log.Debug("pool addresses cannot be probed now", "network", name, "device", device.Name, "reason", err)
			p.prober.all() // a link that is down: when it is up again, the clients ask again
			return false
		}
		for _, target := range targets {
			holder := answers[target.addr]
			if scope.pool.probed(target.addr, holder, now) {
				s.log.Warn("a pool address is in use by somebody who has no lease of it", "network", name,
					"device", device.Name, "ip", numberAddr(target.addr).String(), "mac", holder.String())
			}
		}
		return true
	}
	return false
}

// answerWaiting hears the requests again that waited for a probe. Those that still have to wait do, but
// not for ever.
func (s *Server) answerWaiting(w *worker) {
	device := w.port.device.Load()
	now := s.now()
	for _, packet := range w.port.prober.all() {
		if now.Sub(packet.Time) > proberPatience || w.request.parse(packet.Message) != nil {
			continue
		}
		w.respond(device, &packet)
	}
	w.flush(device)
}
