// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"encoding/hex"
	"encoding/json"
	"math"

	"github.com/zeebo/blake3"

	"github.com/distorch/distorch/model/tensor"
)

// Record is the result for one output of one case, or for a case that could
// not be run (Output is empty then).
type Record struct {
	Case        string
	Output      string
	DType       string  // that the case was computed in
	Error       float64 // max|got-want| / max|want|
	Tolerance   float64
	FirstTapOff string // of an output: the first inner value beyond its tolerance, in order of execution
	Digest      string // BLAKE3 of the output's bytes as computed, row-major
	Note        string // what else is to be known: the reason of a refusal that was due
	Failure     string // why the case or output could not be compared
}

// OK says whether the output and the inner values before it are right.
func (r Record) OK() bool {
	return r.Failure == "" && r.FirstTapOff == "" && r.Error <= r.Tolerance
}

// MarshalJSON writes an error that is no number, and that of a case that did
// not run, as null.
func (r Record) MarshalJSON() ([]byte, error) {
	var off *float64
	if r.Failure == "" && !math.IsInf(r.Error, 0) && !math.IsNaN(r.Error) {
		off = &r.Error
	}
	return json.Marshal(struct {
		Case        string   `json:"case"`
		Output      string   `json:"output"`
		DType       string   `json:"dtype"`
		Error       *float64 `json:"error"`
		Tolerance   float64  `json:"tolerance"`
		FirstTapOff string   `json:"first_tap_off"`
		Digest      string   `json:"digest"`
		OK          bool     `json:"ok"`
		Note        string   `json:"note,omitempty"`
		Failure     string   `json:"failure,omitempty"`
	}{r.Case, r.Output, r.DType, off, r.Tolerance, r.FirstTapOff, r.Digest, r.OK(), r.Note, r.Failure})
}

// relative is max|got-want| / max|want|; infinite where the lengths differ or
// a value is no number.
func relative(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	diff, top := 0.0, 0.0
	for i := range got {
		d := math.Abs(float64(got[i]) - float64(want[i]))
		if math.IsNaN(d) {
			return math.Inf(1)
		}
		diff, top = max(diff, d), max(top, math.Abs(float64(want[i])))
	}
	if top > 0 {
		return diff / top
	}
	return diff
}

func digest(raw []byte) string {
	sum := blake3.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// floats reads computed bytes, which are float32.
func floats(raw []byte) ([]float32, error) {
	v := make([]float32, len(raw)/4)
	return v, tensor.ToF32(v, raw, tensor.F32)
}

func bytesOf(v []float32) []byte {
	raw := make([]byte, 4*len(v))
	tensor.PutF32(raw, v)
	return raw
}

// dtypeName is how records name a compute dtype.
func dtypeName(d tensor.DType) string {
	switch d {
	case tensor.F32:
		return "f32"
	case tensor.BF16:
		return "bf16"
	}
	return d.String()
}
