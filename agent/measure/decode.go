// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/distorch/distorch/model/planes"
)

const (
	decodeBytes = 1 << 20
	decodeTries = 5
)

// Decode is how many bytes/s of bf16 weights one thread decompresses: the median
// of some tries of a few milliseconds.
func Decode() (float64, error) {
	r := rand.New(rand.NewPCG(1, 2))
	src := make([]byte, decodeBytes)
	for i := 0; i < len(src); i += 2 {
		binary.LittleEndian.PutUint16(src[i:], uint16(math.Float32bits(float32(r.NormFloat64()/55))>>16))
	}
	c := planes.New(1)
	coded, ends, err := c.Encode(nil, nil, src)
	if err != nil {
		return 0, err
	}
	var took []time.Duration
	for range decodeTries {
		copy(src[len(src)-len(coded):], coded)
		began := time.Now()
		if err := c.DecodeInPlace(src, ends); err != nil {
			return 0, err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return decodeBytes / max(took[len(took)/2].Seconds(), 1e-6), nil
}
