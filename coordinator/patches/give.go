// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package patches

import (
	"errors"
	"io"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/internal/digestdir"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/identity"
)

// chunkBytes is one part of a file on its way.
const chunkBytes = 1 << 20

// Fetch gives a file to an agent that is registered.
func (p *Patches) Fetch(req *pb.FetchPatchesRequest, stream grpc.ServerStreamingServer[pb.FetchPatchesResponse]) error {
	ctx := stream.Context()
	peer, err := identity.PeerFromContext(ctx)
	switch {
	case err != nil:
		return status.Error(codes.Unauthenticated, err.Error())
	case peer.Role != identity.RoleAgent:
		return status.Errorf(codes.PermissionDenied, "%s may not fetch files of clients: agents do", peer)
	}
	st, _, err := p.cfg.Deployments.State(ctx)
	if err != nil {
		return err
	}
	if _, ok := st.Nodes[peer.ID]; !ok {
		return status.Errorf(codes.PermissionDenied, "%s is not registered", peer)
	}
	path, release, err := p.files.Use(req.GetDigest())
	switch {
	case errors.Is(err, digestdir.ErrMissing):
		return status.Errorf(codes.NotFound, "LoRA %.80s is not kept here", req.GetDigest())
	case errors.Is(err, digestdir.ErrMismatch):
		return status.Errorf(codes.DataLoss, "LoRA %.80s: %v", req.GetDigest(), err)
	case err != nil:
		return status.Errorf(codes.InvalidArgument, "LoRA: %v", err)
	}
	defer release()
	select {
	case p.gives <- struct{}{}:
		defer func() { <-p.gives }()
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	return give(path, stream)
}

func give(path string, stream grpc.ServerStreamingServer[pb.FetchPatchesResponse]) error {
	f, err := os.Open(path)
	if err != nil {
		return status.Errorf(codes.NotFound, "%v", err)
	}
	defer f.Close() //nolint:errcheck // was only read
	info, err := f.Stat()
	if err != nil {
		return status.Errorf(codes.Internal, "%v", err)
	}
	for first := true; ; first = false {
		b := make([]byte, chunkBytes) // gRPC may hold on to it
		n, err := io.ReadFull(f, b)
		if n > 0 || first {
			if err := stream.Send(&pb.FetchPatchesResponse{FileBytes: uint64(info.Size()), Data: b[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return status.Errorf(codes.Internal, "read %s: %v", path, err)
		}
	}
}
