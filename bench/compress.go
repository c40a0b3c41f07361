// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/bench/donorlink"
	"github.com/distorch/distorch/model/planes"
	"github.com/distorch/distorch/model/tensor"
)

const (
	slowLink      = 100e6 // bit/s
	donorLink     = 1e9
	compressBytes = 16 << 20
)

// compressFigures reads blocks out of another node's RAM over shaped links, as
// they are and compressed.
func compressFigures(ctx context.Context, o *options, r *report) (err error) {
	room, err := hostRoom(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, room.Close()) }()
	l, err := donorlink.New(ctx, donorlink.Config{BitsPerSecond: slowLink, Room: room, Offer: 1 << 30, Threads: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	r.note("blocks of %v in another node's RAM, mutual TLS, one thread decodes; medians of %d rounds", tensor.Bytes(compressBytes), o.rounds)
	for _, rate := range []float64{slowLink, donorLink} {
		if err := l.SetRate(uint64(rate)); err != nil {
			return err
		}
		for _, d := range []tensor.DType{tensor.BF16, tensor.F8E4M3, tensor.F32} {
			if err := compressRow(ctx, o, r, l, d, rate); err != nil {
				return err
			}
		}
	}
	return nil
}

// hostRoom is memory of this machine.
func hostRoom(ctx context.Context) (engine.Session, error) {
	e, err := native.New(native.Config{ISA: isa.Supported()[0], Threads: 1})
	if err != nil {
		return nil, err
	}
	return e.Open(ctx, native.CPU)
}

func compressRow(ctx context.Context, o *options, r *report, l *donorlink.Link, d tensor.DType, rate float64) error {
	block, err := gaussian(d, compressBytes)
	if err != nil {
		return err
	}
	dst := make([]byte, len(block))
	var sides []side
	var ratio float64
	for _, compressed := range []bool{false, true} {
		c, err := l.Claim(ctx, []tensor.Bytes{compressBytes}, compressed)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.Store(ctx, 0, block); err != nil {
			return err
		}
		ratio = compressBytes / float64(c.AtRest())
		sides = append(sides, func(ctx context.Context) (time.Duration, error) {
			clear(dst)
			begin := time.Now()
			if err := c.Reader(0).Read(ctx, dst); err != nil {
				return 0, err
			}
			took := time.Since(begin)
			if string(dst) != string(block) {
				return 0, fmt.Errorf("%v: other bytes came back", d)
			}
			return took, nil
		})
	}
	times, err := alternate(ctx, o.rounds, sides...)
	if err != nil {
		return err
	}
	decode, err := decodeRate(block, o.rounds)
	if err != nil {
		return err
	}
	plain, compressed := median(times[0]), median(times[1])
	// The link as it was, for the forecast.
	link := compressBytes / plain.Seconds()
	t := planes.Transfer{Bytes: compressBytes, Ratio: ratio, Link: link, Decode: decode}
	verdict := "stays as it is"
	if t.Pays() {
		verdict = "compressed"
	}
	name := fmt.Sprintf("%g Mbit/s, %v: as it is / compressed", rate/1e6, d)
	want := target{want: 0.9}
	if rate == slowLink {
		want.want = 1.1
	}
	r.figure(name, medianRatio(times[1], times[0]), want, "%s and %s; ratio %.3f, decoded at %.0f MB/s; the forecast says %.4g s: %s",
		seconds(plain), seconds(compressed), ratio, decode/1e6, t.Compressed(), verdict)
	return nil
}

// decodeRate is what one thread decodes of a block.
func decodeRate(block []byte, rounds int) (float64, error) {
	c := planes.New(1)
	coded, ends, err := c.Encode(nil, nil, block[:planes.GroupBytes])
	if err != nil {
		return 0, err
	}
	dst := make([]byte, planes.GroupBytes)
	var times []time.Duration
	for range max(rounds, 3) {
		begin := time.Now()
		copy(dst[len(dst)-len(coded):], coded)
		if err := c.DecodeInPlace(dst, ends); err != nil {
			return 0, err
		}
		times = append(times, time.Since(begin))
	}
	return planes.GroupBytes / median(times).Seconds(), nil
}

// gaussian is n bytes of weights of a layer of 3072 inputs.
func gaussian(d tensor.DType, n int) ([]byte, error) {
	r := rand.New(rand.NewPCG(1, 2))
	v := make([]float32, n*8/d.Bits())
	for i := range v {
		v[i] = float32(r.NormFloat64()) / 55
		if d == tensor.F8E4M3 { // with the scale that fills the type's range
			v[i] *= 448 / 0.1
		}
	}
	out := make([]byte, n)
	switch d {
	case tensor.F32:
		tensor.PutF32(out, v)
	case tensor.BF16:
		half := make([]uint16, len(v))
		tensor.BF16FromF32s(half, v)
		tensor.PutBF16(out, half)
	case tensor.F8E4M3:
		codes := make([]byte, 127)
		for i := range codes {
			codes[i] = byte(i)
		}
		values := make([]float32, len(codes))
		if err := tensor.ToF32(values, codes, d); err != nil {
			return nil, err
		}
		for i, x := range v {
			k, _ := slices.BinarySearch(values, float32(math.Abs(float64(x))))
			out[i] = byte(min(k, len(codes)-1)) | byte(math.Float32bits(x)>>31)<<7
		}
	default:
		return nil, fmt.Errorf("no weights of %v", d)
	}
	return out, nil
}
