// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// dial is a connection for requests that a proper client does not make.
func (r *rig) dial() net.Conn {
	r.Helper()
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		r.Fatal(err)
	}
	return conn
}

// begin sends a request's header and the beginning of its body.
func (r *rig) begin(method, path string, length int, some []byte) net.Conn {
	r.Helper()
	conn := r.dial()
	_, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer all\r\nContent-Length: %d\r\n\r\n%s", method, path, length, some)
	if err != nil {
		r.Fatal(err)
	}
	return conn
}

// answer reads a connection's answer.
func (r *rig) answer(conn net.Conn, method, path string) reply {
	r.Helper()
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		r.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.Fatal(err)
	}
	a := reply{res.StatusCode, res.Header, body}
	r.api.check(r.T, method, path, a)
	return a
}

func filled(path string) string {
	return strings.NewReplacer("{name}", "d", "{model}", "tiny", "{sha256}", strings.Repeat("0", 64), "{id}", "f", "{run}", "r").Replace(path)
}

const spec = `{"model":"tiny","workload":{"width":64,"height":128,"in_flight":2}}`

// TestEveryDocumentedAnswer gets every status of every route of openapi.yaml,
// each with a body of its schema.
func TestEveryDocumentedAnswer(t *testing.T) {
	r := newRig(t)
	r.specs["theirs"] = &pb.DeploymentSpec{Name: "theirs", Id: "id", Generation: 1}
	for _, rt := range r.server.routes() { // tokens and scopes
		path := filled(rt.pattern)
		for token, want := range map[string]int{"": 401, "wrong": 401, "old": 401, "none": 403} {
			if rt.open || want == 403 && rt.scope == "" && rt.operator == "" {
				want = 200
			}
			if a := r.do(token, rt.method, path, nil); a.status != want {
				t.Errorf("%s %s with token %q: %d, want %d: %s", rt.method, path, token, a.status, want, a.body)
			}
		}
		if rt.operator != "" {
			a := r.do("all", rt.method, path, nil)
			if e := a.failure(t); e.Code != CodeForbidden || !strings.Contains(e.Message, rt.operator) {
				t.Errorf("%s %s: %v", rt.method, path, e)
			}
		}
	}
	blob := pack(t, nil, usualInputs()[2:]...)
	blobPath := "/v1/blobs/" + digestOf(blob)
	large := bytes.Repeat([]byte(" "), maxJSONBody+1)
	body := func(metadata map[string]string) []byte { return pack(t, metadata, usualInputs()...) }
	for _, c := range []struct {
		method, path string
		body         []byte
		want         int
	}{
		{"GET", "/v1", nil, 200},
		{"GET", "/v1/nodes", nil, 200},
		{"GET", "/v1/models", nil, 200},
		{"GET", "/v1/models/tiny", nil, 200},
		{"GET", "/v1/models/m2", nil, 200},
		{"GET", "/v1/models/twice.gguf", nil, 400},
		{"GET", "/v1/models/nothing", nil, 404},
		{"POST", "/v1/plan", []byte(spec), 200},
		{"POST", "/v1/plan", []byte(`{"model":"huge","workload":{"width":64,"height":64}}`), 200},
		{"POST", "/v1/plan", []byte(`{"model":"tiny","colour":"x"}`), 400},
		{"POST", "/v1/plan", []byte(`{"model":""}`), 400},
		{"POST", "/v1/plan", []byte(`{"model":"nothing","workload":{"width":64,"height":64}}`), 404},
		{"POST", "/v1/plan", large, 413},
		{"GET", "/v1/deployments/d", nil, 404},
		{"PUT", "/v1/deployments/d", []byte(spec), 200},
		{"PUT", "/v1/deployments/d", []byte(`{"model":"huge","workload":{"width":64,"height":64}}`), 409},
		{"PUT", "/v1/deployments/d", []byte(`{"model":"nothing","workload":{"width":64,"height":64}}`), 404},
		{"PUT", "/v1/deployments/d", []byte(`{} {}`), 400},
		{"PUT", "/v1/deployments/d", large, 413},
		{"PUT", "/v1/deployments/theirs", []byte(spec), 403},
		{"GET", "/v1/deployments", nil, 200},
		{"GET", "/v1/deployments/d", nil, 200},
		{"GET", "/v1/deployments/d?wait=1s", nil, 200},
		{"GET", "/v1/deployments/d?wait=2h", nil, 400},
		{"DELETE", "/v1/deployments/theirs", nil, 403},
		{"DELETE", "/v1/deployments/nothing", nil, 404},
		{"DELETE", "/v1/deployments/d", nil, 200},
		{"HEAD", blobPath, nil, 404},
		{"PUT", blobPath, blob, 201},
		{"PUT", blobPath, blob, 200},
		{"HEAD", blobPath, nil, 200},
		{"HEAD", "/v1/blobs/x", nil, 400},
		{"PUT", blobPath[:len(blobPath)-1] + "x", blob, 400},
		{"POST", forwardPath, body(map[string]string{"run": "r"}), 200},
		{"POST", forwardPath, body(nil), 400},
		{"POST", forwardPath, body(map[string]string{"run": "r", "conditioning": strings.Repeat("0", 64)}), 409},
		{"POST", "/v1/deployments/nothing/forward", body(map[string]string{"run": "r"}), 404},
		{"DELETE", "/v1/runs/r", nil, 200},
		{"DELETE", "/v1/runs/r", nil, 404},
		{"POST", "/v1/forwards/f/cancel", nil, 404},
		{"POST", "/v1/lend", []byte(`{"node":"a","device":"cpu","bytes":5,"seconds":1.5}`), 200},
		{"POST", "/v1/lend", []byte(`{"node":"x","device":"cpu"}`), 404},
		{"POST", "/v1/lend", []byte(`{"node":"a","device":"cpu","seconds":-1}`), 400},
		{"POST", "/v1/lend", large, 413},
	} {
		if a := r.do("all", c.method, c.path, c.body); a.status != c.want {
			t.Errorf("%s %s %.80s: %d, want %d: %s", c.method, c.path, c.body, a.status, c.want, a.body)
		}
	}

	r.slowAnswers()
	r.limitedAnswers(blob)
	r.forwardAnswers(body)

	var missing []string
	for path, ops := range r.api.paths {
		for method, op := range ops {
			for code := range op.responses {
				if is := fmt.Sprintf("%s %s %d", method, path, code); !r.api.seen[is] {
					missing = append(missing, is)
				}
			}
		}
	}
	slices.Sort(missing)
	if len(missing) > 0 {
		t.Errorf("documented and never answered:\n%s", strings.Join(missing, "\n"))
	}
}

func TestWrongTypes(t *testing.T) {
	r := newRig(t)
	for body, want := range map[string]string{
		`{"node":"a","device":"cpu","bytes":-1}`: "what is to be lent: bytes (number -1) is of another type or out of range; GET /v1/openapi.yaml has its form",
		`{"node":{"a":1}}`:                       "what is to be lent: node (object) is of another type",
		`[]`:                                     "what is to be lent: the body (array) is of another type",
	} {
		if e := r.do("all", "POST", "/v1/lend", []byte(body)).failure(t); e.Code != CodeBadRequest || !strings.HasPrefix(e.Message, want) {
			t.Errorf("%s: %s %q, want %q", body, e.Code, e.Message, want)
		}
	}
}

// slowAnswers are to bodies that do not come.
func (r *rig) slowAnswers() {
	r.Helper()
	slow := newRig(r.T, func(c *Config) { c.Limits.Stall = 30 * time.Millisecond })
	slow.api = r.api
	for _, c := range [][2]string{
		{"POST", "/v1/plan"}, {"PUT", "/v1/deployments/d"}, {"POST", "/v1/lend"}, {"PUT", filled("/v1/blobs/{sha256}")}, {"POST", forwardPath},
	} {
		conn := slow.begin(c[0], c[1], 100, []byte("some"))
		if a := slow.answer(conn, c[0], c[1]); a.status != http.StatusRequestTimeout {
			r.Errorf("%s %s: %d %s", c[0], c[1], a.status, a.body)
		}
	}
}

// limitedAnswers are those at small limits.
func (r *rig) limitedAnswers(blob []byte) {
	r.Helper()
	n := int64(len(blob))
	full := newRig(r.T, func(c *Config) {
		c.Limits.StoreBytes, c.Limits.BlobBytes, c.Limits.ForwardBytes, c.Limits.Forwards = n+10, n, 100, 1
	})
	full.api = r.api
	path := "/v1/blobs/" + digestOf(blob)
	if a := full.do("all", "PUT", path, append(slices.Clone(blob), 0)); a.status != http.StatusRequestEntityTooLarge {
		r.Errorf("a large blob: %d %s", a.status, a.body)
	}
	if a := full.do("all", "POST", forwardPath, make([]byte, 101)); a.status != http.StatusRequestEntityTooLarge {
		r.Errorf("a large forward: %d %s", a.status, a.body)
	}
	full.begin("PUT", filled("/v1/blobs/{sha256}"), int(n), blob[:10])
	until(r.T, "a blob to arrive", func() bool {
		full.server.blobs.mu.Lock()
		defer full.server.blobs.mu.Unlock()
		return full.server.blobs.all > 0
	})
	if a := full.do("all", "PUT", path, blob); a.status != http.StatusTooManyRequests {
		r.Errorf("a blob beside one that arrives: %d %s", a.status, a.body)
	}
	dir := r.TempDir()
	gone := newRig(r.T, func(c *Config) { c.BlobDir = dir })
	gone.api = r.api
	if err := os.RemoveAll(dir); err != nil {
		r.Fatal(err)
	}
	if a := gone.do("all", "PUT", path, blob); a.status != http.StatusServiceUnavailable {
		r.Errorf("a blob without a folder: %d %s", a.status, a.body)
	}
}

// forwardAnswers are to forwards that end otherwise than with an output.
func (r *rig) forwardAnswers(body func(map[string]string) []byte) {
	r.Helper()
	r.onForward = func(ctx context.Context, _ int, _ *pb.ForwardRequest) error {
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	late := r.do("all", "POST", forwardPath, body(map[string]string{"run": "r", "deadline_ms": "30"}))
	if e := late.failure(r.T); late.status != 504 || e.Code != CodeDeadline || !strings.Contains(e.Message, "was not done in 30ms") {
		r.Errorf("deadline: %d %v", late.status, e)
	}
	done := make(chan reply, 1)
	go func() {
		done <- r.do("all", "POST", forwardPath, body(map[string]string{"run": "r", "id": "f"}))
	}()
	until(r.T, "the forward to be canceled", func() bool { return r.do("all", "POST", "/v1/forwards/f/cancel", nil).status == 200 })
	if a := <-done; a.status != 499 || a.failure(r.T).Code != CodeCanceled {
		r.Errorf("canceled: %d %s", a.status, a.body)
	}
	r.onForward = nil
	r.server.limits.Forwards = 0
	if a := r.do("all", "POST", forwardPath, body(map[string]string{"run": "r"})); a.status != http.StatusTooManyRequests {
		r.Errorf("busy: %d %s", a.status, a.body)
	}
	r.server.limits.Forwards = 8
	r.change(func() {
		r.plan, r.notReady = &pb.Plan{Infeasible: "fits nowhere"}, "fits nowhere"
	})
	if a := r.do("all", "POST", forwardPath, body(map[string]string{"run": "fresh"})); a.status != 503 || !strings.Contains(a.failure(r.T).Message, "fits nowhere") {
		r.Errorf("infeasible: %d %s", a.status, a.body)
	}
}

// TestBadForwards: what each gets, word for word where a person has to act.
func TestBadForwards(t *testing.T) {
	r := newRig(t)
	good := map[string]string{"run": "r"}
	with := func(key, value string) map[string]string { return map[string]string{"run": "r", key: value} }
	change := func(name string, in input) []input {
		all := slices.Clone(usualInputs())
		i := slices.IndexFunc(all, func(x input) bool { return x.name == name })
		all[i] = in
		return all
	}
	without := func(name string) []input {
		return slices.DeleteFunc(usualInputs(), func(x input) bool { return x.name == name })
	}
	f32 := tensor.F32
	whole := pack(t, good, usualInputs()...)
	for name, c := range map[string]struct {
		body []byte
		code Code
		text string
	}{
		"empty":               {[]byte{}, CodeBadRequest, "the request has no body; send a safetensors body"},
		"foreign":             {[]byte("PK\x03\x04 a zip file, not safetensors"), CodeBadRequest, "the body is no safetensors"},
		"truncated":           {whole[:len(whole)-4], CodeBadRequest, "the body is no safetensors"},
		"a header's length":   {append([]byte{255, 255, 255, 255, 255, 255, 255, 0}, whole[8:]...), CodeBadRequest, "the body is no safetensors"},
		"a large header":      {append([]byte{0, 0, 32, 0, 0, 0, 0, 0}, make([]byte, 3<<20)...), CodeTooLarge, "its header has 2097152 bytes, at most 1048576 are taken"},
		"no run":              {pack(t, nil, usualInputs()...), CodeBadRequest, "metadata run is missing; give each picture a name of its own, of up to 64 characters"},
		"a long run":          {pack(t, map[string]string{"run": strings.Repeat("r", 65)}, usualInputs()...), CodeBadRequest, "use 1 to 64 printable ASCII characters"},
		"a run with a slash":  {pack(t, map[string]string{"run": "a/b"}, usualInputs()...), CodeBadRequest, "without spaces and slashes"},
		"a misspelt key":      {pack(t, with("stpe", "1"), usualInputs()...), CodeBadRequest, `metadata "stpe" is not known; there are run, id, step`},
		"a step":              {pack(t, with("step", "-1"), usualInputs()...), CodeBadRequest, `metadata step "-1": give a whole number of at most 1048576`},
		"a large step":        {pack(t, with("step", "99999999"), usualInputs()...), CodeBadRequest, "metadata step"},
		"a branch":            {pack(t, with("branch", "1e3"), usualInputs()...), CodeBadRequest, "metadata branch"},
		"a deadline":          {pack(t, with("deadline_ms", "soon"), usualInputs()...), CodeBadRequest, "metadata deadline_ms"},
		"a digest":            {pack(t, with("conditioning", "ABC"), usualInputs()...), CodeBadRequest, "give the SHA-256 of a blob"},
		"a missing blob":      {pack(t, with("conditioning", strings.Repeat("a", 64)), usualInputs()[:2]...), CodeMissingBlobs, "blob aaaa"},
		"loras":               {pack(t, with("loras", `{"digest":1}`), usualInputs()...), CodeBadRequest, "metadata loras: give JSON"},
		"a lora's digest":     {pack(t, with("loras", `[{"digest":"x","strength":1}]`), usualInputs()...), CodeBadRequest, "metadata loras: digest"},
		"a lora's strength":   {pack(t, with("loras", `[{"digest":"`+strings.Repeat("a", 64)+`","strength":1e300}]`), usualInputs()...), CodeBadRequest, "strength"},
		"many loras":          {pack(t, with("loras", "["+strings.Repeat(`{},`, 40)+"{}]"), usualInputs()...), CodeTooLarge, "41 LoRAs, at most 32 are taken"},
		"no loras here":       {pack(t, with("loras", `[{"digest":"`+strings.Repeat("a", 64)+`","strength":1}]`), usualInputs()...), CodeBadRequest, "this coordinator takes no LoRAs from clients"},
		"dims":                {pack(t, with("dims", `{"width":"64"}`), usualInputs()...), CodeBadRequest, "metadata dims"},
		"dims that differ":    {pack(t, with("dims", `{"width":32}`), usualInputs()...), CodeBadRequest, "dims say width 32, the tensors say 64"},
		"an unknown dim":      {pack(t, with("dims", `{"frames":3}`), usualInputs()...), CodeBadRequest, "frames"},
		"no x":                {pack(t, good, without("x")...), CodeBadRequest, "the body needs the tensors x and timestep"},
		"no timestep":         {pack(t, good, without("timestep")...), CodeBadRequest, "the body needs the tensors x and timestep"},
		"no context":          {pack(t, good, without("context")...), CodeBadRequest, "the forward does not tell text_tokens; send the tensor context with it, or name the blob"},
		"a batch":             {pack(t, good, change("x", input{"x", f32, tensor.Shape{2, 4, 16, 8}})...), CodeBadRequest, "send one picture in a forward"},
		"x of integers":       {pack(t, good, change("x", input{"x", tensor.I64, tensor.Shape{1, 4, 16, 8}})...), CodeBadRequest, `tensor "x" is I64; send F32, BF16 or F16`},
		"x in F8":             {pack(t, good, change("x", input{"x", tensor.U8, tensor.Shape{1, 4, 16, 8}})...), CodeBadRequest, "send F32, BF16 or F16"},
		"x without rows":      {pack(t, good, change("x", input{"x", f32, tensor.Shape{1, 4, 0, 8}})...), CodeBadRequest, "height"},
		"timestep in BF16":    {pack(t, good, change("timestep", input{"timestep", tensor.BF16, tensor.Shape{1}})...), CodeBadRequest, "tensor timestep is BF16"},
		"an unknown tensor":   {pack(t, good, append(usualInputs(), input{"clip_fea", f32, tensor.Shape{1, 2, 3}})...), CodeBadRequest, `tensor "clip_fea" is not an input of this model; it takes x, timestep, context, y, guidance, ref_latents.0`},
		"a rank":              {pack(t, good, change("y", input{"y", f32, tensor.Shape{6}})...), CodeBadRequest, `tensor "y" has 1 dimensions, want 2`},
		"batches that differ": {pack(t, good, change("y", input{"y", f32, tensor.Shape{2, 6}})...), CodeBadRequest, "batch"},
		"many tensors":        {pack(t, good, crowd()...), CodeTooLarge, "tensors, at most 64 are taken"},
	} {
		a := r.do("all", "POST", forwardPath, c.body)
		if e := a.failure(t); e.Code != c.code || a.status != c.code.Status() || !strings.Contains(e.Message, c.text) {
			t.Errorf("%s: %d %s %q, want %s with %q", name, a.status, e.Code, e.Message, c.code, c.text)
		}
	}
	chunked := r.request(t.Context(), "all", "POST", forwardPath, whole)
	chunked.ContentLength = -1
	if a := r.send(chunked); a.failure(t).Message != "the request does not say how long its body is; send Content-Length, not chunks" {
		t.Errorf("chunks: %s", a.body)
	}
	if a := r.forward(good); a.status != 200 { // and the server is well
		t.Errorf("a good one afterwards: %d %s", a.status, a.body)
	}
	if len(r.begun) != 1 {
		t.Errorf("%d runs were begun", len(r.begun))
	}
}

func crowd() (all []input) {
	for i := range 65 {
		all = append(all, input{fmt.Sprint("t", i), tensor.F32, tensor.Shape{1}})
	}
	return all
}

// TestStatusOfErrors: one status for each of gRPC's codes.
func TestStatusOfErrors(t *testing.T) {
	for code, want := range map[codes.Code]Code{
		codes.InvalidArgument: CodeBadRequest, codes.Unauthenticated: CodeUnauthenticated, codes.PermissionDenied: CodeForbidden, codes.NotFound: CodeNotFound,
		codes.Aborted: CodeConflict, codes.ResourceExhausted: CodeBusy, codes.Unavailable: CodeUnavailable, codes.DeadlineExceeded: CodeDeadline,
		codes.Canceled: CodeCanceled, codes.Internal: CodeInternal, codes.Unknown: CodeInternal,
	} {
		if e := asError(fmt.Errorf("deploy: %w", status.Error(code, "why"))); e.Code != want {
			t.Errorf("%v: %s, want %s", code, e.Code, want)
		}
	}
}
