// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package tensor

import "fmt"

// DType is an element type of the safetensors format
// (https://github.com/huggingface/safetensors, Dtype). The zero value is none
// of them. The numbers are not stored anywhere: on the wire and in files a
// DType is its name.
type DType uint8

// The element types of the safetensors format.
const (
	Invalid DType = iota
	Bool
	F4
	F6E2M3
	F6E3M2
	U8
	I8
	F8E5M2
	F8E4M3
	F8E8M0
	F8E4M3FNUZ
	F8E5M2FNUZ
	I16
	U16
	F16
	BF16
	I32
	U32
	F32
	C64
	F64
	I64
	U64
	numDTypes
)

type dtypeFacts struct {
	name string
	bits int
}

var dtypes = [numDTypes]dtypeFacts{
	Invalid:    {"invalid", 0},
	Bool:       {"BOOL", 8},
	F4:         {"F4", 4},
	F6E2M3:     {"F6_E2M3", 6},
	F6E3M2:     {"F6_E3M2", 6},
	U8:         {"U8", 8},
	I8:         {"I8", 8},
	F8E5M2:     {"F8_E5M2", 8},
	F8E4M3:     {"F8_E4M3", 8},
	F8E8M0:     {"F8_E8M0", 8},
	F8E4M3FNUZ: {"F8_E4M3FNUZ", 8},
	F8E5M2FNUZ: {"F8_E5M2FNUZ", 8},
	I16:        {"I16", 16},
	U16:        {"U16", 16},
	F16:        {"F16", 16},
	BF16:       {"BF16", 16},
	I32:        {"I32", 32},
	U32:        {"U32", 32},
	F32:        {"F32", 32},
	C64:        {"C64", 64},
	F64:        {"F64", 64},
	I64:        {"I64", 64},
	U64:        {"U64", 64},
}

// ParseDType is the DType of a safetensors name such as "BF16" or "F8_E4M3".
func ParseDType(name string) (DType, error) {
	for d := Bool; d < numDTypes; d++ {
		if dtypes[d].name == name {
			return d, nil
		}
	}
	return Invalid, fmt.Errorf("unknown dtype %q", name)
}

// String is the name the safetensors format uses.
func (d DType) String() string {
	if d >= numDTypes {
		return fmt.Sprintf("DType(%d)", uint8(d))
	}
	return dtypes[d].name
}

// Bits is the width of one element in bits; 0 for an invalid DType.
func (d DType) Bits() int {
	if d >= numDTypes {
		return 0
	}
	return dtypes[d].bits
}

// Size is the width of one element in bytes; 0 where elements are packed more
// than one to a byte (F4, F6) or the DType is invalid. Shape.Bytes covers both.
func (d DType) Size() int {
	if d.Bits()%8 != 0 {
		return 0
	}
	return d.Bits() / 8
}

// Valid says whether d is one of the format's types.
func (d DType) Valid() bool { return d > Invalid && d < numDTypes }

// Float says whether ToF32 and ToBF16 read d.
func (d DType) Float() bool {
	switch d {
	case F8E5M2, F8E4M3, F8E8M0, F8E4M3FNUZ, F8E5M2FNUZ, F16, BF16, F32, F64:
		return true
	}
	return false
}

// MarshalText is the safetensors name.
func (d DType) MarshalText() ([]byte, error) {
	if !d.Valid() {
		return nil, fmt.Errorf("dtype %d has no name", uint8(d))
	}
	return []byte(d.String()), nil
}

// UnmarshalText reads a safetensors name.
func (d *DType) UnmarshalText(text []byte) error {
	v, err := ParseDType(string(text))
	if err != nil {
		return err
	}
	*d = v
	return nil
}
