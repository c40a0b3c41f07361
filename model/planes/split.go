// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package planes

import (
	"encoding/binary"
	"math/bits"
)

// split turns words into planes, one behind the other, join the other way round.
// Lengths are multiples of the width.
func split(dst, src []byte, width int) {
	switch width {
	case 1:
		copy(dst, src)
	case 2:
		split2(dst[:len(src)/2], dst[len(src)/2:], src)
	default:
		split4(dst, src)
	}
}

func join(dst []byte, planes *[4][]byte, width int) {
	switch width {
	case 1:
		copy(dst, planes[0])
	case 2:
		join2(dst, planes[0], planes[1])
	default:
		join4(dst, planes)
	}
}

// Four words of 16 bits at a time in one of 64.
const (
	lows16  = 0x0001000100010001
	bytes16 = 0x00ff00ff00ff00ff
	bytes32 = 0x0000ffff0000ffff
)

func split2(low, high, src []byte) {
	le := binary.LittleEndian
	i := 0
	for ; 2*i+8 <= len(src); i += 4 {
		w := le.Uint64(src[2*i:])
		w = w<<1&^lows16 | w>>15&lows16
		le.PutUint32(low[i:], gather(w&bytes16))
		le.PutUint32(high[i:], gather(w>>8&bytes16))
	}
	for ; 2*i < len(src); i++ {
		w := bits.RotateLeft16(le.Uint16(src[2*i:]), 1)
		low[i], high[i] = byte(w), byte(w>>8)
	}
}

func join2(dst, low, high []byte) {
	le := binary.LittleEndian
	i := 0
	for ; 2*i+8 <= len(dst); i += 4 {
		w := spread(le.Uint32(low[i:])) | spread(le.Uint32(high[i:]))<<8
		le.PutUint64(dst[2*i:], w>>1&^(lows16<<15)|w&lows16<<15)
	}
	for ; 2*i < len(dst); i++ {
		le.PutUint16(dst[2*i:], bits.RotateLeft16(uint16(low[i])|uint16(high[i])<<8, -1))
	}
}

// gather packs the low bytes of four lanes.
func gather(w uint64) uint32 {
	w = (w | w>>8) & bytes32
	return uint32(w | w>>16)
}

// spread puts four bytes into the low bytes of four lanes.
func spread(b uint32) uint64 {
	w := (uint64(b) | uint64(b)<<16) & bytes32
	return (w | w<<8) & bytes16
}

func split4(dst, src []byte) {
	n := len(src) / 4
	a, b, c, d := dst[:n], dst[n:2*n], dst[2*n:3*n], dst[3*n:4*n]
	for i := range n {
		w := bits.RotateLeft32(binary.LittleEndian.Uint32(src[4*i:]), 1)
		a[i], b[i], c[i], d[i] = byte(w), byte(w>>8), byte(w>>16), byte(w>>24)
	}
}

func join4(dst []byte, planes *[4][]byte) {
	n := len(dst) / 4
	a, b, c, d := planes[0][:n], planes[1][:n], planes[2][:n], planes[3][:n]
	for i := range n {
		w := uint32(a[i]) | uint32(b[i])<<8 | uint32(c[i])<<16 | uint32(d[i])<<24
		binary.LittleEndian.PutUint32(dst[4*i:], bits.RotateLeft32(w, -1))
	}
}
