// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gguf

import "github.com/distorch/distorch/model/tensor"

// typeFacts is a tensor type of the format (enum ggml_type).
type typeFacts struct {
	name    string // "" where the number never had a type
	dtype   tensor.DType
	removed bool
}

// typeOf says what a tensor type's number means.
func typeOf(n uint32) typeFacts {
	known := [...]typeFacts{
		0: {name: "F32", dtype: tensor.F32}, 1: {name: "F16", dtype: tensor.F16},
		2: {name: "Q4_0", dtype: tensor.Q4_0}, 3: {name: "Q4_1", dtype: tensor.Q4_1},
		4: {name: "Q4_2", removed: true}, 5: {name: "Q4_3", removed: true},
		6: {name: "Q5_0", dtype: tensor.Q5_0}, 7: {name: "Q5_1", dtype: tensor.Q5_1},
		8: {name: "Q8_0", dtype: tensor.Q8_0}, 9: {name: "Q8_1"},
		10: {name: "Q2_K", dtype: tensor.Q2_K}, 11: {name: "Q3_K", dtype: tensor.Q3_K},
		12: {name: "Q4_K", dtype: tensor.Q4_K}, 13: {name: "Q5_K", dtype: tensor.Q5_K},
		14: {name: "Q6_K", dtype: tensor.Q6_K}, 15: {name: "Q8_K"},
		16: {name: "IQ2_XXS"}, 17: {name: "IQ2_XS"}, 18: {name: "IQ3_XXS"}, 19: {name: "IQ1_S"},
		20: {name: "IQ4_NL", dtype: tensor.IQ4_NL}, 21: {name: "IQ3_S"}, 22: {name: "IQ2_S"},
		23: {name: "IQ4_XS", dtype: tensor.IQ4_XS},
		24: {name: "I8", dtype: tensor.I8}, 25: {name: "I16", dtype: tensor.I16},
		26: {name: "I32", dtype: tensor.I32}, 27: {name: "I64", dtype: tensor.I64},
		28: {name: "F64", dtype: tensor.F64}, 29: {name: "IQ1_M"}, 30: {name: "BF16", dtype: tensor.BF16},
		31: {name: "Q4_0_4_4", removed: true}, 32: {name: "Q4_0_4_8", removed: true}, 33: {name: "Q4_0_8_8", removed: true},
		34: {name: "TQ1_0"}, 35: {name: "TQ2_0"},
		36: {name: "IQ4_NL_4_4", removed: true}, 37: {name: "IQ4_NL_4_8", removed: true}, 38: {name: "IQ4_NL_8_8", removed: true},
		39: {name: "MXFP4"},
	}
	if n >= uint32(len(known)) {
		return typeFacts{}
	}
	return known[n]
}

// dtypeOf is the dtype of a tensor type that this build reads.
func dtypeOf(n uint32, name string) (tensor.DType, error) {
	t := typeOf(n)
	switch {
	case t.name == "":
		return tensor.Invalid, refuse(TypeUnknown, name, "%d", n)
	case t.removed:
		return tensor.Invalid, refuse(TypeRemoved, name, "%d (%s)", n, t.name)
	case !t.dtype.Valid():
		return tensor.Invalid, refuse(TypeUnsupported, name, "%s; use a file of Q8_0, Q6_K, Q5_K or another type that is", t.name)
	}
	return t.dtype, nil
}
