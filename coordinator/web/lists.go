// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/wire"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

type nodeView struct {
	Name    string       `json:"name"`
	ID      string       `json:"id"`
	Address string       `json:"address"`
	State   string       `json:"state"`
	Devices []deviceView `json:"devices"`
	Models  []string     `json:"models"`
}

type deviceView struct {
	Name   string   `json:"name"`
	Kind   string   `json:"kind"`
	Model  string   `json:"model"`
	Memory uint64   `json:"memory"`         // bytes that distorch may use
	Free   uint64   `json:"free"`           // of these, what no plan counts on
	Class  []string `json:"class"`          // numerics classes
	Lost   string   `json:"lost,omitempty"` // why it is not used any more
}

func (s *Server) nodes(w http.ResponseWriter, r *http.Request, _ Client) error {
	all, err := s.cfg.Control.ListNodes(r.Context(), &pb.ListNodesRequest{})
	if err != nil {
		return err
	}
	deployed, err := s.cfg.Control.Status(r.Context(), &pb.StatusRequest{})
	if err != nil {
		return err
	}
	taken := map[[2]string]uint64{}
	for _, d := range deployed.Deployments {
		for _, st := range d.GetPlan().GetStages() {
			taken[[2]string{st.Node, st.Device}] += st.GetForecast().GetPeakBytes()
		}
	}
	views := []nodeView{}
	for _, n := range all.Nodes {
		v := nodeView{Name: n.Record.Name, ID: n.Record.Id, Address: n.Record.Address, State: "ready", Devices: []deviceView{}, Models: append([]string{}, n.Models...)}
		for _, d := range n.Record.Devices {
			most := d.MemoryAllocatableBytes
			v.Devices = append(v.Devices, deviceView{
				Name: d.Name, Kind: cmp.Or(d.Kind, "cpu"), Model: d.Model, Memory: most,
				Free: most - min(most, taken[[2]string{n.Record.Id, d.Name}]), Class: append([]string{}, d.NumericsClasses...),
			})
		}
		for _, d := range n.Record.Lost {
			v.Devices = append(v.Devices, deviceView{Name: d.Name, Class: []string{}, Lost: d.Reason})
		}
		views = append(views, v)
	}
	answer(w, http.StatusOK, map[string]any{"nodes": views})
	return nil
}

type modelView struct {
	ID           string   `json:"id"`
	Name         string   `json:"name"`
	Architecture string   `json:"architecture"`
	Variant      string   `json:"variant"`
	Bytes        uint64   `json:"bytes"`
	Blocks       uint32   `json:"blocks"`
	DType        string   `json:"dtype"` // that it computes in unless a deployment says otherwise
	Problem      string   `json:"problem"`
	Holders      []string `json:"holders"` // names of nodes that have the file
}

func newModelView(m *pb.ModelStatus) modelView {
	r := m.Record
	return modelView{
		ID: r.Id, Name: r.Name, Architecture: r.Architecture, Variant: r.Variant, Bytes: r.FileBytes, Blocks: m.Blocks,
		DType: r.DefaultDtype, Problem: m.Problem, Holders: append([]string{}, m.Holders...),
	}
}

func (s *Server) models(w http.ResponseWriter, r *http.Request, _ Client) error {
	all, err := s.cfg.Control.ListModels(r.Context(), &pb.ListModelsRequest{})
	if err != nil {
		return err
	}
	views := []modelView{}
	for _, m := range all.Models {
		views = append(views, newModelView(m))
	}
	answer(w, http.StatusOK, map[string]any{"models": views})
	return nil
}

// fullModelView is what a program needs to stand for the model.
type fullModelView struct {
	modelView
	Parameters map[string]json.RawMessage `json:"parameters"`
	Latent     *arch.Latent               `json:"latent"`
	Inputs     []inputView                `json:"inputs"`
	Tensors    []tensorView               `json:"tensors"`
}

type inputView struct {
	Name  string   `json:"name"`
	Dims  []string `json:"dims"`
	DType string   `json:"dtype"`
}

type tensorView struct {
	Name  string  `json:"name"`
	Shape []int64 `json:"shape"`
	DType string  `json:"dtype"`
}

// inputNames are those of forwards, where the graph has others.
func inputName(name string) string {
	if k, ok := strings.CutPrefix(name, "ref."); ok {
		return "ref_latents." + k
	}
	return name
}

func graphName(name string) string {
	if k, ok := strings.CutPrefix(name, "ref_latents."); ok {
		return "ref." + k
	}
	return name
}

func (s *Server) model(w http.ResponseWriter, r *http.Request, _ Client) error {
	all, err := s.cfg.Control.ListModels(r.Context(), &pb.ListModelsRequest{})
	if err != nil {
		return err
	}
	id, err := findModel(all.Models, r.PathValue("model"))
	if err != nil {
		return err
	}
	if all, err = s.cfg.Control.ListModels(r.Context(), &pb.ListModelsRequest{GraphOf: id}); err != nil {
		return err
	}
	i := slices.IndexFunc(all.Models, func(m *pb.ModelStatus) bool { return m.Record.Id == id })
	if i < 0 {
		return fail(CodeNotFound, "model %s has left the cluster", id)
	}
	m := all.Models[i]
	v := fullModelView{modelView: newModelView(m), Parameters: map[string]json.RawMessage{}, Inputs: []inputView{}, Tensors: []tensorView{}}
	for name, value := range m.Record.HyperParameters {
		if json.Valid([]byte(value)) {
			v.Parameters[name] = json.RawMessage(value)
		}
	}
	if l, err := arch.LatentOf(m.Record.Architecture, m.Record.HyperParameters); err == nil {
		v.Latent = &l
	}
	if g, err := wire.FromProto(m.Record.Graph); m.Record.Graph != nil && err == nil {
		v.Inputs = inputViews(g)
	}
	for _, t := range m.Record.Weights {
		v.Tensors = append(v.Tensors, tensorView{t.Name, append([]int64{}, t.Shape...), t.Dtype})
	}
	answer(w, http.StatusOK, v)
	return nil
}

func inputViews(g *graph.Model) []inputView {
	out := []inputView{}
	for _, in := range g.Inputs {
		v := inputView{Name: inputName(in.Name), Dims: []string{}, DType: "F32"}
		for _, e := range in.Shape {
			v.Dims = append(v.Dims, fmt.Sprint(e))
		}
		out = append(out, v)
	}
	return out
}

// findModel finds a model by id, name, or file name without its extension.
func findModel(all []*pb.ModelStatus, ref string) (string, error) {
	for _, same := range []func(r *pb.ModelRecord) bool{
		func(r *pb.ModelRecord) bool { return r.Id == ref },
		func(r *pb.ModelRecord) bool { return r.Name == ref },
		func(r *pb.ModelRecord) bool { return strings.TrimSuffix(path.Base(r.Name), path.Ext(r.Name)) == ref },
	} {
		var ids []string
		for _, m := range all {
			if same(m.Record) {
				ids = append(ids, m.Record.Id)
			}
		}
		switch {
		case len(ids) == 1:
			return ids[0], nil
		case len(ids) > 1:
			return "", fail(CodeBadRequest, "model %.80q is the name of %d different files: name one by its id: %s", ref, len(ids), strings.Join(ids, ", "))
		}
	}
	return "", fail(CodeNotFound, "no model %.80q here; GET /v1/models lists them, and an agent whose models.dirs has the file makes it known", ref)
}
