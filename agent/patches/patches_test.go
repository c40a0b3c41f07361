// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package patches

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/internal/digestdir"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// coordinator answers with parts.
type coordinator struct {
	pb.UnimplementedPatchesServer
	asked int
	give  func(send func(total uint64, data []byte) error) error
}

func (c *coordinator) Fetch(_ *pb.FetchPatchesRequest, stream grpc.ServerStreamingServer[pb.FetchPatchesResponse]) error {
	c.asked++
	return c.give(func(total uint64, data []byte) error {
		return stream.Send(&pb.FetchPatchesResponse{FileBytes: total, Data: data})
	})
}

func serve(t *testing.T, c *coordinator) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterPatchesServer(s, c)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ln) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return ln.Addr().String()
}

func cache(t *testing.T, addresses ...string) *Cache {
	t.Helper()
	c, err := New(Config{
		Dir: filepath.Join(t.TempDir(), "patches"), Limit: 1000, Credentials: insecure.NewCredentials(),
		Coordinators: func() ([]string, error) { return addresses, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A file comes once, from the first coordinator that has it, and stays.
func TestFile(t *testing.T) {
	file := bytes.Repeat([]byte("patch"), 100)
	sum := sha256.Sum256(file)
	digest := hex.EncodeToString(sum[:])
	without := &coordinator{give: func(func(uint64, []byte) error) error { return status.Error(codes.NotFound, "not kept here") }}
	with := &coordinator{give: func(send func(uint64, []byte) error) error {
		return errors.Join(send(500, file[:200]), send(500, file[200:200]), send(500, file[200:]))
	}}
	c := cache(t, serve(t, without), serve(t, with))
	for range 2 {
		path, release, err := c.File(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, file) {
			t.Errorf("%d bytes (%v)", len(got), err)
		}
		release()
	}
	if without.asked != 1 || with.asked != 1 {
		t.Errorf("asked %d and %d times", without.asked, with.asked)
	}
}

// Whatever a coordinator sends, a file of other bytes is never there.
func TestFileRefuses(t *testing.T) {
	file := []byte("the file that was asked for")
	sum := sha256.Sum256(file)
	digest, n := hex.EncodeToString(sum[:]), uint64(len(file))
	for want, give := range map[string]func(send func(uint64, []byte) error) error{
		"not those of the digest": func(send func(uint64, []byte) error) error { return send(n, bytes.Repeat([]byte("x"), len(file))) },
		"bytes came":              func(send func(uint64, []byte) error) error { return send(n, append(file, 'x')) },
		"26 bytes of 27":          func(send func(uint64, []byte) error) error { return send(n, file[1:]) },
		"no room":                 func(send func(uint64, []byte) error) error { return send(1001, file) },
		"a file of 0 bytes":       func(send func(uint64, []byte) error) error { return send(0, nil) },
		"a file of 18446744":      func(send func(uint64, []byte) error) error { return send(1<<64-1, file) },
		"sent nothing":            func(func(uint64, []byte) error) error { return nil },
		"broke off": func(send func(uint64, []byte) error) error {
			return errors.Join(send(n, file[:3]), status.Error(codes.Aborted, "broke off"))
		},
	} {
		c := cache(t, serve(t, &coordinator{give: give}))
		_, _, err := c.File(t.Context(), digest)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), digest) {
			t.Errorf("%s: %v", want, err)
		}
		if c.files.Has(digest) {
			t.Errorf("%s: the file is there", want)
		}
	}
	c := cache(t, "127.0.0.1:1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.File(ctx, digest); err == nil {
		t.Error("nobody gave it")
	}
	if _, err := New(Config{Dir: t.TempDir()}); err == nil {
		t.Error("a cache without coordinators")
	}
	if err := digestdir.Check(digest); err != nil {
		t.Fatal(err)
	}
}
