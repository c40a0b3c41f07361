// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package patches gets the LoRA files that clients brought from coordinators and
// keeps those used last.
//
// Imported by the agent. What comes is believed in nothing: a file is there when
// its bytes have the digest that the plan names. It must not import the store or
// the coordinator.
package patches

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/internal/digestdir"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// Config of a Cache. Log may be nil.
type Config struct {
	Dir   string
	Limit tensor.Bytes // of all files together
	// Coordinators are the addresses to ask, in order.
	Coordinators func() ([]string, error)
	// Credentials expect a coordinator at the other end.
	Credentials credentials.TransportCredentials
	Log         *slog.Logger
}

const (
	// patience is how long coordinators that do not answer are tried again.
	patience = 20 * time.Second
	pause    = 250 * time.Millisecond
	// stall ends a transfer of which nothing comes.
	stall = 20 * time.Second
)

// Cache has the files.
type Cache struct {
	cfg   Config
	log   *slog.Logger
	files *digestdir.Dir
	alone chan struct{} // held by the one transfer at a time
}

// New opens the folder.
func New(cfg Config) (*Cache, error) {
	if cfg.Dir == "" || cfg.Limit <= 0 || cfg.Coordinators == nil || cfg.Credentials == nil {
		return nil, errors.New("patches: a folder with a limit, coordinators and credentials are all needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	files, err := digestdir.Open(cfg.Dir, int64(cfg.Limit))
	if err != nil {
		return nil, err
	}
	return &Cache{cfg: cfg, log: cfg.Log, files: files, alone: make(chan struct{}, 1)}, nil
}

// File gives the path of a file by its SHA-256, which stays until release is
// called.
func (c *Cache) File(ctx context.Context, digest string) (path string, release func(), err error) {
	path, release, err = c.files.Use(digest)
	if !errors.Is(err, digestdir.ErrMissing) && !errors.Is(err, digestdir.ErrMismatch) {
		return path, release, err
	}
	select {
	case c.alone <- struct{}{}:
		defer func() { <-c.alone }()
	case <-ctx.Done():
		return "", nil, context.Cause(ctx)
	}
	if path, release, err = c.files.Use(digest); err == nil { // another call fetched it
		return path, release, nil
	}
	began := time.Now()
	path, release, err = c.fetch(ctx, digest)
	if err != nil {
		return "", nil, fmt.Errorf("LoRA %s from the coordinator: %w", digest, err)
	}
	c.log.Info("client's LoRA fetched", "digest", digest, "seconds", time.Since(began).Seconds())
	return path, release, nil
}

// fetch asks one coordinator after the other; those that cannot be reached are
// asked again for a while: one may be starting anew.
func (c *Cache) fetch(ctx context.Context, digest string) (string, func(), error) {
	for until := time.Now().Add(patience); ; {
		addresses, err := c.cfg.Coordinators()
		if err != nil {
			return "", nil, err
		}
		if len(addresses) == 0 {
			return "", nil, errors.New("no address of a coordinator is known")
		}
		again := false
		var errs []error
		for _, a := range addresses {
			path, release, err := c.from(ctx, a, digest)
			if err == nil {
				return path, release, nil
			}
			again = again || status.Code(err) == codes.Unavailable
			errs = append(errs, fmt.Errorf("%s: %w", a, err))
		}
		if !again || time.Now().After(until) || ctx.Err() != nil {
			return "", nil, errors.Join(errs...)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return "", nil, context.Cause(ctx)
		}
	}
}

// from fetches a file from one coordinator.
func (c *Cache) from(ctx context.Context, address, digest string) (path string, release func(), err error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(c.cfg.Credentials), grpc.WithNoProxy(), grpc.WithDisableServiceConfig())
	if err != nil {
		return "", nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing is in flight
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(stall, func() { cancel(fmt.Errorf("nothing came for %v", stall)) })
	defer idle.Stop()
	stream, err := pb.NewPatchesClient(conn).Fetch(ctx, &pb.FetchPatchesRequest{Digest: digest})
	if err != nil {
		return "", nil, err
	}
	part, err := stream.Recv()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it sent nothing")
		}
		return "", nil, caused(ctx, err)
	}
	total := part.GetFileBytes()
	if total == 0 || total > math.MaxInt64 {
		return "", nil, fmt.Errorf("it offers a file of %d bytes", total)
	}
	path, release, err = c.files.Put(digest, int64(total), func(w io.Writer) error {
		for {
			if _, err := w.Write(part.GetData()); err != nil {
				return err
			}
			idle.Reset(stall)
			if part, err = stream.Recv(); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
		}
	})
	return path, release, caused(ctx, err)
}

// caused says why a context ended a call, where one did.
func caused(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
