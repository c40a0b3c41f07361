// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

const (
	maxRunID     = 64
	maxStep      = 1 << 20
	maxBranch    = 1 << 16
	maxDimWords  = 32
	maxMetaValue = 16 << 10
)

// forwardRequest is a forward's body, checked as far as that takes no model.
type forwardRequest struct {
	run, id      string
	step, branch uint32
	blob         string // sha256 of the conditioning's blob, or none
	loras        []loraUse
	dims         map[string]int64
	deadline     time.Duration
	xType        tensor.DType
	step32       []*pb.Tensor          // x and timestep, f32
	conditioning map[string]*pb.Tensor // what came with the forward, f32, by the graph's names
	digest       string                // of conditioning's bytes
}

func parseForward(body []byte, l Limits) (*forwardRequest, error) {
	b, err := parseTensors("the body", body)
	if err != nil {
		return nil, err
	}
	f := &forwardRequest{conditioning: map[string]*pb.Tensor{}, deadline: l.Deadline}
	if err := f.metadata(b.metadata, l); err != nil {
		return nil, err
	}
	inline := sha256.New()
	for _, t := range b.tensors {
		name := graphName(t.name)
		if len(t.name) > maxRunID {
			return nil, fail(CodeBadRequest, "tensor %.80q: no model has an input of that name", t.name)
		}
		v, err := t.floats()
		if err != nil {
			return nil, err
		}
		p := float32Tensor(name, t.shape, v)
		switch name {
		case "x":
			if len(t.shape) < 3 || t.shape[0] != 1 {
				return nil, fail(CodeBadRequest, "tensor x is %v; send one picture in a forward, [1,channels,height,width], and the pictures of a batch in forwards of their own", t.shape)
			}
			f.xType = t.dtype
			f.step32 = append(f.step32, p)
		case "timestep":
			if t.dtype != tensor.F32 {
				return nil, fail(CodeBadRequest, "tensor timestep is %v %v; send it as F32 [1]", t.dtype, t.shape)
			}
			f.step32 = append(f.step32, p)
		default:
			f.conditioning[name] = p
			_, _ = fmt.Fprintf(inline, "%q %v\n", name, t.shape) // a hash takes every write
			_, _ = inline.Write(p.Data)
		}
	}
	if f.xType == tensor.Invalid || len(f.step32) != 2 {
		return nil, fail(CodeBadRequest, "the body needs the tensors x and timestep")
	}
	f.digest = hex.EncodeToString(inline.Sum(nil))
	return f, nil
}

func float32Tensor(name string, shape tensor.Shape, v []float32) *pb.Tensor {
	raw := make([]byte, 4*len(v))
	tensor.PutF32(raw, v)
	return &pb.Tensor{Name: name, Dtype: tensor.F32.String(), Shape: shape, Data: raw}
}

// metadata reads __metadata__; a key that is not known is an error, so that a
// misspelt one is not ignored.
func (f *forwardRequest) metadata(m map[string]string, l Limits) error {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		value := m[key]
		if len(value) > maxMetaValue {
			return fail(CodeTooLarge, "metadata %.40q has %d bytes, at most %d are taken", key, len(value), maxMetaValue)
		}
		var err error
		switch key {
		case "run":
			f.run, err = identifier(key, value)
		case "id":
			f.id, err = identifier(key, value)
		case "step":
			f.step, err = number(key, value, maxStep)
		case "branch":
			f.branch, err = number(key, value, maxBranch)
		case "conditioning":
			if f.blob = value; value != "" && !isDigest(value) {
				err = fail(CodeBadRequest, "metadata conditioning %.80q: give the SHA-256 of a blob, 64 digits of lower-case hexadecimal", value)
			}
		case "loras":
			f.loras, err = parseLoRAs(value)
		case "dims":
			f.dims, err = parseDims(value)
		case "deadline_ms":
			var ms uint32
			if ms, err = number(key, value, math.MaxUint32); err == nil && ms > 0 {
				f.deadline = min(time.Duration(ms)*time.Millisecond, l.MaxDeadline)
			}
		case "format": // what PyTorch's own writer adds
		default:
			err = fail(CodeBadRequest, "metadata %.40q is not known; there are run, id, step, branch, conditioning, loras, dims and deadline_ms", key)
		}
		if err != nil {
			return err
		}
	}
	if f.run == "" {
		return fail(CodeBadRequest, "metadata run is missing; give each picture a name of its own, of up to %d characters", maxRunID)
	}
	return nil
}

func identifier(key, value string) (string, error) {
	bad := func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '/' }
	if value == "" || len(value) > maxRunID || strings.ContainsFunc(value, bad) {
		return "", fail(CodeBadRequest, "metadata %s %.80q: use 1 to %d printable ASCII characters without spaces and slashes", key, value, maxRunID)
	}
	return value, nil
}

func number(key, value string, most uint64) (uint32, error) {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil || n > most {
		return 0, fail(CodeBadRequest, "metadata %s %.40q: give a whole number of at most %d", key, value, most)
	}
	return uint32(n), nil
}

func parseLoRAs(text string) ([]loraUse, error) {
	var uses []loraUse
	if text == "" {
		return nil, nil
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&uses); err != nil || d.More() {
		return nil, fail(CodeBadRequest, `metadata loras: give JSON such as [{"digest":SHA256,"strength":0.8}]`)
	}
	if len(uses) > maxLoRAs {
		return nil, fail(CodeTooLarge, "%d LoRAs, at most %d are taken", len(uses), maxLoRAs)
	}
	for _, u := range uses {
		if !isDigest(u.Digest) {
			return nil, fail(CodeBadRequest, "metadata loras: digest %.80q is not 64 digits of lower-case hexadecimal", u.Digest)
		}
		if math.IsNaN(u.Strength) || math.Abs(u.Strength) > math.MaxFloat32 {
			return nil, fail(CodeBadRequest, "metadata loras: strength %g of %s", u.Strength, u.Digest)
		}
	}
	return uses, nil
}

func parseDims(text string) (map[string]int64, error) {
	var dims map[string]int64
	if text == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(text), &dims); err != nil || len(dims) > maxDimWords {
		return nil, fail(CodeBadRequest, `metadata dims: give JSON of at most %d whole numbers, such as {"ref_method":1}`, maxDimWords)
	}
	return dims, nil
}

// split takes what stands behind the latent's channels in x off as the model's
// input concat, where it has one.
func (f *forwardRequest) split(g *graph.Model) {
	at := slices.IndexFunc(g.Inputs, func(v graph.Value) bool { return v.Name == concatInput })
	if at < 0 || f.conditioning[concatInput] != nil {
		return
	}
	i := slices.IndexFunc(f.step32, func(t *pb.Tensor) bool { return t.Name == "x" })
	x := f.step32[i]
	own := slices.IndexFunc(g.Inputs, func(v graph.Value) bool { return v.Name == "x" })
	channels, err := g.Inputs[own].Shape[1].Eval(nil)
	if err != nil || len(x.Shape) != len(g.Inputs[own].Shape) || x.Shape[1] <= channels {
		return // what is wrong with the shape is said where shapes are compared
	}
	rows := int64(len(x.Data)) / x.Shape[1]
	behind := &pb.Tensor{Name: concatInput, Dtype: x.Dtype, Shape: slices.Clone(x.Shape), Data: x.Data[rows*channels:]}
	behind.Shape[1] -= channels
	front := &pb.Tensor{Name: "x", Dtype: x.Dtype, Shape: slices.Clone(x.Shape), Data: x.Data[:rows*channels]}
	front.Shape[1] = channels
	f.step32[i], f.conditioning[concatInput] = front, behind
	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "%s %v\n", f.digest, behind.Shape)
	_, _ = sum.Write(behind.Data)
	f.digest = hex.EncodeToString(sum.Sum(nil))
}

const concatInput = "concat"

// conditioningList is what came with the forward and stays the same over the
// steps, by name.
func (f *forwardRequest) conditioningList() (out []*pb.Tensor) {
	for _, name := range slices.Sorted(maps.Keys(f.conditioning)) {
		out = append(out, f.conditioning[name])
	}
	return out
}

// shapes are those of all that is known to come with the forward.
func (f *forwardRequest) shapes(blob map[string]tensor.Shape) (map[string]tensor.Shape, error) {
	out := maps.Clone(blob)
	if out == nil {
		out = map[string]tensor.Shape{}
	}
	for _, t := range f.step32 {
		out[t.Name] = t.Shape
	}
	for name, t := range f.conditioning {
		if _, twice := blob[name]; twice {
			return nil, fail(CodeBadRequest, "tensor %s comes with the forward and is in the conditioning's blob too", inputName(name))
		}
		out[name] = t.Shape
	}
	return out, nil
}

// words are the request that the forward is of.
func (f *forwardRequest) words(g *graph.Model, blob map[string]tensor.Shape) (map[string]int64, error) {
	shapes, err := f.shapes(blob)
	if err != nil {
		return nil, err
	}
	if err := namedInputs(g, shapes); err != nil {
		return nil, err
	}
	words, err := g.Words(shapes)
	if err != nil {
		return nil, &Error{CodeBadRequest, err.Error(), nil}
	}
	for word, n := range f.dims {
		if is, told := words[word]; told && is != n {
			return nil, fail(CodeBadRequest, "dims say %s %d, the tensors say %d", word, n, is)
		}
		words[word] = n
	}
	for _, d := range g.Dims {
		if _, told := words[d.Request]; d.Derived == nil && d.Min > 0 && !told {
			return nil, fail(CodeBadRequest, "the forward does not tell %s; send %s with it, or name the blob that has it as conditioning", d.Request, tellers(g, d.Name))
		}
	}
	return words, nil
}

// namedInputs returns an error if the model has no input of one of the names.
func namedInputs(g *graph.Model, shapes map[string]tensor.Shape) error {
	var known []string
	for _, in := range g.Inputs {
		known = append(known, in.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		if !slices.Contains(known, name) {
			for i := range known {
				known[i] = inputName(known[i])
			}
			return fail(CodeBadRequest, "tensor %.80q is not an input of this model; it takes %s", inputName(name), strings.Join(known, ", "))
		}
	}
	return nil
}

// tellers names the inputs whose shape tells a dimension.
func tellers(g *graph.Model, dim string) string {
	var out []string
	for _, in := range g.Inputs {
		if slices.ContainsFunc(in.Shape, func(e graph.Expr) bool { return e.Kind == graph.ExprDim && e.Name == dim }) {
			out = append(out, "the tensor "+inputName(in.Name))
		}
	}
	if len(out) == 0 {
		return "it in dims"
	}
	return strings.Join(out, " or ")
}

// forward runs one forward of a deployment.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, c Client) error {
	began := time.Now()
	n, err := length(r, "a safetensors body", s.limits.ForwardBytes)
	if err != nil {
		return err
	}
	release, err := s.memory.take(c.Name, 2*n) // the body, and what comes of it
	if err != nil {
		return err
	}
	defer release()
	body, err := s.read(w, r, n)
	if err != nil {
		return err
	}
	f, err := parseForward(body, s.limits)
	if err != nil {
		return err
	}
	ctx, land, err := s.takeOff(r.Context(), c.Name, f)
	if err != nil {
		return err
	}
	defer land()
	res, err := s.runForward(ctx, runKey{c.Name, r.PathValue("name"), f.run}, f)
	if err != nil {
		if cause := context.Cause(ctx); ctx.Err() != nil && r.Context().Err() == nil {
			err = f.overdue(cause, err)
		}
		return err
	}
	return f.reply(w, res, time.Since(began))
}

// result is a forward's answer and where it came from.
type result struct {
	*pb.ForwardResponse
	plan     *pb.Plan
	numerics string
	attempt  int
}

type timingView struct {
	Total   float64       `json:"total_s"`
	Forward float64       `json:"forward_s"` // the cluster's own part
	Queue   float64       `json:"queue_s"`
	Stages  []stageTiming `json:"stages"`
}

type stageTiming struct {
	Node    string  `json:"node"`
	Device  string  `json:"device"`
	Compute float64 `json:"compute_s"`
	Waiting float64 `json:"waiting_s"`
}

func (f *forwardRequest) reply(w http.ResponseWriter, res *result, took time.Duration) error {
	out := res.Out
	elements := len(out.Data) / tensor.F32.Size()
	data := out.Data
	if f.xType != tensor.F32 {
		values := make([]float32, elements)
		if err := tensor.ToF32(values, out.Data, tensor.F32); err != nil {
			return fmt.Errorf("output: %w", err)
		}
		data = make([]byte, elements*f.xType.Size())
		if err := tensor.PutFloats(data, values, f.xType); err != nil {
			return fmt.Errorf("output: %w", err)
		}
	}
	timing := timingView{Total: took.Seconds(), Forward: res.Total.AsDuration().Seconds(), Queue: res.Queued.AsDuration().Seconds(), Stages: []stageTiming{}}
	for i, t := range res.Stages {
		v := stageTiming{Node: t.Node, Compute: t.Compute.AsDuration().Seconds(), Waiting: t.Waiting.AsDuration().Seconds()}
		if i < len(res.plan.GetStages()) {
			v.Device = res.plan.Stages[i].Device
		}
		timing.Stages = append(timing.Stages, v)
	}
	header, _, err := safetensors.Header([]safetensors.Entry{{Name: "out", DType: f.xType, Shape: out.Shape}}, map[string]string{
		"timing":   jsonText(timing),
		"forecast": jsonText(newForecastView(res.plan.GetForecast())),
		"numerics": res.numerics,
		"epoch":    strconv.FormatUint(res.plan.GetEpoch(), 10),
		"attempt":  strconv.Itoa(res.attempt),
	})
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(header)+len(data)))
	w.WriteHeader(http.StatusOK)
	if _, err := w.Write(header); err == nil { // a client that is gone is nobody to tell
		_, _ = w.Write(data)
	}
	return nil
}

func jsonText(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // numbers and strings alone
		return "null"
	}
	return string(bytes.TrimSpace(b))
}
