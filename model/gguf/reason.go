// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gguf

import (
	"errors"
	"fmt"
	"strconv"
)

// Reason says which rule of the format a file breaks, or what of it this
// build does not read.
type Reason string

// The rules of the format, one reason each.
const (
	EmptyFile           Reason = "file is empty"
	NotGGUF             Reason = "file does not begin with GGUF"
	BigEndian           Reason = "big-endian file; only little-endian ones are read"
	VersionUnknown      Reason = "version is not 2 or 3"
	HeaderTruncated     Reason = "file ends inside the header"
	HeaderTooLong       Reason = "header is over the limit of 100,000,000 bytes"
	CountTooLarge       Reason = "count is larger than the file can hold"
	LengthTooLarge      Reason = "length is larger than the file can hold"
	NotUTF8             Reason = "text is not UTF-8"
	ValueTypeUnknown    Reason = "metadata value has an unknown type"
	BoolInvalid         Reason = "metadata value is no bool"
	ArrayNested         Reason = "metadata arrays are nested too deep"
	KeyDuplicate        Reason = "metadata key is there twice"
	ArchitectureInvalid Reason = "general.architecture is not a string"
	AlignmentInvalid    Reason = "general.alignment is not a power of two of 1 to 1048576"
	SplitInvalid        Reason = "split.* keys do not name a part of a file"
	DimensionsTooMany   Reason = "tensor has more than 8 dimensions"
	TypeUnknown         Reason = "tensor type is unknown"
	TypeRemoved         Reason = "tensor type was removed from the format"
	TypeUnsupported     Reason = "tensor type is not read by this build"
	SizeOverflow        Reason = "size overflows 64 bits"
	RowNotBlocks        Reason = "rows are not made of whole blocks"
	OrigShapeInvalid    Reason = "comfy.gguf.orig_shape is not a shape of as many elements"
	NameDuplicate       Reason = "tensor name is there twice"
	OffsetMisaligned    Reason = "offset is not a multiple of the alignment"
	OffsetOutside       Reason = "data lies outside the file"
	OffsetsOverlap      Reason = "data overlaps another tensor's"
	ChangedOnDisk       Reason = "file is shorter than when it was opened"
)

// FormatError is a file that breaks a rule of the format.
type FormatError struct {
	Reason Reason
	Name   string // the tensor or key at fault; empty where the file as a whole is
	Detail string // numbers and names; may be empty
}

func (e *FormatError) Error() string {
	s := string(e.Reason)
	if e.Name != "" {
		s = strconv.Quote(shorten(e.Name)) + ": " + s
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	switch {
	case e.unsupported():
		return "not a GGUF file that this build reads: " + s
	case e.Reason == HeaderTruncated, e.Reason == OffsetOutside:
		s += "; if it was copied or downloaded, that may have ended early: do it again"
	}
	return "not a valid GGUF file: " + s
}

// ErrUnsupported is a file that keeps the rules of the format and that this
// build does not read.
var ErrUnsupported = errors.New("not a GGUF file that this build reads")

// Is reports such a file as ErrUnsupported.
func (e *FormatError) Is(target error) bool { return target == ErrUnsupported && e.unsupported() }

func (e *FormatError) unsupported() bool {
	return e.Reason == BigEndian || e.Reason == VersionUnknown || e.Reason == TypeUnsupported
}

// shorten keeps a hostile name from filling a log.
func shorten(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}

func refuse(r Reason, name, format string, args ...any) error {
	return &FormatError{Reason: r, Name: name, Detail: fmt.Sprintf(format, args...)}
}
