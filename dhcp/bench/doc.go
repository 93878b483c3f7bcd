// Package bench measures the DHCP server beside Kea, ISC dhcpd and dnsmasq, with perfdhcp and with
// clients of its own, in namespaces. It holds nothing but its test:
//
//	go test ./dhcp/bench -run TestFigures -figures=. -count=1 -v -timeout 30m
//
// prints a table. -figures chooses parts by a regular expression; without it and without VRAGENT_FIGURES=1,
// which means all, the test is skipped, since it takes minutes and both cores. It needs kea-dhcp4-server, kea-admin (perfdhcp), isc-dhcp-server,
// dnsmasq-base and a C compiler, which makes the receive buffer of perfdhcp as large as the kernel allows:
// with its own it loses replies itself.
package bench
