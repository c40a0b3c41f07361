// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/internal/edits"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

// UnknownError is a name that the cluster does not have.
type UnknownError struct {
	Kind    string // deployment, model, node, LoRA, token
	Name    string
	Nearest string // the known name most like it; empty if there is none
	Advice  string // when nothing is known
}

func (e *UnknownError) Error() string {
	switch {
	case e.Nearest != "":
		return fmt.Sprintf("no %s %.80q here; did you mean %q? (`distorch %s` lists them)", e.Kind, e.Name, e.Nearest, e.list())
	case e.Advice != "":
		return fmt.Sprintf("no %s %.80q here: %s", e.Kind, e.Name, e.Advice)
	}
	return fmt.Sprintf("no %s %.80q here", e.Kind, e.Name)
}

// list is the command that lists the names of a kind.
func (e *UnknownError) list() string {
	switch e.Kind {
	case kindLoRA:
		return "models" // has both
	case kindToken:
		return "token list"
	}
	return e.Kind + "s"
}

const kindComfyWorker = "ComfyUI worker"

// InvalidError is a request that can never be met.
type InvalidError struct{ Err error }

func (e *InvalidError) Error() string { return e.Err.Error() }
func (e *InvalidError) Unwrap() error { return e.Err }

func invalid(format string, args ...any) error {
	return &InvalidError{fmt.Errorf(format, args...)}
}

// errForbidden is the answer to a peer without the role that a call takes.
var errForbidden = errors.New("not allowed")

// toStatus is the one place where errors of this package become gRPC codes.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	var unknown *UnknownError
	var bad *InvalidError
	code := codes.Internal
	switch {
	case errors.As(err, &unknown), errors.Is(err, store.ErrNotFound):
		code = codes.NotFound
	case errors.As(err, &bad):
		code = codes.InvalidArgument
	case errors.Is(err, identity.ErrNoIdentity):
		code = codes.Unauthenticated
	case errors.Is(err, errForbidden), errors.Is(err, store.ErrDenied):
		code = codes.PermissionDenied
	case errors.Is(err, store.ErrExists):
		code = codes.AlreadyExists
	case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrNotLeader):
		code = codes.Aborted
	case errors.Is(err, store.ErrFull):
		code = codes.ResourceExhausted
	case errors.Is(err, store.ErrUnavailable):
		code = codes.Unavailable
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	}
	return status.Error(code, short(err.Error(), maxAnswer))
}

// maxAnswer is what an answer's trailer carries whatever a name was made of.
const maxAnswer = 4 << 10

// nearest is the known name that takes the fewest changes, if they are at most
// half of its length; a file's extension may be left out. Names of equal distance go by their order.
func nearest(name string, known []string) string {
	best, at := "", len(name)/2+1
	name = strings.ToLower(name)
	for _, k := range known {
		low := strings.ToLower(k)
		d := min(edits.Distance(name, low), edits.Distance(name, strings.TrimSuffix(low, path.Ext(low))))
		if name != "" && strings.Contains(low, name) {
			d = min(d, 1)
		}
		if d <= len(k)/2+1 && (d < at || d == at && (best == "" || k < best)) {
			best, at = k, d
		}
	}
	return best
}
