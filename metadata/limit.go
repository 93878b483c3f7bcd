package metadata

import (
	"sync"
	"sync/atomic"
	"time"
)

// Limits bound what one guest can take of the server. A zero value is no limit.
type Limits struct {
	// Rate is how many requests a guest may make in a second, and in one go after a quiet second.
	Rate int
	// Connections is how many connections a guest may have open. All sources of one device that
	// are no guests have as many together.
	Connections int
}

// bucket is a token bucket: a guest's rate of requests.
type bucket struct {
	mu     sync.Mutex
	tokens float64
	last   time.Time
}

// take says whether another request is within rate, which is in requests a second.
func (b *bucket) take(rate int, now time.Time) bool {
	if rate <= 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	full := float64(rate)
	if b.last.IsZero() {
		b.tokens = full
	} else {
		b.tokens = min(full, b.tokens+max(0, now.Sub(b.last).Seconds())*full)
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// onceAMinute says yes at most once in a minute, and when the clock was set back.
type onceAMinute struct{ last atomic.Int64 }

func (o *onceAMinute) now(now time.Time) bool {
	last := o.last.Load()
	at := now.UnixNano()
	return (last == 0 || at < last || at-last >= int64(time.Minute)) && o.last.CompareAndSwap(last, at)
}
