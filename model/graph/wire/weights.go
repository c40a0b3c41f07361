// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// maxPacked bounds what a packed list of tensors may become.
const maxPacked = 16 << 20

// PackWeights is a list of tensors in a few percent of its bytes: the names of
// a LoRA's repeat themselves, and a node may hold hundreds of files.
func PackWeights(all []*pb.WeightEntry) ([]byte, error) {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(&pb.ModelRecord{Weights: all})
	if err != nil {
		return nil, err
	}
	if len(raw) > maxPacked {
		return nil, fmt.Errorf("a header of %d bytes, at most %d", len(raw), maxPacked)
	}
	return deflate(raw)
}

func deflate(raw []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(raw); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// UnpackWeights is its inverse.
func UnpackWeights(packed []byte) ([]*pb.WeightEntry, error) {
	raw, err := inflate(packed)
	if err != nil {
		return nil, fmt.Errorf("read packed tensors: %w", err)
	}
	var r pb.ModelRecord
	if err := proto.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("read packed tensors: %w", err)
	}
	return r.GetWeights(), nil
}

func inflate(packed []byte) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(packed)), maxPacked+1))
	if err == nil && len(raw) > maxPacked {
		err = fmt.Errorf("more than %d bytes", maxPacked)
	}
	return raw, err
}
