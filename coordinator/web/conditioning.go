// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"errors"
	"fmt"
	"os"

	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// conditioning is what stays the same over the steps: the blob's tensors and
// those that came with the forward.
func (s *Server) conditioning(f *forwardRequest) ([]*pb.Tensor, error) {
	var out []*pb.Tensor
	if f.blob != "" {
		b, err := s.readBlob(f.blob)
		if err != nil {
			return nil, err
		}
		for _, t := range b.tensors {
			v, err := t.floats()
			if err != nil {
				return nil, err
			}
			out = append(out, float32Tensor(graphName(t.name), t.shape, v))
		}
	}
	return append(out, f.conditioningList()...), nil
}

// readBlob is a conditioning's blob in memory.
func (s *Server) readBlob(digest string) (*tensorBody, error) {
	path, size, ok := s.blobs.Use(digest)
	if !ok {
		return nil, missing(digest)
	}
	if size > s.limits.ForwardBytes {
		return nil, &Error{CodeTooLarge, fmt.Sprintf("conditioning %s has %d bytes, at most %d are taken", digest, size, s.limits.ForwardBytes), map[string]any{"bytes": size, "limit": s.limits.ForwardBytes}}
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, missing(digest)
	}
	if err != nil {
		return nil, storeError(err)
	}
	return parseTensors("conditioning "+digest, raw)
}

// blobShapes are the shapes in a conditioning's blob, by the graph's names.
func (s *Server) blobShapes(sess *session, digest string) (map[string]tensor.Shape, error) {
	if digest == "" {
		return nil, nil
	}
	sess.mu.Lock()
	known := sess.shapes[digest]
	sess.mu.Unlock()
	if known != nil {
		_, _, _ = s.blobs.Use(digest)
		return known, nil
	}
	b, err := s.readBlob(digest)
	if err != nil {
		return nil, err
	}
	known = map[string]tensor.Shape{}
	for _, t := range b.tensors {
		known[graphName(t.name)] = t.shape
	}
	sess.mu.Lock()
	defer sess.mu.Unlock()
	if len(sess.shapes) >= maxShapes {
		clear(sess.shapes)
	}
	sess.shapes[digest] = known
	return known, nil
}

// maxShapes bounds the blobs of a run that are remembered.
const maxShapes = 256
