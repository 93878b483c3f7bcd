package netcfg

import "testing"

// Unmarked makes Open take the kernel for one that cannot mark what it holds.
func Unmarked(opts Options) Options {
	opts.unmarked = true
	return opts
}

// Sent returns how many requests went to the kernel so far.
func (k *Kernel) Sent() uint64 { return k.conn.sent.Load() }

// ShrinkReceiveBuffer makes room for so few events that a burst loses some.
func (k *Kernel) ShrinkReceiveBuffer(t testing.TB) {
	if err := k.events.SetReceiveBufferSize(1, false); err != nil {
		t.Fatal(err)
	}
}
