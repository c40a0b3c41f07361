// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package isa

import "golang.org/x/sys/cpu"

// Supported lists the sets that this CPU and operating system run, slowest
// first; Generic is always among them.
func Supported() []ISA {
	s := []ISA{Generic}
	if !cpu.X86.HasAVX2 || !cpu.X86.HasFMA {
		return s
	}
	s = append(s, AVX2)
	if !cpu.X86.HasAVX512F || !cpu.X86.HasAVX512BW || !cpu.X86.HasAVX512DQ || !cpu.X86.HasAVX512VL {
		return s
	}
	s = append(s, AVX512)
	if cpu.X86.HasAVX512BF16 {
		s = append(s, AVX512BF16)
	}
	return s
}
