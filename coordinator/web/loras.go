// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"slices"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// LoRAs makes a deployment have LoRAs that clients brought, by digest.
type LoRAs interface {
	// Ensure returns when the deployment's active plan has all of the digests
	// (adding them to its spec where it has them not), or an error that names the
	// one at fault. file gives the blob's path.
	Ensure(ctx context.Context, deployment string, digests []string, file func(digest string) (path string, err error)) error
}

// maxLoRAs bounds those of one forward.
const maxLoRAs = 32

// loraUse is one of a forward's LoRAs. The order changes nothing: what they add
// is summed.
type loraUse struct {
	Digest   string  `json:"digest"`
	Strength float64 `json:"strength"`
}

func digests(uses []loraUse) []string {
	var out []string
	for _, u := range uses {
		out = append(out, u.Digest)
	}
	return out
}

// has says whether a plan has all of the LoRAs.
func has(p *pb.Plan, uses []loraUse) bool {
	for _, u := range uses {
		if !slices.ContainsFunc(p.GetLoras(), func(l *pb.LoRA) bool { return l.GetId() == u.Digest }) {
			return false
		}
	}
	return true
}

// strengths are those of a forward, by LoRA id.
func strengths(p *pb.Plan, uses []loraUse) map[string]float32 {
	if len(p.GetLoras()) == 0 {
		return nil
	}
	out := map[string]float32{}
	for _, l := range p.GetLoras() { // those of other clients and of earlier forwards
		if l.GetBrought() {
			out[l.GetId()] = 0
		}
	}
	for _, u := range uses {
		out[u.Digest] += float32(u.Strength)
	}
	return out
}

// ensure makes the deployment have a forward's LoRAs, and marks them as used.
// loaded says that they are there already: then their blobs need not be.
func (s *Server) ensure(ctx context.Context, deployment string, uses []loraUse, loaded bool) error {
	switch {
	case len(uses) == 0:
		return nil
	case s.cfg.LoRAs == nil:
		return fail(CodeBadRequest, "this coordinator takes no LoRAs from clients; put the file into a node's models.dirs and deploy with it")
	}
	var gone []string
	for _, d := range digests(uses) {
		if _, _, ok := s.blobs.Use(d); !ok && !loaded && !slices.Contains(gone, d) {
			gone = append(gone, d)
		}
	}
	if len(gone) > 0 {
		return missing(gone...)
	}
	return s.cfg.LoRAs.Ensure(ctx, deployment, digests(uses), s.blobs.Path)
}
