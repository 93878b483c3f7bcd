package drop

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// populate drops so many VMs in a new directory.
func populate(b *testing.B, vms int) string {
	b.Helper()
	dir := dropPath(b)
	unpackInto(b, dir, vms)
	return dir
}

func unpackInto(b *testing.B, dir string, vms int) {
	b.Helper()
	d, err := Open(dir, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	unpack(b, dir, vms)
}

func cpuTime() time.Duration {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkChange is one VM's file renamed into place until its content has
// been read, with the CPU time of all of it.
func BenchmarkChange(b *testing.B) {
	for _, vms := range []int{100, 10000, 50000} {
		b.Run(fmt.Sprintf("vms=%d", vms), func(b *testing.B) {
			dir := populate(b, vms)
			d, err := Open(dir, Options{})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := d.Scan(b.Context()); err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			wg.Go(func() { d.Run(ctx) })
			defer wg.Wait()
			defer cancel()
			var times []time.Duration
			b.ResetTimer()
			before := cpuTime()
			for i := 0; b.Loop(); i++ {
				vm := fmt.Sprintf("%s/vms/i-%d", dir, i%vms)
				if err := os.WriteFile(vm+"/.new", fmt.Appendf(nil, "data %d", i), 0o600); err != nil {
					b.Fatal(err)
				}
				began := time.Now()
				if err := os.Rename(vm+"/.new", vm+"/user-data"); err != nil {
					b.Fatal(err)
				}
				units, err := d.Next(ctx, 10)
				if err != nil {
					b.Fatal(err)
				}
				for _, u := range units {
					if _, err := d.Read(u); err != nil {
						b.Fatal(err)
					}
				}
				times = append(times, time.Since(began))
			}
			b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-us/op")
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "median-ms")
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

// BenchmarkStart is a start with 10,000 VMs that have not changed.
func BenchmarkStart(b *testing.B) {
	dir := populate(b, 10000)
	for b.Loop() {
		d, err := Open(dir, Options{})
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		units, err := d.Scan(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "scan-ms")
		for _, u := range units {
			if _, _, err := d.Stat(u); err != nil {
				b.Fatal(err)
			}
		}
		d.Close()
	}
}

// BenchmarkPut is one VM's three files made durable and moved into place.
func BenchmarkPut(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			d, err := Open(dropPath(b), Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range writers {
				wg.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						u := Unit{VM, fmt.Sprint(n % 1000)}
						if err := d.Put(context.Background(), set(u, VMFile, "v", UserDataFile, "u", MetaDataFile, "m")); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

// BenchmarkPutAll is a bundle of 10,000 new VMs.
func BenchmarkPutAll(b *testing.B) {
	for b.Loop() {
		d, err := Open(dropPath(b), Options{})
		if err != nil {
			b.Fatal(err)
		}
		err = d.PutAll(b.Context(), func(yield func(Edit) bool) {
			for i := range 10000 {
				if !yield(set(Unit{VM, fmt.Sprint(i)}, VMFile, "v", UserDataFile, "u", MetaDataFile, "m")) {
					return
				}
			}
		}, func(_ Unit, err error) {
			if err != nil {
				b.Error(err)
			}
		})
		if err != nil {
			b.Fatal(err)
		}
		d.Close()
	}
}

// BenchmarkUnpack is 10,000 VMs unpacked by tar over a running Dir, and how
// long the last of them takes beyond what tar does.
func BenchmarkUnpack(b *testing.B) {
	for b.Loop() {
		a := watch(b, dropPath(b), Options{})
		unpack(b, a.Path(), 10000)
		began := time.Now()
		a.settle()
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "after-tar-ms")
		if got := len(a.view()); got != 10000 {
			b.Fatalf("%d VMs seen", got)
		}
	}
}
