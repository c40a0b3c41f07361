// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package tensor

import "fmt"

// DType is how elements are stored: a type of the safetensors format
// (https://github.com/huggingface/safetensors, Dtype), a block type of GGUF
// (ggml), or F8_E4M3_B64, a block type of this program. The zero value is none
// of them. The numbers are not stored anywhere: on the wire and in files a
// DType is its name.
type DType uint8

// The element types of the safetensors format, then those of blocks, which
// are named as GGUF names them.
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

	// Blocks of elements that share scales; see block.go.
	Q8_0
	Q5_0
	Q5_1
	Q4_0
	Q4_1
	Q2_K
	Q3_K
	Q4_K
	Q5_K
	Q6_K
	IQ4_NL
	IQ4_XS
	F8E4M3B64
	numDTypes
)

type dtypeFacts struct {
	name string
	bits int // of one element; 0 where blocks of elements share scales
	// block is how many elements share scales, and bytes their size.
	block, bytes int
}

var dtypes = [numDTypes]dtypeFacts{
	Invalid:    {name: "invalid", bits: 0},
	Bool:       {name: "BOOL", bits: 8},
	F4:         {name: "F4", bits: 4},
	F6E2M3:     {name: "F6_E2M3", bits: 6},
	F6E3M2:     {name: "F6_E3M2", bits: 6},
	U8:         {name: "U8", bits: 8},
	I8:         {name: "I8", bits: 8},
	F8E5M2:     {name: "F8_E5M2", bits: 8},
	F8E4M3:     {name: "F8_E4M3", bits: 8},
	F8E8M0:     {name: "F8_E8M0", bits: 8},
	F8E4M3FNUZ: {name: "F8_E4M3FNUZ", bits: 8},
	F8E5M2FNUZ: {name: "F8_E5M2FNUZ", bits: 8},
	I16:        {name: "I16", bits: 16},
	U16:        {name: "U16", bits: 16},
	F16:        {name: "F16", bits: 16},
	BF16:       {name: "BF16", bits: 16},
	I32:        {name: "I32", bits: 32},
	U32:        {name: "U32", bits: 32},
	F32:        {name: "F32", bits: 32},
	C64:        {name: "C64", bits: 64},
	F64:        {name: "F64", bits: 64},
	I64:        {name: "I64", bits: 64},
	U64:        {name: "U64", bits: 64},

	Q8_0:      {name: "Q8_0", block: 32, bytes: 34},
	Q5_0:      {name: "Q5_0", block: 32, bytes: 22},
	Q5_1:      {name: "Q5_1", block: 32, bytes: 24},
	Q4_0:      {name: "Q4_0", block: 32, bytes: 18},
	Q4_1:      {name: "Q4_1", block: 32, bytes: 20},
	Q2_K:      {name: "Q2_K", block: 256, bytes: 84},
	Q3_K:      {name: "Q3_K", block: 256, bytes: 110},
	Q4_K:      {name: "Q4_K", block: 256, bytes: 144},
	Q5_K:      {name: "Q5_K", block: 256, bytes: 176},
	Q6_K:      {name: "Q6_K", block: 256, bytes: 210},
	IQ4_NL:    {name: "IQ4_NL", block: 32, bytes: 18},
	IQ4_XS:    {name: "IQ4_XS", block: 256, bytes: 136},
	F8E4M3B64: {name: "F8_E4M3_B64", block: 64, bytes: 68},
}

// ParseDType is the DType of a name such as "BF16", "F8_E4M3" or "Q4_K".
func ParseDType(name string) (DType, error) {
	for d := Bool; d < numDTypes; d++ {
		if dtypes[d].name == name {
			return d, nil
		}
	}
	return Invalid, fmt.Errorf("unknown dtype %q", name)
}

// String is the name that the safetensors or GGUF format uses.
func (d DType) String() string {
	if d >= numDTypes {
		return fmt.Sprintf("DType(%d)", uint8(d))
	}
	return dtypes[d].name
}

// Bits is the width of one element in bits; 0 for an invalid DType and for
// blocks (Block).
func (d DType) Bits() int {
	if d >= numDTypes {
		return 0
	}
	return dtypes[d].bits
}

// Size is the width of one element in bytes; 0 where elements are packed more
// than one to a byte (F4, F6), lie in blocks, or the DType is invalid. Block,
// RowBytes and Shape.Bytes cover all of them.
func (d DType) Size() int {
	if d.Bits()%8 != 0 {
		return 0
	}
	return d.Bits() / 8
}

// Block is the smallest run of elements that fills whole bytes, and how many:
// 1 element of Size bytes for plain types, 256 in 144 bytes for Q4_K, 4 in 3
// bytes for F6; 0, 0 for an invalid DType.
func (d DType) Block() (elements, bytes int) {
	switch {
	case !d.Valid():
		return 0, 0
	case dtypes[d].block > 0:
		return dtypes[d].block, dtypes[d].bytes
	}
	elements = 8 / gcd(d.Bits(), 8)
	return elements, elements * d.Bits() / 8
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// Blocked says whether elements share scales, so that none can be read without
// its block.
func (d DType) Blocked() bool { return d < numDTypes && dtypes[d].block > 0 }

// RowBytes is the size of k elements, a multiple of Block's; a rest is not
// counted.
func (d DType) RowBytes(k int64) int64 {
	elements, bytes := d.Block()
	if elements == 0 {
		return 0
	}
	return k / int64(elements) * int64(bytes)
}

// Valid says whether d is one of the types.
func (d DType) Valid() bool { return d > Invalid && d < numDTypes }

// Float says whether ToF32 and ToBF16 read d.
func (d DType) Float() bool {
	switch d {
	case F8E5M2, F8E4M3, F8E8M0, F8E4M3FNUZ, F8E5M2FNUZ, F16, BF16, F32, F64:
		return true
	}
	return d.Blocked()
}

// MarshalText is the name.
func (d DType) MarshalText() ([]byte, error) {
	if !d.Valid() {
		return nil, fmt.Errorf("dtype %d has no name", uint8(d))
	}
	return []byte(d.String()), nil
}

// UnmarshalText reads a name.
func (d *DType) UnmarshalText(text []byte) error {
	v, err := ParseDType(string(text))
	if err != nil {
		return err
	}
	*d = v
	return nil
}
