// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"fmt"
)

// Why a peer refuses a transfer. WriteImm and Read return them wrapped in a
// RefusedError; an Accept function returns them to refuse.
var (
	ErrMalformed        = errors.New("frame is malformed")
	ErrVersion          = errors.New("frame version is not supported")
	ErrUnknownRegion    = errors.New("region is not registered")
	ErrWrongKey         = errors.New("remote key is not valid for this region and peer")
	ErrOutOfRange       = errors.New("range lies outside the region")
	ErrChecksum         = errors.New("checksum of the payload differs")
	ErrLength           = errors.New("length of the transfer is not the expected one")
	ErrUnexpectedFrame  = errors.New("frame was not expected")
	ErrStaleEpoch       = errors.New("epoch is not the region's")
	ErrStaleIncarnation = errors.New("incarnation of the sender is not the expected one")
	ErrAborted          = errors.New("transfer was aborted")
	ErrNotReadable      = errors.New("region may not be read")
	ErrRefused          = errors.New("transfer was refused")
	ErrNotPermitted     = errors.New("peer does not permit bulk transfers")
	ErrClosed           = errors.New("transport is closed")
)

// code is a refusal's number on the wire.
type code uint32

const (
	codeOK code = iota
	codeMalformed
	codeVersion
	codeUnknownRegion
	codeWrongKey
	codeOutOfRange
	codeChecksum
	codeLength
	codeUnexpected
	codeStaleEpoch
	codeStaleIncarnation
	codeRefused
	codeAborted
	codeGap // a chunk is missing before this one; the sender resumes
	codeNotReadable
	lastCode = codeNotReadable
)

func (c code) sentinel() error {
	switch c {
	case codeMalformed:
		return ErrMalformed
	case codeVersion:
		return ErrVersion
	case codeUnknownRegion:
		return ErrUnknownRegion
	case codeWrongKey:
		return ErrWrongKey
	case codeOutOfRange:
		return ErrOutOfRange
	case codeChecksum:
		return ErrChecksum
	case codeLength:
		return ErrLength
	case codeUnexpected, codeGap:
		return ErrUnexpectedFrame
	case codeStaleEpoch:
		return ErrStaleEpoch
	case codeStaleIncarnation:
		return ErrStaleIncarnation
	case codeAborted:
		return ErrAborted
	case codeNotReadable:
		return ErrNotReadable
	default:
		return ErrRefused
	}
}

// codeOf is the wire code of an error that names one of the sentinels.
func codeOf(err error) code {
	for c := codeMalformed; c <= lastCode; c++ {
		if errors.Is(err, c.sentinel()) {
			return c
		}
	}
	return codeRefused
}

// RefusedError is a peer's answer to a transfer that it did not complete.
// errors.Is finds the sentinel that says why.
type RefusedError struct {
	Op     string // "write to", "read from"
	Node   NodeID
	Addr   string
	Region uint64
	Reason string // the peer's words
	Kind   error  // one of the sentinels
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s region %d of node %s at %s: %s: %v", e.Op, e.Region, e.Node, e.Addr, e.Reason, e.Kind)
}

func (e *RefusedError) Unwrap() error { return e.Kind }

// ErrPeerUnreachable says that no connection to a peer could be kept or made
// within Config.RedialFor. errors.As takes a value or a pointer to it.
type ErrPeerUnreachable struct {
	Node NodeID
	Addr string
	Err  error // the last failure
}

func (e ErrPeerUnreachable) Error() string {
	return fmt.Sprintf("node %s at %s is unreachable: %v", e.Node, e.Addr, e.Err)
}

func (e ErrPeerUnreachable) Unwrap() error { return e.Err }

// As lets errors.As fill a *ErrPeerUnreachable variable too.
func (e ErrPeerUnreachable) As(target any) bool {
	if p, ok := target.(**ErrPeerUnreachable); ok {
		*p = &e
		return true
	}
	return false
}
