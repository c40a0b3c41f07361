// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// mix is splitmix64: the i-th number of the stream that key names.
func mix(key, i uint64) uint64 {
	z := key + (i+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func streamOf(name string, seed uint64) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	return h.Sum64() ^ seed
}

// uniform is in [-1, 1), exact in f32.
func uniform(z uint64) float32 { return float32(z>>40)/(1<<23) - 1 }

// spread is how a weight's values follow from uniform ones, by its name and
// shape, so that activations keep their size through a block.
func spread(name string, shape tensor.Shape) (factor, offset float32) {
	switch {
	case strings.HasSuffix(name, ".scale"):
		return 1. / 8, 1
	case len(shape) == 1:
		return 1. / 16, 0
	case shape[1] > 4096:
		return 1. / 64, 0
	}
	return 1. / 32, 0
}

// fill writes elements first… of a weight in its stored dtype (F32, BF16 or
// F8_E4M3) to dst.
func fill(dst []byte, e safetensors.Entry, seed uint64, first uint64) {
	key := streamOf(e.Name, seed)
	factor, offset := spread(e.Name, e.Shape)
	switch e.DType {
	case tensor.F32:
		for i := range len(dst) / 4 {
			v := offset + uniform(mix(key, first+uint64(i)))*factor
			binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
		}
	case tensor.BF16:
		for i := range len(dst) / 2 {
			v := offset + uniform(mix(key, first+uint64(i)))*factor
			binary.LittleEndian.PutUint16(dst[2*i:], tensor.BF16FromF32(v))
		}
	default:
		fillFloat8(dst, key, first, factor, offset)
	}
}

// fillFloat8 draws E4M3 codes: eight from each number, of magnitudes up to the
// factor's binade; a scale is 1 or one of its neighbours.
func fillFloat8(dst []byte, key, first uint64, factor, offset float32) {
	exponent := byte(max(0, int(math.Log2(float64(factor)))+7))
	for i := range dst {
		at := first + uint64(i)
		if i == 0 || at%8 == 0 {
			key8 := mix(key, at/8)
			for j := i; j < min(len(dst), i+8-int(at%8)); j++ {
				b := byte(key8 >> (8 * ((first + uint64(j)) % 8)))
				if offset != 0 {
					dst[j] = 0x38 + b%3 - 1
				} else {
					dst[j] = b&0x80 | (b&0x7f)%(exponent<<3)
				}
			}
		}
	}
}

// writeCheckpoint writes a file of random weights; names are resolved.
func writeCheckpoint(path string, entries []safetensors.Entry) (err error) {
	header, size, err := safetensors.Header(entries, nil)
	if err != nil {
		return err
	}
	if err := needSpace(filepath.Dir(path), size); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			err = fmt.Errorf("write %s (%v): %w", path, size, err)
		}
	}()
	if _, err := f.Write(header); err != nil {
		return err
	}
	return writeData(f, entries, int64(len(header)), blockSeed)
}

// piece is a stretch of one tensor.
type piece struct {
	entry safetensors.Entry
	first uint64 // element
	at    int64  // in the file
	bytes int
}

const pieceBytes = 8 << 20

func writeData(f *os.File, entries []safetensors.Entry, at int64, seed uint64) error {
	pieces := make(chan piece)
	errs := make([]error, runtime.NumCPU())
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			buf := make([]byte, pieceBytes)
			for p := range pieces {
				fill(buf[:p.bytes], p.entry, seed, p.first)
				if _, err := f.WriteAt(buf[:p.bytes], p.at); err != nil && errs[w] == nil {
					errs[w] = err
				}
			}
		})
	}
	for _, e := range entries {
		total, err := e.Shape.Bytes(e.DType)
		if err != nil {
			errs = append(errs, err)
			break
		}
		for done := int64(0); done < int64(total); done += pieceBytes {
			n := min(pieceBytes, int64(total)-done)
			pieces <- piece{e, uint64(done) / uint64(e.DType.Size()), at + done, int(n)}
		}
		at += int64(total)
	}
	close(pieces)
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// entriesOf lists the weights of a model in all of its blocks, each in the
// dtype that stored gives it.
func entriesOf(m *graph.Model, stored func(name string) tensor.DType) []safetensors.Entry {
	var out []safetensors.Entry
	put := func(g *graph.Graph, i int) {
		for _, w := range g.Weights {
			name := graph.Resolve(w.Name, i)
			out = append(out, safetensors.Entry{Name: name, DType: stored(name), Shape: w.Shape})
		}
	}
	put(&m.Head, 0)
	for r := range m.Runs {
		for i := range int(m.Runs[r].Count) {
			put(&m.Runs[r].Block, i)
		}
	}
	put(&m.Tail, 0)
	return slices.Clip(out)
}
