package dhcp

import (
	"hash/maphash"
	"time"
)

// What one client may ask for. A client that follows the RFC sends some packets a minute; the limit is
// there for the others on the device, whose packets wait behind those of a flood.
const (
	clientRate  = 1000 // messages a second
	clientBurst = 1000
)

// limiter bounds the work that each client of a port can cause, in constant space. Each MAC has a place
// in two rows of buckets, by hashes that nobody outside can know, and is allowed while either has
// something left: a client suffers by another's flood only where they share both. It is for one
// goroutine.
type limiter struct {
	rows [2][limiterPlaces]bucket
}

const limiterPlaces = 2048 // a power of two

// bucket is a token bucket; the zero bucket is full.
type bucket struct {
	used uint32 // tokens taken
	at   uint32 // milliseconds of the last time, in whatever epoch; wraps
}

var (
	limiterSeed  = maphash.MakeSeed()
	limiterEpoch = time.Now()
)

// allow takes a token of the client's.
func (l *limiter) allow(mac MAC, now time.Time) bool {
	hash := maphash.Comparable(limiterSeed, mac)
	at := uint32(now.Sub(limiterEpoch) / time.Millisecond)
	first := l.rows[0][hash%limiterPlaces].take(at)
	second := l.rows[1][hash>>32%limiterPlaces].take(at)
	return first || second
}

func (b *bucket) take(at uint32) bool {
	if passed := at - b.at; passed > 0 {
		b.used -= min(b.used, uint32(min(uint64(passed)*clientRate/1000, clientBurst)))
		b.at = at
	}
	if b.used >= clientBurst {
		return false
	}
	b.used++
	return true
}
