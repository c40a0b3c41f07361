// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"encoding/hex"
	"fmt"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// ParseID reads an id as control messages have it: 16 bytes in hex.
func ParseID(s string) (id [16]byte, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%.40q is not 32 hex digits", s)
	}
	return [16]byte(b), nil
}

// Proto is the key as control messages have it.
func (k RemoteKey) Proto() *pb.RemoteKey {
	return &pb.RemoteKey{Region: k.Region, Key: k.Key[:], Bytes: k.Bytes}
}

// KeyFromProto reads a key that a peer sent.
func KeyFromProto(k *pb.RemoteKey) (RemoteKey, error) {
	if n := len(k.GetKey()); n != len(RemoteKey{}.Key) {
		return RemoteKey{}, fmt.Errorf("remote key of %d bytes, want %d", n, len(RemoteKey{}.Key))
	}
	return RemoteKey{Region: k.Region, Key: [16]byte(k.Key), Bytes: k.Bytes}, nil
}
