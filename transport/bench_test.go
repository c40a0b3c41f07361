// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkAgainstRawTCP prints the throughput of 64 MiB writes and reads as
// ratios to raw TCP on loopback (1 MiB writes, cubic, into huge pages) of the same round:
// medians of at least nine alternating rounds. Run it with -benchtime=1x.
func BenchmarkAgainstRawTCP(b *testing.B) {
	const n, rounds = 64 << 20, 9
	src, freeSrc, err := Alloc(n)
	if err != nil {
		b.Fatal(err)
	}
	defer freeSrc()
	copy(src, pattern(n, 1))
	modes := []struct {
		name string
		run  func() error
	}{
		{"raw", rawWriter(b, src)},
		{"plain", bulkWriter(b, nil, src)},
		{"plain-read", bulkReader(b, nil, src)},
		{"mtls", bulkWriter(b, newTestCA(b), src)},
		{"mtls-read", bulkReader(b, newTestCA(b), src)},
	}
	took := map[string][]float64{}
	b.SetBytes(n)
	for b.Loop() {
		for range rounds {
			for _, m := range modes {
				begin := time.Now()
				if err := m.run(); err != nil {
					b.Fatal(m.name, err)
				}
				took[m.name] = append(took[m.name], time.Since(begin).Seconds())
			}
		}
	}
	median := func(v []float64) float64 { v = slices.Sorted(slices.Values(v)); return v[len(v)/2] }
	for _, m := range modes[1:] {
		var ratios []float64
		for i, t := range took[m.name] {
			ratios = append(ratios, took["raw"][i]/t)
		}
		b.ReportMetric(median(ratios), m.name+"/raw")
	}
	b.ReportMetric(n/median(took["raw"])/1e9, "raw-GB/s")
}

func bulkWriter(b *testing.B, ca *testCA, src []byte) func() error {
	f := &fixture{b, ca}
	from, to, addr := f.pair(nil, nil)
	r, _ := register(b, to, len(src))
	return func() error {
		if err := from.WriteImm(b.Context(), addr, "b", r.Key(), 0, [][]byte{src}, Immediate{}); err != nil {
			return err
		}
		<-to.Completions()
		return nil
	}
}

func bulkReader(b *testing.B, ca *testCA, src []byte) func() error {
	f := &fixture{b, ca}
	to, from, addr := f.pair(nil, nil)
	r, buf := register(b, from, len(src), Readable())
	copy(buf, src)
	dst, free, err := Alloc(len(src))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(free)
	return func() error {
		return to.Read(b.Context(), addr, "b", r.Key(), 0, dst, Immediate{})
	}
}

func rawWriter(b *testing.B, src []byte) func() error {
	lc := net.ListenConfig{Control: SocketControl}
	ln, err := lc.Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	d := net.Dialer{Control: SocketControl}
	client, err := d.DialContext(b.Context(), "tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	server, err := ln.Accept()
	if err != nil {
		b.Fatal(err)
	}
	dst, free, err := Alloc(len(src))
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if _, err := io.ReadFull(server, dst); err != nil {
				return // the end of the benchmark
			}
			if _, err := server.Write([]byte{1}); err != nil {
				return
			}
		}
	})
	b.Cleanup(func() {
		client.Close()
		server.Close()
		ln.Close()
		wg.Wait()
		free()
	})
	return func() error {
		for p := src; len(p) > 0; p = p[min(len(p), 1<<20):] {
			if _, err := client.Write(p[:min(len(p), 1<<20)]); err != nil {
				return err
			}
		}
		_, err := io.ReadFull(client, make([]byte, 1))
		return err
	}
}

// BenchmarkActivationHop is the round trip of a 1 MiB activation: write,
// completion, write back, completion.
func BenchmarkActivationHop(b *testing.B) {
	f := &fixture{b, newTestCA(b)}
	lnA, lnB := listen(b), listen(b)
	a, c := f.host("a", lnA, nil), f.host("b", lnB, nil)
	src := pattern(1<<20, 1)
	ra, _ := register(b, a, len(src))
	rb, _ := register(b, c, len(src))
	var wg sync.WaitGroup
	wg.Go(func() {
		for range c.Completions() {
			if c.WriteImm(b.Context(), lnA.Addr().String(), "a", ra.Key(), 0, [][]byte{src}, Immediate{}) != nil {
				return
			}
		}
	})
	b.SetBytes(2 << 20)
	for b.Loop() {
		if err := a.WriteImm(b.Context(), lnB.Addr().String(), "b", rb.Key(), 0, [][]byte{src}, Immediate{}); err != nil {
			b.Fatal(err)
		}
		<-a.Completions()
	}
	if err := c.Close(); err != nil {
		b.Error(err)
	}
	wg.Wait()
}
