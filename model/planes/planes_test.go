// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package planes

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// kinds are weights as files have them.
var kinds = []tensor.DType{tensor.BF16, tensor.F16, tensor.F32, tensor.F8E4M3, tensor.F8E5M2}

// normal is n bytes of weights of a linear layer with so many inputs.
func normal(d tensor.DType, n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	out := make([]byte, n)
	le := binary.LittleEndian
	for i := 0; i+4 <= n; {
		v := float32(r.NormFloat64() / math.Sqrt(3072))
		switch d {
		case tensor.BF16:
			le.PutUint16(out[i:], uint16(math.Float32bits(v)>>16))
			i += 2
		case tensor.F16:
			le.PutUint16(out[i:], half(v))
			i += 2
		case tensor.F32:
			le.PutUint32(out[i:], math.Float32bits(v))
			i += 4
		case tensor.F8E4M3: // stored with the scale that fills its range
			out[i] = byte(half(v*448/0.08/256) >> 7 & 0x7f)
			out[i] |= byte(math.Float32bits(v) >> 31 << 7)
			i++
		case tensor.F8E5M2:
			out[i] = byte(half(v) >> 8)
			i++
		}
	}
	return out
}

// half is v in binary16, cut off.
func half(v float32) uint16 {
	b := math.Float32bits(v)
	e := int(b>>23&0xff) - 127 + 15
	switch {
	case e <= 0:
		return uint16(b >> 16 & 0x8000)
	case e >= 31:
		return uint16(b>>16&0x8000) | 0x7bff
	}
	return uint16(b>>16&0x8000) | uint16(e)<<10 | uint16(b>>13&0x3ff)
}

func roundTrip(t interface {
	Helper()
	Fatal(args ...any)
}, c *Codec, src []byte) (coded []byte) {
	t.Helper()
	keep := bytes.Clone(src)
	coded, ends, err := c.Encode(nil, nil, src)
	if err != nil {
		t.Fatal(err)
	}
	if len(coded) > len(src) || len(ends) != Chunks(len(src)) {
		t.Fatal(fmt.Sprintf("%d bytes became %d, %d chunks", len(src), len(coded), len(ends)))
	}
	got := make([]byte, len(src))
	if err := decode(c, got, coded, ends); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, keep) || !bytes.Equal(src, keep) {
		t.Fatal("bytes differ")
	}
	return coded
}

// decode decodes in place, with the coded bytes at the end of dst.
func decode(c *Codec, dst, coded []byte, ends []uint32) error {
	copy(dst[max(0, len(dst)-len(coded)):], coded)
	return c.DecodeInPlace(dst, ends)
}

// Ratios are at least those that a plan reckons with, less two per cent.
func TestRatios(t *testing.T) {
	for _, d := range kinds {
		src := normal(d, 8<<20, 3)
		ratio := float64(len(src)) / float64(len(roundTrip(t, New(2), src)))
		t.Logf("%v: %.3f", d, ratio)
		if want := Ratio(d); ratio < 0.98*want || ratio > 1.1*want {
			t.Errorf("%v: %.3f, plans reckon with %.2f", d, ratio, want)
		}
	}
	noise := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	if n := len(roundTrip(t, New(1), noise)); n != len(noise) {
		t.Errorf("noise of %d bytes became %d", len(noise), n)
	}
	if n := len(roundTrip(t, New(1), make([]byte, 1<<20))); n > 1000 {
		t.Errorf("zeroes became %d bytes", n)
	}
}

// The golden models are written in every dtype of their family.
func TestGoldenModels(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "arch", "testdata", "golden", "*", "*", "model.safetensors"))
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := safetensors.Parse(bytes.NewReader(raw)); err != nil {
			continue
		}
		coded := roundTrip(t, New(2), raw)
		t.Logf("%s: %.3f", name, float64(len(raw))/float64(len(coded)))
	}
}

// Any bytes come back, of any length, in any mixture of words.
func TestRoundTripProperty(t *testing.T) {
	c := New(3)
	rapid.Check(t, func(t *rapid.T) {
		var src []byte
		for range rapid.IntRange(0, 4).Draw(t, "parts") {
			n := rapid.IntRange(0, ChunkBytes+9).Draw(t, "length")
			switch kind := rapid.IntRange(0, len(kinds)+1).Draw(t, "kind"); kind {
			case len(kinds):
				src = append(src, make([]byte, n)...)
			case len(kinds) + 1:
				src = append(src, rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "bytes")...)
			default:
				src = append(src, normal(kinds[kind], n, uint64(n))...)
			}
		}
		roundTrip(t, c, src)
	})
}

// Chunks that shrink and chunks that do not, in any order, in place.
func TestInPlace(t *testing.T) {
	noise, even := make([]byte, ChunkBytes), normal(tensor.BF16, ChunkBytes, 1)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	for mask := range 1 << 5 {
		var src []byte
		for i := range 5 {
			if mask>>i&1 == 0 {
				src = append(src, noise...)
			} else {
				src = append(src, even...)
			}
		}
		roundTrip(t, New(1), src[:len(src)-mask])
	}
}

// Threads change nothing, nor do buffers that are used again.
func TestThreadsGiveTheSameBytes(t *testing.T) {
	src := slices.Concat(normal(tensor.BF16, 3<<20, 1), normal(tensor.F32, 1<<20+77, 2))
	want, _, err := New(1).Encode(nil, nil, src)
	if err != nil {
		t.Fatal(err)
	}
	c := New(4)
	buffer, ends := bytes.Repeat([]byte{0xee}, 2*len(src)), []uint32{9, 9, 9}
	for range 3 {
		if buffer, ends, err = c.Encode(buffer, ends, src); err != nil || !bytes.Equal(buffer, want) {
			t.Fatal("another coding", err)
		}
	}
}

func TestMalformed(t *testing.T) {
	src := normal(tensor.BF16, 300_001, 1)
	c := New(2)
	coded, ends, err := c.Encode(nil, nil, src)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, len(src))
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(coded)) }
	for name, tc := range map[string]struct {
		dst  []byte
		src  []byte
		ends []uint32
	}{
		"fewer chunks":    {dst, coded, ends[:2]},
		"no chunks":       {dst, nil, nil},
		"shorter result":  {dst[:len(dst)-2], coded[2:], ends},
		"longer result":   {make([]byte, len(src)+2), coded, ends},
		"ends backwards":  {dst, coded, []uint32{ends[1], ends[0], ends[2]}},
		"end outside":     {dst, coded, []uint32{ends[0], ends[1], 1 << 31}},
		"empty chunk":     {dst, coded, []uint32{0, ends[1], ends[2]}},
		"another width":   {dst, edit(func(b []byte) []byte { b[0] = 3; return b }), ends},
		"wider":           {dst, edit(func(b []byte) []byte { b[0] = 4; return b }), ends},
		"no width":        {dst, edit(func(b []byte) []byte { b[0] = 0; return b }), ends},
		"longer than raw": {dst, coded, []uint32{ChunkBytes + 1, ChunkBytes + 2, ChunkBytes + 3}},
		"method":          {dst, edit(func(b []byte) []byte { b[4] = 9; return b }), ends},
		"plane length":    {dst, edit(func(b []byte) []byte { b[1]++; return b }), ends},
		"plane to huge":   {dst, edit(func(b []byte) []byte { b[3] = 0xff; return b }), ends},
		"run of many":     {dst, edit(func(b []byte) []byte { b[4] = methodRun; return b }), ends},
		"raw as entropy":  {dst, edit(func(b []byte) []byte { b[4] = methodHuff; return b }), ends},
		"table destroyed": {dst, edit(func(b []byte) []byte { clear(b[9+65536 : 9+65536+40]); return b }), ends},
	} {
		if err := decode(c, tc.dst, tc.src, tc.ends); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := decode(c, dst, coded, ends); err != nil || !bytes.Equal(dst, src) {
		t.Errorf("a malformed block has spoilt the codec: %v", err)
	}
	if err := new(Decoder).Decode(make([]byte, ChunkBytes+1), []byte{1}); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	for i, d := range kinds {
		var e Encoder
		src := normal(d, 4096*(i+1)+i, 1)
		f.Add(e.Append(nil, src), len(src))
	}
	f.Add([]byte{0, 1, 2}, 2)
	f.Add([]byte{2, 1, 0, 0, 2, 1, 0, 0, 2, 5, 6, 7}, 1001)
	f.Fuzz(func(t *testing.T, src []byte, n int) {
		if n < 0 || n > ChunkBytes {
			return
		}
		dst := make([]byte, n, n+1)
		dst[:n+1][n] = 0xa5
		var d Decoder
		if err := d.Decode(dst, src); err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
		if dst[:n+1][n] != 0xa5 {
			t.Fatal("written behind the end")
		}
		if len(src) <= n && n > 0 {
			if err := decode(New(1), dst, src, []uint32{uint32(len(src))}); err != nil && !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("abcdefgh"))
	f.Add(normal(tensor.BF16, 5000, 1))
	f.Fuzz(func(t *testing.T, src []byte) {
		roundTrip(t, New(1), src)
	})
}

func TestPays(t *testing.T) {
	block := Transfer{Bytes: 300e6, Ratio: 1.5, Decode: 0.8e9}
	for _, tc := range []struct {
		name string
		edit func(*Transfer)
		want bool
	}{
		{"100 Mbit/s", func(t *Transfer) { t.Link = 12.5e6 }, true},
		{"1 Gbit/s", func(t *Transfer) { t.Link = 125e6 }, true},
		{"10 Gbit/s", func(t *Transfer) { t.Link = 1.25e9 }, false},
		{"10 Gbit/s, eight threads", func(t *Transfer) { t.Link, t.Decode = 1.25e9, 6e9 }, true},
		{"incompressible", func(t *Transfer) { t.Link, t.Ratio = 12.5e6, 1 }, false},
		{"hardly compressible", func(t *Transfer) { t.Link, t.Ratio = 12.5e6, 1.03 }, false},
		{"link not measured", func(t *Transfer) {}, false},
		{"nothing", func(t *Transfer) { t.Link, t.Bytes = 12.5e6, 0 }, false},
	} {
		x := block
		tc.edit(&x)
		if got := x.Pays(); got != tc.want {
			t.Errorf("%s: %v, plain %.2f s, compressed %.2f s", tc.name, got, x.Plain(), x.Compressed())
		}
	}
	// A slower link never makes it pay less.
	rapid.Check(t, func(t *rapid.T) {
		x := Transfer{
			Bytes: tensor.Bytes(rapid.Int64Range(1, 1e12).Draw(t, "bytes")), Ratio: rapid.Float64Range(0.9, 3).Draw(t, "ratio"),
			Link: rapid.Float64Range(1e5, 1e11).Draw(t, "link"), Decode: rapid.Float64Range(1e7, 1e11).Draw(t, "decode"),
		}
		slow := x
		slow.Link /= rapid.Float64Range(1, 100).Draw(t, "slower")
		if x.Pays() && !slow.Pays() {
			t.Errorf("%+v pays, %+v does not", x, slow)
		}
	})
}

// BenchmarkCodec says how fast one thread codes, and what zstd does with the
// same bytes, whole and as planes.
func BenchmarkCodec(b *testing.B) {
	const n = 8 << 20
	fast, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	back, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	defer back.Close()
	for _, d := range kinds {
		src := normal(d, n, 1)
		c := New(1)
		coded, ends, err := c.Encode(nil, nil, src)
		if err != nil {
			b.Fatal(err)
		}
		dst := make([]byte, n)
		buffer := bytes.Clone(coded)
		b.Run(d.String()+"/encode", func(b *testing.B) {
			b.SetBytes(n)
			for b.Loop() {
				buffer, ends, _ = c.Encode(buffer, ends, src)
			}
			b.ReportMetric(float64(n)/float64(len(coded)), "ratio")
		})
		b.Run(d.String()+"/decode", func(b *testing.B) {
			b.SetBytes(n)
			for b.Loop() {
				if err := decode(c, dst, coded, ends); err != nil {
					b.Fatal(err)
				}
			}
		})
		apart := make([]byte, n)
		split(apart, src, int(min(4, max(1, d.RowBytes(1)))))
		for name, in := range map[string][]byte{"zstd": src, "planes+zstd": apart} {
			z := fast.EncodeAll(in, nil)
			b.Run(d.String()+"/"+name, func(b *testing.B) {
				b.SetBytes(n)
				for b.Loop() {
					if dst, err = back.DecodeAll(z, dst[:0]); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(n)/float64(len(z)), "ratio")
			})
		}
	}
}
