// Package agent is the daemon: it reads the configuration, builds the parts and runs them until it is
// told to stop. It wires and does nothing else; what the parts do stands in their own packages.
package agent
