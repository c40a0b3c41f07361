// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is an amount of memory, written as 6GB (decimal) or 6GiB (binary), with
// decimals if wanted, or as a plain number of bytes.
type Bytes uint64

// units is ordered so that a longer suffix is tried before one that ends it.
var units = [...]struct {
	suffix string
	bytes  float64
}{
	{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}, {"tib", 1 << 40},
	{"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"tb", 1e12}, {"b", 1},
}

// ParseBytes reads an amount.
func ParseBytes(s string) (Bytes, error) {
	number, unit := strings.ToLower(strings.TrimSpace(s)), 1.0
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	if n, err := strconv.ParseUint(number, 10, 64); err == nil && unit == 1 {
		return Bytes(n), nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(f) || f < 0 || f*unit >= math.MaxInt64 {
		return 0, fmt.Errorf("amount of memory %q: want a number with an optional unit, such as 6GB or 512MiB", s)
	}
	return Bytes(math.Round(f * unit)), nil
}

// UnmarshalText reads an amount.
func (b *Bytes) UnmarshalText(text []byte) error {
	parsed, err := ParseBytes(string(text))
	if err != nil {
		return err
	}
	*b = parsed
	return nil
}

// String writes the amount with the largest unit that keeps it exact.
func (b Bytes) String() string {
	for _, u := range [...]struct {
		suffix string
		bytes  Bytes
	}{{"TiB", 1 << 40}, {"TB", 1e12}, {"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"kB", 1e3}} {
		if b >= u.bytes && b%u.bytes == 0 {
			return strconv.FormatUint(uint64(b/u.bytes), 10) + u.suffix
		}
	}
	return strconv.FormatUint(uint64(b), 10) + "B"
}

// Set reads an amount given as a flag.
func (b *Bytes) Set(s string) error { return b.UnmarshalText([]byte(s)) }

// Type names the amount in a flag's help.
func (b *Bytes) Type() string { return "bytes" }
