// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Disk is how fast a file comes into memory.
type Disk struct {
	PerSecond   float64 // bytes
	Uncertainty float64 // relative
	// Cold says that the bytes came past the system's file cache. A warm rate is
	// that of RAM.
	Cold bool
}

// chunk is what is read at once, as a stage loads.
const chunk = 4 << 20

// File reads at most the first most bytes of a file, in parts that are taken
// out of the system's cache first where the system lets us.
func File(ctx context.Context, path string, most int64) (Disk, error) {
	f, err := os.Open(path)
	if err != nil {
		return Disk{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Disk{}, err
	}
	most = min(most, info.Size())
	if most <= 0 {
		return Disk{}, fmt.Errorf("read %s: there is nothing in it", path)
	}
	d := Disk{Cold: evict(f, most)}
	part := max(chunk, most/8)
	buf := make([]byte, chunk)
	var took []float64 // seconds per byte
	for at := int64(0); at < most; {
		if ctx.Err() != nil {
			return d, context.Cause(ctx)
		}
		began, n := time.Now(), int64(0)
		for n < part && at+n < most {
			k, err := f.ReadAt(buf[:min(chunk, most-at-n)], at+n)
			n += int64(k)
			if err != nil && !errors.Is(err, io.EOF) {
				return d, err
			}
			if k == 0 {
				break
			}
		}
		if n == 0 {
			break // it was cut meanwhile
		}
		if at += n; n >= part/2 || len(took) == 0 {
			took = append(took, max(time.Since(began).Seconds(), 1e-9)/float64(n))
		}
	}
	if len(took) == 0 {
		return d, fmt.Errorf("read %s: it was cut while it was read", path)
	}
	t := summary(took)
	d.PerSecond, d.Uncertainty = 1/t.median, t.uncertainty()
	return d, nil
}

// scratchBytes is the file that Folder writes.
const scratchBytes = 128 << 20

// Folder measures with a file of its own, for a folder in which nothing large
// lies.
func Folder(ctx context.Context, dir string) (_ Disk, err error) {
	f, err := os.CreateTemp(dir, ".calibrate-*")
	if err != nil {
		return Disk{}, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	buf := make([]byte, chunk)
	for i := range buf {
		buf[i] = byte(i * 131 >> 3)
	}
	for n := 0; n < scratchBytes; n += chunk {
		if ctx.Err() != nil {
			return Disk{}, context.Cause(ctx)
		}
		buf[n/chunk%chunk]++ // no two chunks are alike
		if _, err := f.Write(buf); err != nil {
			return Disk{}, err
		}
	}
	if err := f.Sync(); err != nil { // what is not on the disk stays in the cache
		return Disk{}, err
	}
	return File(ctx, f.Name(), scratchBytes)
}
