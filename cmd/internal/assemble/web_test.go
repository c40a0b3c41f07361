// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/identity"
)

// webClient is a client of the HTTPS endpoint, as its connection line says.
type webClient struct {
	testing.TB
	connection identity.Connection
	http       *http.Client
}

func newWebClient(t testing.TB, conn *grpc.ClientConn, name string, scopes ...string) *webClient {
	t.Helper()
	res, err := pb.NewControlClient(conn).CreateToken(t.Context(), &pb.CreateTokenRequest{Client: name, Scopes: scopes})
	if err != nil {
		t.Fatal(err)
	}
	c, err := identity.ParseConnection(res.Token)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(c.CA)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: identity.WebHost}, MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	w := &webClient{t, c, &http.Client{Transport: transport, Timeout: time.Minute}}
	w.await()
	return w
}

// await is until the token has reached the endpoint.
func (c *webClient) await() {
	c.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		if code, _ := c.do("GET", "/v1", nil); code != http.StatusUnauthorized {
			return
		}
		<-tick.C
	}
	c.Fatal("the endpoint does not know the token after ten seconds")
}

func (c *webClient) request(ctx context.Context, method, path string, body []byte) *http.Request {
	c.Helper()
	r, err := http.NewRequestWithContext(ctx, method, "https://"+c.connection.Addresses[0]+path, bytes.NewReader(body))
	if err != nil {
		c.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.connection.Secret)
	return r
}

func (c *webClient) do(method, path string, body []byte) (int, []byte) {
	c.Helper()
	res, err := c.http.Do(c.request(c.Context(), method, path, body))
	if err != nil {
		c.Fatal(err)
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		c.Fatal(err)
	}
	return res.StatusCode, out
}

// json is a call that must succeed.
func (c *webClient) json(method, path string, body any) map[string]any {
	c.Helper()
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			c.Fatal(err)
		}
	}
	code, out := c.do(method, path, raw)
	var v map[string]any
	if err := json.Unmarshal(out, &v); err != nil || code >= 300 {
		c.Fatalf("%s %s: %d %.500s", method, path, code, out)
	}
	return v
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// body is a safetensors file of tensors, in a dtype for those that may have it.
func safetensorsOf(t testing.TB, d tensor.DType, metadata map[string]string, tensors ...*pb.Tensor) []byte {
	t.Helper()
	var all []safetensors.Data
	for _, p := range tensors {
		v := make([]float32, len(p.Data)/4)
		if err := tensor.ToF32(v, p.Data, tensor.F32); err != nil {
			t.Fatal(err)
		}
		as := d
		if p.Name == "timestep" {
			as = tensor.F32
		}
		raw := make([]byte, len(v)*as.Size())
		if err := tensor.PutFloats(raw, v, as); err != nil {
			t.Fatal(err)
		}
		all = append(all, safetensors.Data{Entry: safetensors.Entry{Name: p.Name, DType: as, Shape: p.Shape}, Bytes: raw})
	}
	var b bytes.Buffer
	if err := safetensors.Encode(&b, all, metadata); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// forward is one forward, its output as float32, and the answer's metadata.
func (c *webClient) forward(deployment string, d tensor.DType, metadata map[string]string, tensors ...*pb.Tensor) (out []float32, answer map[string]string, err error) {
	c.Helper()
	code, raw := c.do("POST", "/v1/deployments/"+deployment+"/forward", safetensorsOf(c, d, metadata, tensors...))
	if code != http.StatusOK {
		return nil, nil, fmt.Errorf("%d %s", code, raw)
	}
	f, err := safetensors.Parse(bytes.NewReader(raw))
	if err != nil {
		return nil, nil, err
	}
	e, _ := f.Lookup("out")
	if e.DType != d {
		c.Errorf("out is %v, x was %v", e.DType, d)
	}
	out, _, err = f.Float32s("out")
	return out, f.Metadata(), err
}

func demoSpec() map[string]any {
	return map[string]any{"model": "demo.safetensors", "workload": map[string]int64{"width": 128, "height": 128, "text_tokens": 5, "batch": 1, "in_flight": 2}}
}

// TestWeb is a client's way from its connection line to a picture, against the
// same forward over gRPC.
func TestWeb(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	startAgent(t, "a", token(t, conn), t.TempDir())
	c := newWebClient(t, conn, "comfy")

	about := c.json("GET", "/v1", nil)
	if about["protocol"] != 1.0 || about["client"].(map[string]any)["name"] != "comfy" {
		t.Errorf("GET /v1: %v", about)
	}
	model := c.json("GET", "/v1/models/demo", nil)
	if n := len(model["tensors"].([]any)); n < 50 {
		t.Errorf("the demo has %d tensors", n)
	}
	if l := model["latent"].(map[string]any); l["channels"] != 16.0 || l["scale"] != 0.3611 {
		t.Errorf("latent: %v", l)
	}
	if p := model["parameters"].(map[string]any); p["hidden"] != 256.0 {
		t.Errorf("parameters: %v", p)
	}
	first := c.json("PUT", "/v1/deployments/demo", demoSpec())
	again := c.json("PUT", "/v1/deployments/demo", demoSpec())
	if first["generation"] != again["generation"] {
		t.Errorf("the same spec again made generation %v of %v", again["generation"], first["generation"])
	}
	if v := c.json("GET", "/v1/deployments/demo?wait=60s", nil); v["state"] != "ready" {
		t.Fatalf("deployment: %v", v)
	}
	want, _, err := picture(t, conn)
	if err != nil {
		t.Fatal(err)
	}

	cond, step := request(t, "large red circle on blue")
	blob := safetensorsOf(t, tensor.F32, nil, cond...)
	digest := digestOf(blob)
	metadata := map[string]string{"run": "r1", "id": "f1", "step": "0", "branch": "0", "conditioning": digest}
	if _, _, err := c.forward("demo", tensor.F32, metadata, step...); err == nil {
		t.Error("a forward without its conditioning was answered")
	}
	if code, out := c.do("PUT", "/v1/blobs/"+digest, blob); code != http.StatusCreated {
		t.Fatalf("blob: %d %s", code, out)
	}
	if code, _ := c.do("HEAD", "/v1/blobs/"+digest, nil); code != http.StatusOK {
		t.Errorf("HEAD of the blob: %d", code)
	}
	got, answer, err := c.forward("demo", tensor.F32, metadata, step...)
	if err != nil {
		t.Fatal(err)
	}
	if string(floats(got...)) != string(want) {
		t.Error("HTTPS gives another output than gRPC")
	}
	if answer["numerics"] != "equals one device ("+plainClass(t)+")" || answer["attempt"] != "1" || answer["epoch"] == "" {
		t.Errorf("answer: %v", answer)
	}
	inline, _, err := c.forward("demo", tensor.F32, map[string]string{"run": "r2"}, append(cond, step...)...)
	if err != nil {
		t.Fatal(err)
	}
	if string(floats(inline...)) != string(want) {
		t.Error("conditioning with the forward gives another output than from a blob")
	}
	for _, d := range []tensor.DType{tensor.BF16, tensor.F16} {
		half, _, err := c.forward("demo", d, metadata, step...)
		if err != nil {
			t.Fatal(err)
		}
		if off := distance(half, got); off > 0.02 {
			t.Errorf("%v: %.3g from F32", d, off)
		}
	}
	c.json("DELETE", "/v1/runs/r1", nil)
	c.json("DELETE", "/v1/deployments/demo", nil)
}

// distance is the relative L2 of a against b.
func distance(a, b []float32) float64 {
	var off, all float64
	for i := range a {
		off += math.Pow(float64(a[i]-b[i]), 2)
		all += math.Pow(float64(b[i]), 2)
	}
	return math.Sqrt(off / all)
}

// TestWebLostAgent: a run goes on when the node under it is lost in its middle,
// with the same bits.
func TestWebLostAgent(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	agents := map[string]*process{}
	for _, name := range []string{"a", "b"} {
		agents[name] = startAgent(t, name, token(t, conn), t.TempDir())
	}
	c := newWebClient(t, conn, "comfy")
	c.json("PUT", "/v1/deployments/demo", demoSpec())
	v := c.json("GET", "/v1/deployments/demo?wait=60s", nil)
	if v["state"] != "ready" {
		t.Fatalf("deployment: %v", v)
	}
	cond, step := request(t, "large red circle on blue")
	all := append(cond, step...)
	want, before, err := c.forward("demo", tensor.F32, map[string]string{"run": "r", "step": "0"}, all...)
	if err != nil {
		t.Fatal(err)
	}
	agents[v["plan"].([]any)[0].(map[string]any)["node"].(string)].stop()
	got, after, err := c.forward("demo", tensor.F32, map[string]string{"run": "r", "step": "0"}, all...)
	if err != nil {
		t.Fatal(err)
	}
	if string(floats(got...)) != string(floats(want...)) {
		t.Error("the other node gives another output")
	}
	if after["epoch"] == before["epoch"] || after["attempt"] == "1" || after["numerics"] != before["numerics"] {
		t.Errorf("before %v, after %v", before, after)
	}
}

// TestWebScopes: what a client may not do, and a token that is revoked.
func TestWebScopes(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	startAgent(t, "a", token(t, conn), t.TempDir())
	deploy(t, conn)
	full, run := newWebClient(t, conn, "full"), newWebClient(t, conn, "run", "run")
	spec, err := json.Marshal(demoSpec())
	if err != nil {
		t.Fatal(err)
	}
	other := []byte(`{"model":"demo","workload":{"width":64,"height":64,"text_tokens":5}}`)
	for name, c := range map[string]struct {
		client       *webClient
		method, path string
		body         []byte
		status       int
		text         string
	}{
		"deploying without the scope":     {run, "PUT", "/v1/deployments/mine", spec, 403, "has no scope deploy"},
		"lending without the scope":       {run, "POST", "/v1/lend", []byte(`{"node":"a","device":"cpu"}`), 403, "has no scope lend"},
		"changing an operator's":          {full, "PUT", "/v1/deployments/demo", other, 403, "deployment demo was made by an operator"},
		"removing an operator's":          {full, "DELETE", "/v1/deployments/demo", nil, 403, "deployment demo was made by an operator"},
		"an operator's, as it is":         {full, "PUT", "/v1/deployments/demo", spec, 200, `"client":""`},
		"removing a node":                 {full, "DELETE", "/v1/nodes/a", nil, 403, "is an operator's call; run `distorch nodes remove NAME`"},
		"listing tokens":                  {full, "GET", "/v1/tokens", nil, 403, "is an operator's call; run `distorch token list`"},
		"a model that fits nowhere":       {full, "PUT", "/v1/deployments/mine", []byte(`{"model":"demo","workload":{"width":8192,"height":8192}}`), 409, "deployment mine fits nowhere"},
		"a spec without a size":           {full, "PUT", "/v1/deployments/mine", []byte(`{"model":"demo"}`), 400, `add \"workload\", such as`},
		"a plan, with what it is made of": {run, "POST", "/v1/plan", spec, 200, `"feasible":true`},
	} {
		code, out := c.client.do(c.method, c.path, c.body)
		if code != c.status || !bytes.Contains(out, []byte(c.text)) {
			t.Errorf("%s: %d %s, want %d with %s", name, code, out, c.status, c.text)
		}
	}
	if _, err := pb.NewControlClient(conn).CreateToken(t.Context(), &pb.CreateTokenRequest{Client: "run"}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("a second token of a client: %v", err)
	}
	list, err := pb.NewControlClient(conn).ListTokens(t.Context(), &pb.ListTokensRequest{})
	if err != nil || len(list.Clients) != 2 || list.Clients[1].Name != "run" || len(list.Clients[1].SecretHash) != 0 {
		t.Errorf("tokens %v, %v", list, err)
	}
	if _, err := pb.NewControlClient(conn).RevokeToken(t.Context(), &pb.RevokeTokenRequest{Client: "run"}); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-tick.C {
		if code, _ := run.do("GET", "/v1", nil); code == http.StatusUnauthorized {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a revoked token works")
		}
	}
	if _, err := pb.NewControlClient(conn).RevokeToken(t.Context(), &pb.RevokeTokenRequest{Client: "run"}); status.Code(err) != codes.NotFound {
		t.Errorf("a token revoked twice: %v", err)
	}
}

// TestWebCancel: a forward that its client cancels, by a call or by closing its
// connection, ends at once, on the stages too, and the run goes on.
func TestWebCancel(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	startAgent(t, "a", token(t, conn), t.TempDir())
	c := newWebClient(t, conn, "comfy")
	const pixels = 1024
	c.json("PUT", "/v1/deployments/demo", map[string]any{"model": "demo", "workload": map[string]int64{"width": pixels, "height": pixels, "text_tokens": 5, "in_flight": 1}})
	c.json("GET", "/v1/deployments/demo?wait=60s", nil)
	cond, step := request(t, "large red circle on blue")
	large := []*pb.Tensor{step[1], {Name: "x", Dtype: "F32", Shape: []int64{1, 16, pixels / 8, pixels / 8}, Data: make([]byte, 4*16*pixels/8*pixels/8)}}
	body := safetensorsOf(t, tensor.F32, map[string]string{"run": "r", "id": "f"}, append(slices.Clone(cond), large...)...)
	const path = "/v1/deployments/demo/forward"

	type answer struct {
		code int
		body []byte
	}
	done := make(chan answer, 1)
	go func() {
		code, out := c.do("POST", path, body)
		done <- answer{code, out}
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for canceled := false; !canceled; <-tick.C {
		code, _ := c.do("POST", "/v1/forwards/f/cancel", nil)
		canceled = code == http.StatusOK
		select {
		case a := <-done:
			if !canceled {
				t.Fatalf("answered before it could be canceled: %d", a.code)
			}
			done <- a
		default:
		}
	}
	if a := <-done; a.code != 499 || !bytes.Contains(a.body, []byte("canceled by its client")) {
		t.Errorf("canceled by a call: %d %s", a.code, a.body)
	}
	ctx, leave := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer leave()
	if res, err := c.http.Do(c.request(ctx, "POST", path, body)); err == nil {
		_ = res.Body.Close()
		t.Errorf("one whose client left was answered: %d", res.StatusCode)
	}
	// The one slot is free again for the next forward of the run.
	if _, _, err := c.forward("demo", tensor.F32, map[string]string{"run": "r"}, append(slices.Clone(cond), step...)...); err != nil {
		t.Error(err)
	}
	again, _, err := c.forward("demo", tensor.F32, map[string]string{"run": "r", "id": "f"}, append(slices.Clone(cond), large...)...)
	if err != nil || len(again) != 16*pixels/8*pixels/8 {
		t.Errorf("%d values, %v", len(again), err)
	}
}
