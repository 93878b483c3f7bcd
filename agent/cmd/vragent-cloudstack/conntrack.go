package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// flushConntrack makes the kernel forget the connections that it tracks, so that those under way are
// judged by the rules that a router has just been given. A kernel that tracks none is no error.
func flushConntrack() error {
	const (
		subsystem = 1 // NFNL_SUBSYS_CTNETLINK, linux/netfilter/nfnetlink.h
		deleteAll = 2 // IPCTNL_MSG_CT_DELETE of no connection in particular
	)
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_NETFILTER)
	if err != nil {
		return untracked(err)
	}
	defer syscall.Close(fd)
	// A netlink header and a struct nfgenmsg, which is all zero for every family.
	request := make([]byte, syscall.NLMSG_HDRLEN+4)
	binary.NativeEndian.PutUint32(request[0:], uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], subsystem<<8|deleteAll)
	binary.NativeEndian.PutUint16(request[6:], syscall.NLM_F_REQUEST|syscall.NLM_F_ACK)
	if err := syscall.Sendto(fd, request, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return untracked(err)
	}
	answer := make([]byte, os.Getpagesize())
	n, _, err := syscall.Recvfrom(fd, answer, 0)
	if err != nil {
		return untracked(err)
	}
	messages, err := syscall.ParseNetlinkMessage(answer[:n])
	if err != nil || len(messages) == 0 || messages[0].Header.Type != syscall.NLMSG_ERROR || len(messages[0].Data) < 4 {
		return fmt.Errorf("conntrack: the kernel's answer cannot be read: %w", err)
	}
	if code := int32(binary.NativeEndian.Uint32(messages[0].Data)); code != 0 {
		return untracked(syscall.Errno(-code))
	}
	return nil
}

// untracked is nil where err says that the kernel has no connection tracking.
func untracked(err error) error {
	switch {
	case errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EINVAL):
		return nil
	}
	return fmt.Errorf("conntrack: %w", err)
}
