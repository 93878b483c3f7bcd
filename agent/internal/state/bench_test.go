package state

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkCommit tells how many durable commits a second the store takes from
// so many writers at a time.
func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 16, 64, 512} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := open(b, b.TempDir(), Options{})
			value := make([]byte, 200)
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range writers {
				wg.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						var batch Batch
						batch.Put(fmt.Sprintf("lease/%d", n%5000), value)
						if err := s.Commit(&batch); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
		})
	}
}

// BenchmarkOpen is a start with 10,000 units of 32 KB user data each.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s := open(b, dir, Options{})
	data, meta := make([]byte, 32<<10), make([]byte, 600)
	for i := 0; i < 10000; i += 100 {
		var batch Batch
		for j := range 100 {
			batch.Put(fmt.Sprintf("vm/%d", i+j), meta)
			batch.Put(fmt.Sprintf("data/%d", i+j), data)
		}
		if err := s.Commit(&batch); err != nil {
			b.Fatal(err)
		}
	}
	s.Close()
	b.ResetTimer()
	for b.Loop() {
		s := open(b, dir, Options{})
		n := 0
		if err := s.Each("vm/", -1, func(string, []byte) error { n++; return nil }); err != nil || n != 10000 {
			b.Fatal(n, err)
		}
		s.Close()
	}
}
