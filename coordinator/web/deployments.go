// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// specBody is a deployment as a client asks for it.
type specBody struct {
	Model       string           `json:"model"`
	Workload    map[string]int64 `json:"workload"` // words of the model's dimensions, and in_flight
	DType       string           `json:"dtype,omitempty"`
	VirtualVRAM uint64           `json:"virtual_vram,omitempty"` // bytes
	Allocation  string           `json:"allocation,omitempty"`
	Compat      string           `json:"compat,omitempty"`
	Fit         string           `json:"fit,omitempty"`
	Storage     string           `json:"storage,omitempty"`
	Reserve     uint64           `json:"reserve,omitempty"` // bytes
	Excludes    []string         `json:"excludes,omitempty"`
	LoRAs       []specLoRA       `json:"loras,omitempty"`
}

// specLoRA is a LoRA file of the cluster, by id or name.
type specLoRA struct {
	ID       string  `json:"id,omitempty"`
	Name     string  `json:"name,omitempty"`
	Mode     string  `json:"mode,omitempty"`
	Strength float64 `json:"strength"`
}

const inFlightWord = "in_flight"

// defaults of a workload, as the command line has them.
func workloadDefaults() map[string]int64 { return map[string]int64{"text_tokens": 512, "batch": 1} }

func (b specBody) proto(name string) (*pb.DeploymentSpec, error) {
	if _, only := b.Workload[inFlightWord]; len(b.Workload) == 0 || only && len(b.Workload) == 1 {
		return nil, fail(CodeBadRequest, `the spec does not say for how large a picture: add "workload", such as {"width":1024,"height":1024}`)
	}
	w := &pb.Workload{Dims: workloadDefaults()}
	for word, n := range b.Workload {
		switch {
		case word == inFlightWord && (n < 0 || n > 1<<16):
			return nil, fail(CodeBadRequest, "workload: in_flight is %d; use 1 to 64, or leave it out", n)
		case word == inFlightWord:
			w.InFlight = uint32(n)
		default:
			w.Dims[word] = n
		}
	}
	spec := &pb.DeploymentSpec{
		Name: name, Model: b.Model, Workload: w, Dtype: b.DType, Allocation: b.Allocation, Compat: b.Compat, VirtualVramBytes: b.VirtualVRAM,
		Fit: b.Fit, Storage: b.Storage, ReserveBytes: b.Reserve, Excludes: b.Excludes,
	}
	for _, l := range b.LoRAs {
		spec.Loras = append(spec.Loras, &pb.LoRA{Id: l.ID, Name: l.Name, Mode: l.Mode, Strength: float32(l.Strength)})
	}
	return spec, nil
}

func newSpecBody(s *pb.DeploymentSpec) specBody {
	b := specBody{
		Model: cmp.Or(s.GetModelName(), s.GetModel()), Workload: maps.Clone(s.GetWorkload().GetDims()), DType: s.GetDtype(), VirtualVRAM: s.GetVirtualVramBytes(),
		Allocation: s.GetAllocation(), Compat: s.GetCompat(), Fit: s.GetFit(), Storage: s.GetStorage(), Reserve: s.GetReserveBytes(), Excludes: s.GetExcludes(),
	}
	if b.Workload == nil {
		b.Workload = map[string]int64{}
	}
	b.Workload[inFlightWord] = int64(s.GetWorkload().GetInFlight())
	for _, l := range s.GetLoras() {
		if l.GetBrought() {
			continue // they come and go with forwards
		}
		b.LoRAs = append(b.LoRAs, specLoRA{l.GetId(), l.GetName(), l.GetMode(), float64(l.GetStrength())})
	}
	return b
}

type forecastView struct {
	Step    float64 `json:"step_s"`
	Pair    float64 `json:"pair_s"` // cond and uncond, both in flight
	Compute float64 `json:"compute_s"`
	Expand  float64 `json:"expand_s"`
	Hop     float64 `json:"hop_s"`
	Waiting float64 `json:"waiting_s"`
	Load    float64 `json:"load_s"`
}

func newForecastView(f *pb.Forecast) *forecastView {
	if f == nil {
		return nil
	}
	return &forecastView{f.StepSeconds, f.PairSeconds, f.ComputeSeconds, f.ExpandSeconds, f.HopSeconds, f.WaitingSeconds, f.LoadSeconds}
}

type stageView struct {
	Node      string `json:"node"`
	Device    string `json:"device"`
	First     uint32 `json:"first_block"`
	Blocks    uint32 `json:"blocks"`
	Class     string `json:"class"`
	PeakBytes uint64 `json:"peak_bytes"`
}

type loraView struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Mode     string   `json:"mode"`
	Strength float32  `json:"strength"`
	Layers   uint32   `json:"layers"`
	Notes    []string `json:"notes"`
}

// States of a deployment.
const (
	statePlacing    = "placing" // the leader has not placed this generation yet
	stateLoading    = "loading"
	stateReady      = "ready"
	stateFailed     = "failed"     // a node could not load its part
	stateInfeasible = "infeasible" // it fits nowhere at this moment
)

type deploymentView struct {
	Name       string        `json:"name"`
	State      string        `json:"state"`
	Message    string        `json:"message"`
	Client     string        `json:"client"` // that made it; empty: an operator
	Epoch      uint64        `json:"epoch"`
	Generation uint64        `json:"generation"`
	Spec       specBody      `json:"spec"`
	Plan       []stageView   `json:"plan"`
	Forecast   *forecastView `json:"forecast"`
	Numerics   string        `json:"numerics"`
	LoRAs      []loraView    `json:"loras"`
	Loaded     uint64        `json:"loaded_bytes"`
	Total      uint64        `json:"total_bytes"`
}

func newDeploymentView(d *pb.DeploymentStatus) deploymentView {
	p := d.GetPlan()
	v := deploymentView{
		Name: d.Spec.GetName(), State: stateOf(d), Message: d.GetMessage(), Client: d.Spec.GetClient(), Epoch: p.GetEpoch(), Generation: d.Spec.GetGeneration(),
		Spec: newSpecBody(d.Spec), Plan: []stageView{}, Forecast: newForecastView(p.GetForecast()), Numerics: p.GetNumerics(), LoRAs: []loraView{},
	}
	for _, s := range p.GetStages() {
		v.Plan = append(v.Plan, stageView{s.NodeName, s.Device, s.FirstBlock, s.Blocks, s.NumericsClass, s.GetForecast().GetPeakBytes()})
	}
	for _, l := range p.GetLoras() {
		v.LoRAs = append(v.LoRAs, loraView{l.Id, l.Name, l.Mode, l.Strength, l.Layers, append([]string{}, l.Notes...)})
	}
	for _, o := range d.Observed {
		if o.Epoch == p.GetEpoch() && o.DeploymentId == p.GetDeploymentId() {
			v.Loaded += o.LoadedBytes
			v.Total += o.TotalBytes
		}
	}
	return v
}

func stateOf(d *pb.DeploymentStatus) string {
	p := d.GetPlan()
	switch {
	case d.GetReady():
		return stateReady
	case p == nil || p.GetDeploymentId() != d.Spec.GetId() || p.GetGeneration() != d.Spec.GetGeneration():
		return statePlacing
	case len(p.GetStages()) == 0:
		return stateInfeasible
	}
	for _, o := range d.Observed {
		if o.State == pb.Observed_FAILED && o.Epoch == p.GetEpoch() && o.DeploymentId == p.GetDeploymentId() {
			return stateFailed
		}
	}
	return stateLoading
}

func settled(state string) bool { return state != statePlacing && state != stateLoading }

func (s *Server) deployments(w http.ResponseWriter, r *http.Request, _ Client) error {
	all, err := s.cfg.Control.Status(r.Context(), &pb.StatusRequest{})
	if err != nil {
		return err
	}
	views := []deploymentView{}
	for _, d := range all.Deployments {
		views = append(views, newDeploymentView(d))
	}
	answer(w, http.StatusOK, map[string]any{"deployments": views})
	return nil
}

const maxWait = time.Minute

// deployment answers at once or, with wait, when the deployment is ready or
// cannot become so by itself.
func (s *Server) deployment(w http.ResponseWriter, r *http.Request, _ Client) error {
	wait := time.Duration(0)
	if text := r.URL.Query().Get("wait"); text != "" {
		var err error
		if wait, err = time.ParseDuration(text); err != nil || wait < 0 || wait > maxWait {
			return fail(CodeBadRequest, "wait=%.20s: use a time of at most %s, such as 30s", text, maxWait)
		}
	}
	over := time.NewTimer(wait)
	defer over.Stop()
	for {
		changed := s.cfg.Control.Changed()
		v, err := s.status(r, r.PathValue("name"))
		if err != nil {
			return err
		}
		if wait > 0 && !settled(v.State) {
			select {
			case <-changed:
				continue
			case <-over.C:
			case <-r.Context().Done():
				return r.Context().Err()
			}
		}
		answer(w, http.StatusOK, v)
		return nil
	}
}

func (s *Server) status(r *http.Request, name string) (deploymentView, error) {
	res, err := s.cfg.Control.Status(r.Context(), &pb.StatusRequest{Name: name})
	if err != nil {
		return deploymentView{}, err
	}
	if len(res.Deployments) != 1 {
		return deploymentView{}, fail(CodeNotFound, "no deployment %.80q here", name)
	}
	return newDeploymentView(res.Deployments[0]), nil
}

type planView struct {
	Feasible bool            `json:"feasible"`
	Message  string          `json:"message"`
	Text     string          `json:"text"`
	Forecast *forecastView   `json:"forecast"`
	Numerics string          `json:"numerics"`
	Report   json.RawMessage `json:"report"` // docs/schema/plan.schema.json
}

const planName = "plan"

func (s *Server) plan(w http.ResponseWriter, r *http.Request, _ Client) error {
	var b specBody
	if err := s.readJSON(w, r, "a deployment's spec", &b); err != nil {
		return err
	}
	spec, err := b.proto(planName)
	if err != nil {
		return err
	}
	p, err := s.cfg.Control.Plan(r.Context(), &pb.PlanRequest{Spec: spec})
	if err != nil {
		return err
	}
	v := planView{Feasible: p.Plan.GetInfeasible() == "", Message: p.Plan.GetInfeasible(), Text: p.Explanation, Forecast: newForecastView(p.Plan.GetForecast()), Numerics: p.Plan.GetNumerics(), Report: p.Report}
	if v.Feasible {
		v.Message = "it fits"
	}
	if len(v.Report) == 0 {
		v.Report = json.RawMessage("null")
	}
	answer(w, http.StatusOK, v)
	return nil
}

// deploy writes what the client wants. A spec that fits nowhere is refused and
// nothing is written; the same again changes nothing.
func (s *Server) deploy(w http.ResponseWriter, r *http.Request, _ Client) error {
	var b specBody
	if err := s.readJSON(w, r, "a deployment's spec", &b); err != nil {
		return err
	}
	name := r.PathValue("name")
	spec, err := b.proto(name)
	if err != nil {
		return err
	}
	p, err := s.cfg.Control.Plan(r.Context(), &pb.PlanRequest{Spec: spec})
	if err != nil {
		return err
	}
	if why := p.Plan.GetInfeasible(); why != "" {
		return &Error{CodeConflict, "deployment " + name + " fits nowhere: " + why, map[string]any{"feasible": false}}
	}
	if _, err := s.cfg.Control.Deploy(r.Context(), &pb.DeployRequest{Spec: spec, IfChanged: true}); err != nil {
		return err
	}
	v, err := s.status(r, name)
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, v)
	return nil
}

func (s *Server) undeploy(w http.ResponseWriter, r *http.Request, _ Client) error {
	name := r.PathValue("name")
	if _, err := s.cfg.Control.Undeploy(r.Context(), &pb.UndeployRequest{Name: name}); err != nil {
		return err
	}
	answer(w, http.StatusOK, map[string]string{"removed": name})
	return nil
}

type lendBody struct {
	Node    string  `json:"node"`
	Device  string  `json:"device"`
	Bytes   uint64  `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Restore bool    `json:"restore"`
}

// maxLend is a week.
const maxLend = 7 * 24 * time.Hour

func (s *Server) lend(w http.ResponseWriter, r *http.Request, c Client) error {
	var b lendBody
	if err := s.readJSON(w, r, "what is to be lent", &b); err != nil {
		return err
	}
	if !(b.Seconds >= 0 && b.Seconds <= maxLend.Seconds()) {
		return fail(CodeBadRequest, "seconds %g: use 0 (until it is restored) to %g", b.Seconds, maxLend.Seconds())
	}
	req := &pb.LendRequest{Node: b.Node, Device: b.Device, Bytes: b.Bytes, Restore: b.Restore}
	if b.Seconds > 0 {
		req.Duration = durationpb.New(time.Duration(b.Seconds * float64(time.Second)))
	}
	res, err := s.cfg.Control.Lend(r.Context(), req)
	if err != nil {
		return err
	}
	s.log.Info("a client borrowed memory", "client", c.Name, "node", res.GetNode(), "device", res.GetDevice(), "bytes", res.GetLentBytes())
	moved := uint64(0)
	for _, st := range res.GetStages() {
		moved += st.GetMovedBytes()
	}
	answer(w, http.StatusOK, map[string]any{
		"node": res.GetNode(), "device": res.GetDevice(), "lent_bytes": res.GetLentBytes(), "free_bytes": res.GetFreeBytes(),
		"moved_bytes": moved, "took_s": res.GetTook().AsDuration().Seconds(), "left_s": res.GetLeft().AsDuration().Seconds(),
	})
	return nil
}
