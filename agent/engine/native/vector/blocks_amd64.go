// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import "github.com/distorch/distorch/model/tensor"

func blocksAVX2() map[tensor.DType]expander {
	return map[tensor.DType]expander{
		tensor.Q8_0:      {expandQ8_0ToF32AVX2, expandQ8_0ToBF16AVX2},
		tensor.Q5_0:      {expandQ5_0ToF32AVX2, expandQ5_0ToBF16AVX2},
		tensor.Q5_1:      {expandQ5_1ToF32AVX2, expandQ5_1ToBF16AVX2},
		tensor.Q4_0:      {expandQ4_0ToF32AVX2, expandQ4_0ToBF16AVX2},
		tensor.Q4_1:      {expandQ4_1ToF32AVX2, expandQ4_1ToBF16AVX2},
		tensor.Q2_K:      {expandQ2_KToF32AVX2, expandQ2_KToBF16AVX2},
		tensor.Q3_K:      {expandQ3_KToF32AVX2, expandQ3_KToBF16AVX2},
		tensor.Q4_K:      {expandQ4_KToF32AVX2, expandQ4_KToBF16AVX2},
		tensor.Q5_K:      {expandQ5_KToF32AVX2, expandQ5_KToBF16AVX2},
		tensor.Q6_K:      {expandQ6_KToF32AVX2, expandQ6_KToBF16AVX2},
		tensor.IQ4_NL:    {expandIQ4_NLToF32AVX2, expandIQ4_NLToBF16AVX2},
		tensor.IQ4_XS:    {expandIQ4_XSToF32AVX2, expandIQ4_XSToBF16AVX2},
		tensor.F8E4M3B64: {expandF8E4M3B64ToF32AVX2, expandF8E4M3B64ToBF16AVX2},
	}
}

func blocksAVX512() map[tensor.DType]expander {
	return map[tensor.DType]expander{
		tensor.Q8_0:      {expandQ8_0ToF32AVX512, expandQ8_0ToBF16AVX512},
		tensor.Q5_0:      {expandQ5_0ToF32AVX512, expandQ5_0ToBF16AVX512},
		tensor.Q5_1:      {expandQ5_1ToF32AVX512, expandQ5_1ToBF16AVX512},
		tensor.Q4_0:      {expandQ4_0ToF32AVX512, expandQ4_0ToBF16AVX512},
		tensor.Q4_1:      {expandQ4_1ToF32AVX512, expandQ4_1ToBF16AVX512},
		tensor.Q2_K:      {expandQ2_KToF32AVX512, expandQ2_KToBF16AVX512},
		tensor.Q3_K:      {expandQ3_KToF32AVX512, expandQ3_KToBF16AVX512},
		tensor.Q4_K:      {expandQ4_KToF32AVX512, expandQ4_KToBF16AVX512},
		tensor.Q5_K:      {expandQ5_KToF32AVX512, expandQ5_KToBF16AVX512},
		tensor.Q6_K:      {expandQ6_KToF32AVX512, expandQ6_KToBF16AVX512},
		tensor.IQ4_NL:    {expandIQ4_NLToF32AVX512, expandIQ4_NLToBF16AVX512},
		tensor.IQ4_XS:    {expandIQ4_XSToF32AVX512, expandIQ4_XSToBF16AVX512},
		tensor.F8E4M3B64: {expandF8E4M3B64ToF32AVX512, expandF8E4M3B64ToBF16AVX512},
	}
}
