// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/coordinator/endpoint"
)

// Code names what went wrong, for programs.
type Code string

// Codes, each with one HTTP status.
const (
	CodeBadRequest      Code = "bad_request"
	CodeUnauthenticated Code = "unauthenticated"
	CodeForbidden       Code = "forbidden"
	CodeNotFound        Code = "not_found"
	CodeTimeout         Code = "timeout" // the request did not arrive in time
	CodeConflict        Code = "conflict"
	CodeMissingBlobs    Code = "missing_blobs"
	CodeTooLarge        Code = "too_large"
	CodeCanceled        Code = "canceled"
	CodeBusy            Code = "busy"
	CodeUnavailable     Code = "unavailable"
	CodeDeadline        Code = "deadline"
	CodeInternal        Code = "internal"
)

// statusCanceled is nginx's for a client that closed its request.
const statusCanceled = 499

// Status is the HTTP status of a code.
func (c Code) Status() int {
	switch c {
	case CodeBadRequest:
		return http.StatusBadRequest
	case CodeUnauthenticated:
		return http.StatusUnauthorized
	case CodeForbidden:
		return http.StatusForbidden
	case CodeNotFound:
		return http.StatusNotFound
	case CodeTimeout:
		return http.StatusRequestTimeout
	case CodeConflict, CodeMissingBlobs:
		return http.StatusConflict
	case CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case CodeCanceled:
		return statusCanceled
	case CodeBusy:
		return http.StatusTooManyRequests
	case CodeUnavailable:
		return http.StatusServiceUnavailable
	case CodeDeadline:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// Error is an answer that is no success.
type Error struct {
	Code    Code           `json:"code"`
	Message string         `json:"message"` // names the thing at fault and the way out
	Details map[string]any `json:"details,omitempty"`
}

func (e *Error) Error() string { return e.Message }

func fail(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// errCanceled ends forwards that their client cancelled by a call.
var errCanceled = errors.New("the forward was canceled by its client")

// asError is the one mapping of other packages' errors.
func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	message := err.Error()
	if s, ok := status.FromError(err); ok {
		message = s.Message()
	}
	return &Error{Code: codeOf(err), Message: message}
}

func codeOf(err error) Code {
	var fault *endpoint.Fault
	switch {
	case errors.Is(err, errCanceled):
		return CodeCanceled
	case errors.As(err, &fault):
		return CodeUnavailable
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.OutOfRange:
		return CodeBadRequest
	case codes.Unauthenticated:
		return CodeUnauthenticated
	case codes.PermissionDenied:
		return CodeForbidden
	case codes.NotFound:
		return CodeNotFound
	case codes.AlreadyExists, codes.Aborted, codes.FailedPrecondition:
		return CodeConflict
	case codes.Canceled:
		return CodeCanceled
	case codes.ResourceExhausted:
		return CodeBusy
	case codes.Unavailable:
		return CodeUnavailable
	case codes.DeadlineExceeded:
		return CodeDeadline
	}
	switch {
	case errors.Is(err, context.Canceled):
		return CodeCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return CodeDeadline
	}
	return CodeInternal
}

// maxMessage bounds what an error repeats of a request.
const maxMessage = 4 << 10

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	e := asError(err)
	if e.Code == CodeInternal {
		s.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	message := e.Message
	if len(message) > maxMessage {
		message = message[:maxMessage] + "…"
	}
	answer(w, e.Code.Status(), map[string]any{"error": Error{e.Code, message, e.Details}})
}

// answer writes JSON. A client that is gone is nobody to tell.
func answer(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		code, body = http.StatusInternalServerError, []byte(`{"error":{"code":"internal","message":"the answer cannot be written as JSON"}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n'))
}
