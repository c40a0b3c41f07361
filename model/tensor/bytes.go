// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package tensor

import (
	"math"
	"strconv"
)

// Bytes is a number of bytes.
type Bytes int64

// Decimal units of Bytes.
const (
	KB Bytes = 1000
	MB       = 1000 * KB
	GB       = 1000 * MB
	TB       = 1000 * GB
)

// Binary units of Bytes.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
)

// String is the count in decimal units with one decimal, as disks and networks
// are sold: "512 B", "23.8 GB".
func (b Bytes) String() string {
	v := float64(b)
	if math.Abs(v) < 1000 {
		return strconv.FormatInt(int64(b), 10) + " B"
	}
	for _, unit := range []string{"kB", "MB", "GB", "TB", "PB"} {
		v /= 1000
		if math.Abs(v) < 999.95 {
			return strconv.FormatFloat(v, 'f', 1, 64) + " " + unit
		}
	}
	return strconv.FormatFloat(v/1000, 'f', 1, 64) + " EB"
}
