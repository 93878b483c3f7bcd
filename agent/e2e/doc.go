// Package e2e tests the whole agent, as a router's guests, its management plane and its operator meet
// it: a daemon on real links, files dropped by real programs, real DHCP and HTTP clients.
package e2e
