// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// lengths knows every tensor that a request of given dimensions may bring and
// gets; nothing is believed that a client says about sizes.
type lengths struct {
	step         graph.Layout
	digest       int64
	conditioning graph.Layout
	output       uint64 // of the region, padding included
	outputBytes  uint64
	outputShape  []int64
	strengths    strengths
}

// newLengths specialises the deployment's graph to words such as width and
// height. Words beyond the workload are refused.
func newLengths(d Deployment, words map[string]int64) (lengths, error) {
	dtype, err := tensor.ParseDType(strings.ToUpper(d.Plan.Dtype))
	if err != nil {
		return lengths{}, fmt.Errorf("plan of %s: %w", d.Plan.Deployment, err)
	}
	dims, err := d.Graph.Request(words)
	if err != nil {
		return lengths{}, err
	}
	most, err := d.Graph.Request(d.Plan.Workload.GetDims())
	if err != nil {
		return lengths{}, fmt.Errorf("workload of %s: %w", d.Plan.Deployment, err)
	}
	if err := d.Graph.Within(dims, most); err != nil {
		return lengths{}, fmt.Errorf("deployment %s: %w", d.Plan.Deployment, err)
	}
	p, err := graph.Specialise(d.Graph, dims, dtype)
	if err != nil {
		return lengths{}, err
	}
	l := lengths{conditioning: graph.ConditioningLayout(p), outputShape: p.Output.Shape, outputBytes: uint64(p.Output.Bytes)}
	l.step, l.digest = graph.StepLayout(p)
	if p.Output.DType != tensor.F32 {
		return lengths{}, fmt.Errorf("graph %s: output is %v, clients take F32", d.Graph.Arch, p.Output.DType)
	}
	l.output = uint64(graph.OutputLayout(p).Bytes)
	return l, nil
}

// match checks the tensors of a request against a layout, by name. One that is
// empty at these dimensions may be left out.
func match(l graph.Layout, tensors []*pb.Tensor) error {
	if len(tensors) > maxTensors {
		return fmt.Errorf("%d tensors, at most %d", len(tensors), maxTensors)
	}
	matched := 0
	for _, v := range l.Values {
		i := slices.IndexFunc(tensors, func(t *pb.Tensor) bool { return t.Name == v.Name })
		if i < 0 && v.Bytes == 0 {
			continue
		}
		if i < 0 {
			return fmt.Errorf("tensor %s is missing: %v F32", v.Name, v.Shape)
		}
		matched++
		t := tensors[i]
		if t.Dtype != tensor.F32.String() || !slices.Equal(t.Shape, v.Shape) || tensor.Bytes(len(t.Data)) != v.Bytes {
			return fmt.Errorf("tensor %s is %.10q %v of %d bytes, want F32 %v of %d", v.Name, t.Dtype, tensor.Shape(t.Shape[:min(len(t.Shape), 8)]), len(t.Data), v.Shape, int64(v.Bytes))
		}
	}
	for _, t := range tensors {
		if !slices.ContainsFunc(l.Values, func(v graph.Tensor) bool { return v.Name == t.Name }) {
			return fmt.Errorf("tensor %.40q is not an input of this model at this point", t.Name)
		}
	}
	if len(tensors) != matched {
		return errors.New("a tensor is given twice")
	}
	return nil
}

func (l *lengths) checkConditioning(tensors []*pb.Tensor) error {
	return match(l.conditioning, tensors)
}

// inputs is what the first stage's region takes: the layout's tensors, padding
// included, and the digest of the conditioning.
func (l *lengths) inputs(req *pb.ForwardRequest) ([][]byte, error) {
	s, err := l.strengths.over(req.LoraStrengths)
	if err != nil {
		return nil, err
	}
	tensors := req.Tensors
	if t := s.tensor(); t != nil {
		tensors = append(slices.Clone(tensors), t)
	}
	if err := match(l.step, tensors); err != nil {
		return nil, err
	}
	digest, err := hex.DecodeString(req.Conditioning)
	if err != nil || len(digest) != graph.DigestBytes {
		return nil, fmt.Errorf("conditioning %.80q is not the answer of PutConditioning", req.Conditioning)
	}
	var out [][]byte
	at := tensor.Bytes(0)
	for _, v := range l.step.Values {
		i := slices.IndexFunc(tensors, func(t *pb.Tensor) bool { return t.Name == v.Name })
		out = append(out, padding(v.Place.Offset-at), tensors[i].Data)
		at = v.Place.Offset + v.Bytes
	}
	out = append(out, padding(tensor.Bytes(l.digest)-at), digest)
	return append(out, padding(l.step.Bytes-tensor.Bytes(l.digest)-graph.DigestBytes)), nil
}

func padding(n tensor.Bytes) []byte { return make([]byte, n) }
