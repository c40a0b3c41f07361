// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

// F32ToBF16 rounds len(dst) elements to nearest even.
func (k *Kernels) F32ToBF16(dst []uint16, src []float32) { k.convert.f32ToBF16(dst, src[:len(dst)]) }

// BF16ToF32 expands len(dst) elements.
func (k *Kernels) BF16ToF32(dst []float32, src []uint16) { k.convert.bf16ToF32(dst, src[:len(dst)]) }

// F16ToF32 expands len(dst) IEEE half-precision elements.
func (k *Kernels) F16ToF32(dst []float32, src []uint16) { k.convert.f16ToF32(dst, src[:len(dst)]) }

// F16ToBF16 rounds len(dst) IEEE half-precision elements to bf16.
func (k *Kernels) F16ToBF16(dst []uint16, src []uint16) { k.convert.f16ToBF16(dst, src[:len(dst)]) }

// F8E4M3ToF32 expands len(dst) elements of OCP's FP8 E4M3 (no infinities,
// 0x7f and 0xff are not numbers).
func (k *Kernels) F8E4M3ToF32(dst []float32, src []byte) { k.convert.e4m3ToF32(dst, src[:len(dst)]) }

// F8E4M3ToBF16 expands len(dst) elements of OCP's FP8 E4M3; every value is
// exact in bf16.
func (k *Kernels) F8E4M3ToBF16(dst []uint16, src []byte) { k.convert.e4m3ToBF16(dst, src[:len(dst)]) }

// F8E5M2ToF32 expands len(dst) elements of OCP's FP8 E5M2.
func (k *Kernels) F8E5M2ToF32(dst []float32, src []byte) { k.convert.e5m2ToF32(dst, src[:len(dst)]) }

// F8E5M2ToBF16 expands len(dst) elements of OCP's FP8 E5M2; every value is
// exact in bf16.
func (k *Kernels) F8E5M2ToBF16(dst []uint16, src []byte) { k.convert.e5m2ToBF16(dst, src[:len(dst)]) }
