// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import "github.com/distorch/distorch/agent/engine/native/isa"

// assembly returns the kernels of a set above pure Go; the AVX-512 ones serve
// both of its sets.
func assembly(set isa.ISA) *Kernels {
	if set == isa.AVX2 {
		return kernelsAVX2()
	}
	return kernelsAVX512()
}

func kernelsAVX2() *Kernels {
	return &Kernels{
		F32: Ops[float32]{table[float32]{
			add:               addF32AVX2,
			mul:               mulF32AVX2,
			silu:              siluF32AVX2,
			gelu:              geluF32AVX2,
			modulate:          modulateF32AVX2,
			gatedAdd:          gatedAddF32AVX2,
			gatedAddFused:     gatedAddFusedF32AVX2,
			layerNorm:         layerNormF32AVX2,
			layerNormAffine:   layerNormAffineF32AVX2,
			layerNormModulate: layerNormModulateF32AVX2,
			rmsNorm:           rmsNormF32AVX2,
			rmsNormPlain:      rmsNormPlainF32AVX2,
			rope:              ropeF32AVX2,
			rmsNormRope:       rmsNormRopeF32AVX2,
			rowMax:            rowMaxF32AVX2,
			rowSum:            rowSumF32AVX2,
			expSub:            expSubF32AVX2,
			rowScale:          rowScaleF32AVX2,
			scale:             scaleF32AVX2,
		}},
		BF16: Ops[uint16]{table[uint16]{
			add:               addBF16AVX2,
			mul:               mulBF16AVX2,
			silu:              siluBF16AVX2,
			gelu:              geluBF16AVX2,
			modulate:          modulateBF16AVX2,
			gatedAdd:          gatedAddBF16AVX2,
			gatedAddFused:     gatedAddFusedBF16AVX2,
			layerNorm:         layerNormBF16AVX2,
			layerNormAffine:   layerNormAffineBF16AVX2,
			layerNormModulate: layerNormModulateBF16AVX2,
			rmsNorm:           rmsNormBF16AVX2,
			rmsNormPlain:      rmsNormPlainBF16AVX2,
			rope:              ropeBF16AVX2,
			rmsNormRope:       rmsNormRopeBF16AVX2,
			rowMax:            rowMaxBF16AVX2,
			rowSum:            rowSumBF16AVX2,
			expSub:            expSubBF16AVX2,
			rowScale:          rowScaleBF16AVX2,
			scale:             scaleBF16AVX2,
		}},
		convert: conversions{
			f32ToBF16:  convertF32ToBF16AVX2,
			bf16ToF32:  convertBF16ToF32AVX2,
			f16ToF32:   convertF16ToF32AVX2,
			f16ToBF16:  convertF16ToBF16AVX2,
			e4m3ToF32:  convertE4M3ToF32AVX2,
			e4m3ToBF16: convertE4M3ToBF16AVX2,
			e5m2ToF32:  convertE5M2ToF32AVX2,
			e5m2ToBF16: convertE5M2ToBF16AVX2,
			blocks:     blocksAVX2(),
		},
	}
}

func kernelsAVX512() *Kernels {
	return &Kernels{
		F32: Ops[float32]{table[float32]{
			add:               addF32AVX512,
			mul:               mulF32AVX512,
			silu:              siluF32AVX512,
			gelu:              geluF32AVX512,
			modulate:          modulateF32AVX512,
			gatedAdd:          gatedAddF32AVX512,
			gatedAddFused:     gatedAddFusedF32AVX512,
			layerNorm:         layerNormF32AVX512,
			layerNormAffine:   layerNormAffineF32AVX512,
			layerNormModulate: layerNormModulateF32AVX512,
			rmsNorm:           rmsNormF32AVX512,
			rmsNormPlain:      rmsNormPlainF32AVX512,
			rope:              ropeF32AVX512,
			rmsNormRope:       rmsNormRopeF32AVX512,
			rowMax:            rowMaxF32AVX512,
			rowSum:            rowSumF32AVX512,
			expSub:            expSubF32AVX512,
			rowScale:          rowScaleF32AVX512,
			scale:             scaleF32AVX512,
		}},
		BF16: Ops[uint16]{table[uint16]{
			add:               addBF16AVX512,
			mul:               mulBF16AVX512,
			silu:              siluBF16AVX512,
			gelu:              geluBF16AVX512,
			modulate:          modulateBF16AVX512,
			gatedAdd:          gatedAddBF16AVX512,
			gatedAddFused:     gatedAddFusedBF16AVX512,
			layerNorm:         layerNormBF16AVX512,
			layerNormAffine:   layerNormAffineBF16AVX512,
			layerNormModulate: layerNormModulateBF16AVX512,
			rmsNorm:           rmsNormBF16AVX512,
			rmsNormPlain:      rmsNormPlainBF16AVX512,
			rope:              ropeBF16AVX512,
			rmsNormRope:       rmsNormRopeBF16AVX512,
			rowMax:            rowMaxBF16AVX512,
			rowSum:            rowSumBF16AVX512,
			expSub:            expSubBF16AVX512,
			rowScale:          rowScaleBF16AVX512,
			scale:             scaleBF16AVX512,
		}},
		convert: conversions{
			f32ToBF16:  convertF32ToBF16AVX512,
			bf16ToF32:  convertBF16ToF32AVX512,
			f16ToF32:   convertF16ToF32AVX512,
			f16ToBF16:  convertF16ToBF16AVX512,
			e4m3ToF32:  convertE4M3ToF32AVX512,
			e4m3ToBF16: convertE4M3ToBF16AVX512,
			e5m2ToF32:  convertE5M2ToF32AVX512,
			e5m2ToBF16: convertE5M2ToBF16AVX512,
			blocks:     blocksAVX512(),
		},
	}
}
