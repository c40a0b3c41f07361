// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package isa names the instruction sets that the native engine has kernels
// for and tells which of them this CPU can run.
//
// Imported by the kernels below agent/engine/native, by the agent and by the
// commands that force a set. It imports nothing of distorch.
package isa

import (
	"fmt"
	"slices"
	"strings"
)

// ISA is one instruction set; a larger value is a faster one. Every set gives
// the same bits (docs/numerics.md).
type ISA uint8

// The instruction sets, slowest first.
const (
	Generic    ISA = iota // pure Go
	AVX2                  // AVX2 and FMA3, 8 lanes
	AVX512                // AVX-512 F, BW, DQ, VL, 16 lanes
	AVX512BF16            // AVX-512 with VDPBF16PS
)

// All lists every ISA, slowest first.
func All() []ISA { return []ISA{Generic, AVX2, AVX512, AVX512BF16} }

func (i ISA) String() string {
	switch i {
	case Generic:
		return "generic"
	case AVX2:
		return "avx2"
	case AVX512:
		return "avx512"
	case AVX512BF16:
		return "avx512bf16"
	}
	return fmt.Sprintf("isa(%d)", uint8(i))
}

// Parse reads the value of agent.cpu_isa. The empty string and "auto" mean
// the best set of this CPU. It fails when the name is unknown or when the CPU
// lacks the set.
func Parse(name string) (ISA, error) {
	have := Supported()
	if name == "" || name == "auto" {
		return have[len(have)-1], nil
	}
	for _, i := range All() {
		if i.String() != strings.ToLower(name) {
			continue
		}
		if slices.Contains(have, i) {
			return i, nil
		}
		return 0, fmt.Errorf("cpu_isa %s: this CPU has only %s; use one of those or auto", name, names(have))
	}
	return 0, fmt.Errorf("cpu_isa %q is unknown: use auto, %s", name, names(All()))
}

func names(list []ISA) string {
	s := make([]string, len(list))
	for i, v := range list {
		s[i] = v.String()
	}
	return strings.Join(s, ", ")
}
