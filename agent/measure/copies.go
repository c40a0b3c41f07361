// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
)

// Bus is how fast bytes come to a device from host memory and go back, in
// bytes/s.
type Bus struct{ HostToDevice, DeviceToHost float64 }

// Bounds of a copy that is timed: it grows until it takes long enough for its
// start not to count.
const (
	copyLeast = 1 * tensor.MiB
	copyMost  = 64 * tensor.MiB
	copyTime  = 20 * time.Millisecond
	copyTimes = 5
)

// Copies times copies between host memory and a device of its own memory. It
// takes up to 64 MiB of each.
func Copies(ctx context.Context, s engine.Session) (Bus, error) {
	var b Bus
	for _, way := range []struct {
		name string
		to   *float64
		back bool
	}{{"host to device", &b.HostToDevice, false}, {"device to host", &b.DeviceToHost, true}} {
		rate, err := grow(ctx, func(n tensor.Bytes) (*fetch, error) {
			host, err := s.HostBuffer(n)
			if err != nil {
				return nil, err
			}
			near, err := s.Buffer(n)
			if err != nil {
				host.Free()
				return nil, err
			}
			if way.back {
				return &fetch{s, host, near}, nil
			}
			return &fetch{s, near, host}, nil
		})
		if err != nil {
			return b, fmt.Errorf("%s: %w", way.name, err)
		}
		*way.to = rate
	}
	return b, nil
}

// Peer times copies to a device from another one of the same engine, in
// bytes/s.
func Peer(ctx context.Context, to, from engine.Session) (float64, error) {
	return grow(ctx, func(n tensor.Bytes) (*fetch, error) {
		src, err := from.Buffer(n)
		if err != nil {
			return nil, err
		}
		dst, err := to.Buffer(n)
		if err != nil {
			src.Free()
			return nil, err
		}
		return &fetch{to, dst, src}, nil
	})
}

// fetch is a copy between two buffers.
type fetch struct {
	session  engine.Session
	dst, src engine.Buffer
}

func (f *fetch) free() {
	f.dst.Free()
	f.src.Free()
}

func (f *fetch) seconds(ctx context.Context, n tensor.Bytes) (float64, error) {
	t := time.Now()
	// The buffers are freed afterwards, so what was issued has to end.
	err := f.session.Wait(context.WithoutCancel(ctx), f.session.Fetch(f.dst, 0, f.src, 0, n))
	return max(time.Since(t).Seconds(), 1e-9), err
}

// grow doubles a copy until it takes long enough, and times that one.
func grow(ctx context.Context, open func(tensor.Bytes) (*fetch, error)) (float64, error) {
	rate := 0.0
	for n := copyLeast; ; n *= 4 {
		f, err := open(n)
		if errors.Is(err, engine.ErrNoMemory) && rate > 0 {
			return rate, nil
		}
		if err != nil {
			return 0, err
		}
		var enough bool
		rate, enough, err = f.rate(ctx, n)
		f.free()
		if err != nil || enough || n >= copyMost {
			return rate, err
		}
	}
}

// rate is the median's of some copies; enough says that they took long enough.
func (f *fetch) rate(ctx context.Context, n tensor.Bytes) (rate float64, enough bool, err error) {
	first, err := f.seconds(ctx, n) // touches memory for the first time
	if err != nil || ctx.Err() != nil {
		return 0, false, cmp.Or(err, context.Cause(ctx))
	}
	if first > 2*copyTimes*copyTime.Seconds() { // a slow link: one copy says enough
		return float64(n) / first, true, nil
	}
	t, err := repeat(ctx, bound{rounds: copyTimes, most: copyTimes}, func() error {
		_, err := f.seconds(ctx, n)
		return err
	})
	if err != nil {
		return 0, false, err
	}
	return float64(n) / t.median, t.median >= copyTime.Seconds(), nil
}
