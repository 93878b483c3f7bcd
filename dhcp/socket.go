package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchSize  = 64 // datagrams for one system call
	packetSize = 2048
	bufferSize = 4 << 20 // of the receive buffer: a second and more of what one thread answers
)

// listener is the socket that hears the clients of one device.
//
// The runtime's poller does not know the socket itself, of which it would wake a thread for each datagram,
// waited for or not. It knows an epoll instance in between, through which the socket reports once, and then
// not again until it is armed.
type listener struct {
	fd      int
	events  *os.File // the epoll instance
	epoll   int      // its descriptor
	raw     syscall.RawConn
	dropped uint64 // datagrams before its time: the socket may be older
}

// openSocket opens the server's port on a device. Other devices have sockets of their own. Without
// SO_REUSEADDR a second server on the port is an error here, not a surprise for the guests.
func openSocket(device string, index int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := setUpSocket(fd, device, index); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	if err := bindSocket(fd, device); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// newListener makes a listener of a socket, which it owns from then on.
func newListener(fd int, device string) (*listener, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	err = unix.SetNonblock(epoll, true) // has os.NewFile hand it to the poller
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("epoll: %w", err), unix.Close(epoll))
	}
	l := &listener{fd: fd, epoll: epoll, events: os.NewFile(uintptr(epoll), "dhcp "+device)}
	l.dropped = l.drops()
	if l.raw, err = l.events.SyscallConn(); err != nil {
		return nil, errors.Join(err, l.events.Close())
	}
	return l, nil
}

// setUpSocket sets a socket's options. Doing it again changes nothing.
func setUpSocket(fd int, device string, index int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, index); err != nil {
		return fmt.Errorf("bind to device %s: %w", device, err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
		return fmt.Errorf("IP_PKTINFO: %w", err)
	}
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	return nil
}

func bindSocket(fd int, device string) error {
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: serverPort}); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("UDP port %d on %s is taken, another DHCP server or relay runs: %w", serverPort, device, err)
		}
		return fmt.Errorf("bind to UDP port %d on %s: %w", serverPort, device, err)
	}
	return nil
}

// setBuffer sizes a socket's buffer, beyond the system's limit where we have the power to.
func setBuffer(fd, force, plain int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, bufferSize) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, bufferSize) // the system's limit then counts
	}
}

// close ends wait, waits until take has returned, and closes the socket. It is called once.
func (l *listener) close() error { return errors.Join(l.events.Close(), unix.Close(l.fd)) }

// drops returns how many datagrams the kernel has thrown away because the buffer was full, since the
// listener was made. It is not called after close.
func (l *listener) drops() uint64 {
	var info [16]uint32 // SO_MEMINFO; element 8 are the drops
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(l.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(info[8]) - l.dropped
}

// recvmmsg(2) and sendmmsg(2) are called with MSG_DONTWAIT and as raw calls, of which the runtime knows
// nothing: they never wait, so it need not get ready to run others meanwhile, which costs it more than what
// the calls do.

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

// controlSize is that of a control message with struct in_pktinfo.
var controlSize = unix.CmsgSpace(unix.SizeofInet4Pktinfo)

// inbox receives datagrams in batches.
type inbox struct {
	headers [batchSize]mmsghdr
	vectors [batchSize]unix.Iovec
	sources [batchSize]unix.RawSockaddrInet4
	control [batchSize][64]byte
	packets [batchSize][packetSize]byte
}

func newInbox() *inbox {
	b := new(inbox)
	for i := range b.headers {
		b.vectors[i].Base = &b.packets[i][0]
		b.vectors[i].SetLen(packetSize)
		h := &b.headers[i].header
		h.Iov = &b.vectors[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&b.sources[i]))
		h.Control = &b.control[i][0]
	}
	return b
}

// receive takes what waits, at least one datagram. It never waits: unix.EAGAIN says that there is none.
func (b *inbox) receive(fd int) (int, error) {
	for i := range b.headers {
		h := &b.headers[i].header
		h.Namelen = unix.SizeofSockaddrInet4
		h.SetControllen(controlSize)
		h.Flags = 0
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[0])), batchSize,
			unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// packet returns a received datagram; ok is false for one that was longer than any client's.
func (b *inbox) packet(i int) (p Packet, ok bool) {
	h := &b.headers[i]
	if h.header.Flags&unix.MSG_TRUNC != 0 {
		return Packet{}, false
	}
	p.Message = b.packets[i][:h.length:h.length]
	p.Source = netip.AddrFrom4(b.sources[i].Addr)
	control := b.control[i][:min(uint64(h.header.Controllen), uint64(len(b.control[i])))]
	if len(control) >= unix.CmsgLen(unix.SizeofInet4Pktinfo) {
		head := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		if head.Level == unix.IPPROTO_IP && head.Type == unix.IP_PKTINFO {
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&control[unix.CmsgLen(0)]))
			p.Destination = netip.AddrFrom4(info.Addr)
		}
	}
	return p, true
}

// sender sends IP datagrams on one device: as frames to Ethernet addresses, and by way of the kernel's
// routes.
type sender struct {
	frames int          // descriptor of an AF_PACKET socket
	routed int          // descriptor of a raw IP socket
	users  atomic.Int32 // the last one closes
}

func openSender(device string, index int) (*sender, error) {
	frames, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket, which needs CAP_NET_RAW: %w", err)
	}
	routed, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raw socket, which needs CAP_NET_RAW: %w", err), unix.Close(frames))
	}
	s := &sender{frames: frames, routed: routed}
	s.users.Store(1)
	// Protocol 0 receives nothing.
	if err := unix.Bind(frames, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind packet socket to %s: %w", device, err), s.close())
	}
	if err := unix.SetsockoptInt(routed, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, index); err != nil {
		return nil, errors.Join(fmt.Errorf("bind raw socket to %s: %w", device, err), s.close())
	}
	setBuffer(frames, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	setBuffer(routed, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	return s, nil
}

// hold keeps the sender open until release. Its caller holds it already, or whoever opened it does.
func (s *sender) hold() { s.users.Add(1) }

func (s *sender) release() {
	if s.users.Add(-1) == 0 {
		_ = s.close() // of descriptors that nothing is written through any more
	}
}

func (s *sender) close() error { return errors.Join(unix.Close(s.frames), unix.Close(s.routed)) }

// outbox collects datagrams and sends them in batches. Datagrams are built in the buffers of next.
type outbox struct {
	index   int // of the device
	count   int
	buffers [batchSize][]byte
	links   [batchSize]unix.RawSockaddrLinklayer
	targets [batchSize]unix.RawSockaddrInet4
	routed  [batchSize]bool
	headers [batchSize]mmsghdr
	vectors [batchSize]unix.Iovec
}

// next returns an empty buffer with the headers' room before it.
func (o *outbox) next() []byte {
	if o.buffers[o.count] == nil {
		o.buffers[o.count] = make([]byte, headerSize, packetSize)
	}
	return o.buffers[o.count][headerSize:headerSize]
}

// add takes a reply whose message lies in the buffer that next returned, or elsewhere if that was too
// small. The caller flushes when it returns true: the outbox is full.
func (o *outbox) add(reply *Reply) bool {
	packet := append(o.buffers[o.count][:headerSize], reply.Message...) // a copy onto itself, or a larger buffer
	o.buffers[o.count] = packet
	putHeaders(packet, reply.From, reply.To)
	o.routed[o.count] = reply.Link == MAC{}
	o.targets[o.count] = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: reply.To.Addr().As4()}
	o.links[o.count] = unix.RawSockaddrLinklayer{
		Family: unix.AF_PACKET, Protocol: etherTypeIPv4, Ifindex: int32(o.index), Halen: 6,
	}
	copy(o.links[o.count].Addr[:], reply.Link[:])
	o.count++
	return o.count == batchSize
}

// etherTypeIPv4 in network byte order.
var etherTypeIPv4 = hostToNetwork16(unix.ETH_P_IP)

func hostToNetwork16(v uint16) uint16 {
	b := [2]byte{byte(v >> 8), byte(v)}
	return *(*uint16)(unsafe.Pointer(&b))
}

// flush sends all that was added and empties the outbox. It returns how many datagrams the kernel did
// not take, and the reason for the last of them; those are lost, as on any network.
func (o *outbox) flush(s *sender) (lost int, err error) {
	for _, routed := range []bool{false, true} {
		n := 0
		for i := range o.count {
			if o.routed[i] != routed {
				continue
			}
			o.vectors[n].Base = &o.buffers[i][0]
			o.vectors[n].SetLen(len(o.buffers[i]))
			h := &o.headers[n].header
			*h = unix.Msghdr{Iov: &o.vectors[n]}
			h.SetIovlen(1)
			if routed {
				h.Name, h.Namelen = (*byte)(unsafe.Pointer(&o.targets[i])), unix.SizeofSockaddrInet4
			} else {
				h.Name, h.Namelen = (*byte)(unsafe.Pointer(&o.links[i])), unix.SizeofSockaddrLinklayer
			}
			n++
		}
		fd := s.frames
		if routed {
			fd = s.routed
		}
		for sent := 0; sent < n; {
			done, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&o.headers[sent])),
				uintptr(n-sent), unix.MSG_DONTWAIT, 0, 0)
			switch errno {
			case 0:
				sent += int(done)
			case unix.EINTR:
			default: // of the first one that is left
				sent, lost, err = sent+1, lost+1, errno
			}
		}
	}
	runtime.KeepAlive(o)
	for i := range o.count {
		o.buffers[i] = o.buffers[i][:headerSize]
	}
	o.count = 0
	return lost, err
}

// wait calls take whenever there may be something to receive, until it returns an error that does not
// go away by itself. That there is nothing more (unix.EAGAIN) and a link that goes down are none.
func (l *listener) wait(take func(fd int) error) error {
	for {
		var failure error
		err := l.raw.Read(func(uintptr) bool {
			if failure = l.disarm(); failure == nil {
				failure = take(l.fd)
			}
			if !errors.Is(failure, unix.EAGAIN) {
				return true
			}
			failure = l.arm()
			return failure != nil
		})
		switch {
		case errors.Is(err, os.ErrClosed):
			return net.ErrClosed
		case err != nil:
			return err
		case failure != nil && !passing(failure):
			return failure
		}
	}
}

// arm has the socket report once: when something comes, or now if something is there.
func (l *listener) arm() error {
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, l.fd, &event); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

// disarm takes out what the socket has reported, after which it reports nothing.
func (l *listener) disarm() error {
	var event unix.EpollEvent
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epoll), uintptr(unsafe.Pointer(&event)), 1, 0, 0, 0)
	if errno != 0 && errno != unix.EINTR {
		return fmt.Errorf("epoll: %w", errno)
	}
	return nil
}

// passing reports whether an error of a receiving socket says something about the link or about memory,
// and nothing about the socket.
func passing(err error) bool {
	for _, errno := range []unix.Errno{unix.ENETDOWN, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ECONNREFUSED,
		unix.ENODEV, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
