// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package safetensors

import (
	"fmt"
	"strconv"
)

// Reason says which rule of the format a file breaks.
type Reason string

// The rules of the format, one reason each.
const (
	EmptyFile        Reason = "file is empty"
	TooShort         Reason = "file is too short for a header length"
	HeaderEmpty      Reason = "header length is zero"
	HeaderTooLong    Reason = "header length is over the format's limit of 100,000,000 bytes"
	HeaderTruncated  Reason = "file ends inside the header"
	HeaderNotUTF8    Reason = "header is not UTF-8"
	HeaderNotJSON    Reason = "header is not JSON"
	HeaderNotObject  Reason = "header is not a JSON object"
	HeaderTrailing   Reason = "header has text after its JSON object"
	DuplicateName    Reason = "header has a name twice"
	MetadataInvalid  Reason = "__metadata__ is not an object of strings"
	EntryNotObject   Reason = "entry is not an object"
	FieldMissing     Reason = "field is missing"
	FieldInvalid     Reason = "field has the wrong type"
	DTypeUnknown     Reason = "dtype is unknown"
	ShapeFraction    Reason = "dimension is not an integer"
	ShapeNegative    Reason = "dimension is negative"
	ShapeTooLong     Reason = "shape has more than 64 dimensions"
	SizeOverflow     Reason = "size overflows 64 bits"
	SizeMismatch     Reason = "offsets do not give the size of shape and dtype"
	OffsetsInvalid   Reason = "data_offsets are not two integers"
	OffsetsNegative  Reason = "offset is negative"
	OffsetsReversed  Reason = "offsets end before they begin"
	OffsetsOverlap   Reason = "data overlaps another tensor's"
	OffsetsGap       Reason = "bytes before the data belong to no tensor"
	OffsetsOutside   Reason = "data lies outside the file"
	DataTrailing     Reason = "bytes after the last tensor belong to no tensor"
	ChangedOnDisk    Reason = "file is shorter than when it was opened"
	maxHeader               = 100_000_000
	maxRank                 = 64
	headerLengthSize        = 8
	metadataKey             = "__metadata__"
)

// FormatError is a file that breaks a rule of the format.
type FormatError struct {
	Reason Reason
	Tensor string // the entry at fault; empty where the file as a whole is
	Detail string // numbers and names; may be empty
}

func (e *FormatError) Error() string {
	s := string(e.Reason)
	if e.Tensor != "" {
		s = "tensor " + strconv.Quote(shorten(e.Tensor)) + ": " + s
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Reason == HeaderTruncated || e.Reason == OffsetsOutside {
		s += "; if it was copied or downloaded, that may have ended early: do it again"
	}
	return "not a valid safetensors file: " + s
}

// shorten keeps a hostile name from filling a log.
func shorten(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}

func refuse(r Reason, name, format string, args ...any) error {
	return &FormatError{Reason: r, Tensor: name, Detail: fmt.Sprintf(format, args...)}
}
