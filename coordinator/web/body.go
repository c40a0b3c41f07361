// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

const (
	maxJSONBody    = 64 << 10
	maxBodyHeader  = 1 << 20 // of safetensors in a forward or a conditioning
	maxBodyTensors = 64
	chunkBytes     = 256 << 10
)

// budget bounds the bytes of bodies in memory: in all, and half for one client.
type budget struct {
	mu     sync.Mutex
	most   int64
	all    int64
	client map[string]int64
}

func newBudget(most int64) *budget { return &budget{most: most, client: map[string]int64{}} }

// take counts n bytes for a client until the returned func is called.
func (b *budget) take(client string, n int64) (release func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all+n > b.most || b.client[client]+n > b.most/2 {
		return nil, fail(CodeBusy, "requests of %d bytes are in memory, %d of them of client %s; this one of %d bytes is too many, send it again when some have been answered", b.all, b.client[client], client, n)
	}
	b.all += n
	b.client[client] += n
	var once sync.Once
	return func() {
		once.Do(func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.all -= n
			if b.client[client] -= n; b.client[client] == 0 {
				delete(b.client, client)
			}
		})
	}, nil
}

// steady writes with a deadline that moves on while the client reads.
type steady struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
}

func (w *steady) Write(p []byte) (n int, err error) {
	for {
		_ = w.control.SetWriteDeadline(time.Now().Add(w.stall)) // all our connections have deadlines
		m, err := w.ResponseWriter.Write(p[:min(len(p), chunkBytes)])
		n += m
		if err != nil || m == len(p) {
			return n, err
		}
		p = p[m:]
	}
}

// Unwrap is for http.ResponseController.
func (w *steady) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// length is a request's length, which must be known and in bounds.
func length(r *http.Request, what string, most int64) (int64, error) {
	switch n := r.ContentLength; {
	case n < 0:
		return 0, fail(CodeBadRequest, "the request does not say how long its body is; send Content-Length, not chunks")
	case n == 0:
		return 0, fail(CodeBadRequest, "the request has no body; send %s", what)
	case n > most:
		return 0, &Error{CodeTooLarge, fmt.Sprintf("%s of %d bytes: at most %d are taken (limits of GET /v1)", what, n, most), map[string]any{"bytes": n, "limit": most}}
	default:
		return n, nil
	}
}

// arriving is a request's body that must keep coming: something in every Stall,
// and BytesPerSecond on average.
type arriving struct {
	body    io.Reader
	control *http.ResponseController
	stall   time.Duration
	last    time.Time // when all of it must be here
	got     int64
	want    int64
}

func (s *Server) arriving(w http.ResponseWriter, r *http.Request, n int64) *arriving {
	return &arriving{
		body: r.Body, control: http.NewResponseController(w), stall: s.limits.Stall, want: n,
		last: time.Now().Add(s.limits.Stall + time.Duration(n/s.limits.BytesPerSecond)*time.Second),
	}
}

// Read ends with io.EOF after exactly the announced bytes, and with an *Error
// before them.
func (a *arriving) Read(p []byte) (int, error) {
	if a.got == a.want {
		return 0, io.EOF
	}
	by := time.Now().Add(a.stall)
	if by.After(a.last) {
		by = a.last
	}
	_ = a.control.SetReadDeadline(by)
	n, err := a.body.Read(p[:min(int64(len(p)), a.want-a.got, chunkBytes)])
	a.got += int64(n)
	switch {
	case a.got == a.want:
		_ = a.control.SetReadDeadline(time.Time{}) // the server watches for a client that leaves
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, fail(CodeTimeout, "%d of the body's %d bytes came in time; send it again", a.got, a.want)
	case err != nil:
		return n, fail(CodeBadRequest, "the body ends after %d of its %d bytes", a.got, a.want)
	}
	return n, nil
}

// read is a whole body in memory.
func (s *Server) read(w http.ResponseWriter, r *http.Request, n int64) ([]byte, error) {
	body := make([]byte, n)
	_, err := io.ReadFull(s.arriving(w, r, n), body)
	return body, err
}

// readJSON is a small body as JSON, without fields that are not known.
func (s *Server) readJSON(w http.ResponseWriter, r *http.Request, what string, into any) error {
	n, err := length(r, what, maxJSONBody)
	if err != nil {
		return err
	}
	body, err := s.read(w, r, n)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
			return fail(CodeBadRequest, "%s: %s (%.80s) is of another type or out of range; GET /v1/openapi.yaml has its form", what, cmp.Or(wrong.Field, "the body"), wrong.Value)
		}
		return fail(CodeBadRequest, "%s is not what the route takes: %v", what, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fail(CodeBadRequest, "%s: there is more behind the JSON value", what)
	}
	return nil
}

// tensorBody is a parsed safetensors body; the tensors' bytes are the body's own.
type tensorBody struct {
	metadata map[string]string
	tensors  []bodyTensor
}

type bodyTensor struct {
	name  string
	dtype tensor.DType
	shape tensor.Shape
	data  []byte
}

// parseTensors reads a safetensors body of bounded header and count.
func parseTensors(what string, body []byte) (*tensorBody, error) {
	if len(body) >= 8 {
		if n := binary.LittleEndian.Uint64(body); n > maxBodyHeader && n <= uint64(len(body)) {
			return nil, fail(CodeTooLarge, "%s: its header has %d bytes, at most %d are taken", what, n, maxBodyHeader)
		}
	}
	f, err := safetensors.Parse(bytes.NewReader(body))
	if err != nil {
		return nil, fail(CodeBadRequest, "%s is no safetensors: %v", what, err)
	}
	all := f.Tensors()
	if len(all) > maxBodyTensors {
		return nil, fail(CodeTooLarge, "%s has %d tensors, at most %d are taken", what, len(all), maxBodyTensors)
	}
	out := &tensorBody{metadata: f.Metadata()}
	for _, t := range all {
		out.tensors = append(out.tensors, bodyTensor{t.Name, t.DType, t.Shape, body[t.Offset : t.Offset+int64(t.Size)]})
	}
	return out, nil
}

// floats is a tensor's values.
func (t bodyTensor) floats() ([]float32, error) {
	n, err := t.shape.Elements()
	if err != nil {
		return nil, fail(CodeBadRequest, "tensor %.40q: %v", t.name, err)
	}
	out := make([]float32, n)
	switch t.dtype {
	case tensor.F32, tensor.BF16, tensor.F16:
		if err := tensor.ToF32(out, t.data, t.dtype); err != nil {
			return nil, fail(CodeBadRequest, "tensor %.40q: %v", t.name, err)
		}
		return out, nil
	}
	return nil, fail(CodeBadRequest, "tensor %.40q is %v; send F32, BF16 or F16", t.name, t.dtype)
}
