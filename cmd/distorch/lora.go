// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/cmd/internal/picture"
	"github.com/distorch/distorch/model/lora"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// loraView is a LoRA of a deployment or plan.
type loraView struct {
	Name       string   `json:"name"`
	ID         string   `json:"id"`
	Mode       string   `json:"mode"`
	Strength   float32  `json:"strength"`
	Layers     uint32   `json:"layers,omitempty"`      // of the file, applied
	NotApplied []string `json:"not_applied,omitempty"` // tensors of the file, and why
}

// strengthView is the strength of a LoRA in a run, from the first step to the last.
type strengthView struct {
	Name  string  `json:"name"`
	ID    string  `json:"id"`
	First float64 `json:"first"`
	Last  float64 `json:"last"`
}

func (v strengthView) String() string {
	if v.First == v.Last {
		return fmt.Sprintf("LoRA %s at strength %g in this run", v.Name, v.First)
	}
	return fmt.Sprintf("LoRA %s at strength %g in the first step to %g in the last", v.Name, v.First, v.Last)
}

func newLoRAViews(in []*pb.LoRA) (out []loraView) {
	for _, l := range in {
		out = append(out, loraView{l.GetName(), l.GetId(), l.GetMode(), l.GetStrength(), l.GetLayers(), l.GetNotes()})
	}
	return out
}

func writeLoRAs(p *printer, all []loraView) {
	for _, l := range all {
		layers := "layers"
		if l.Layers == 1 {
			layers = "layer"
		}
		p.line("LoRA %s: %s at strength %g, %d %s", l.Name, map[string]string{string(lora.Add): "added", string(lora.Merge): "merged"}[l.Mode], l.Strength, l.Layers, layers)
		for _, n := range l.NotApplied {
			p.line("  not applied: %s", n)
		}
	}
}

// cutStrengths reads REF[:STRENGTH[:STRENGTH]]; REF may have colons of its own,
// as a path on Windows has.
func cutStrengths(text string) (ref string, strengths []float64, err error) {
	ref = text
	for len(strengths) < 2 {
		i := strings.LastIndexByte(ref, ':')
		if i <= 0 {
			break
		}
		s, err := strconv.ParseFloat(ref[i+1:], 64)
		if err != nil {
			break
		}
		if err := lora.CheckStrength(s); err != nil {
			return "", nil, usage(fmt.Errorf("--lora %s: %w", text, err))
		}
		ref, strengths = ref[:i], append([]float64{s}, strengths...)
	}
	if ref == "" {
		return "", nil, usage(fmt.Errorf("--lora %q names no file", text))
	}
	return ref, strengths, nil
}

// parseLoRAs reads the flags of deploy and plan.
func parseLoRAs(texts []string, mode string) (out []*pb.LoRA, err error) {
	m, err := lora.ParseMode(mode)
	if err != nil {
		return nil, usage(fmt.Errorf("--lora-mode: %w", err))
	}
	if m != lora.Add && len(texts) == 0 {
		return nil, usage(fmt.Errorf("--lora-mode %s needs a --lora", m))
	}
	for _, text := range texts {
		ref, s, err := cutStrengths(text)
		switch {
		case err != nil:
			return nil, err
		case len(s) > 1:
			return nil, usage(fmt.Errorf("--lora %s: a deployment has one strength for each LoRA; `distorch run` takes two", text))
		case len(s) == 0:
			s = []float64{1}
		}
		out = append(out, &pb.LoRA{Name: ref, Mode: string(m), Strength: float32(s[0])})
	}
	return out, nil
}

// resolveLoRAs turns files on this machine and beginnings of ids into ids; the
// coordinator finds the others.
func resolveLoRAs(cmd *cobra.Command, o *operator, all []*pb.LoRA) error {
	for _, l := range all {
		id, err := loraID(cmd, o, l.Name)
		if err != nil {
			return err
		}
		l.Id = id
	}
	return nil
}

// loraID is the id of a LoRA file on this machine, or of the one whose id begins
// so; "" for another reference.
func loraID(cmd *cobra.Command, o *operator, ref string) (string, error) {
	info, err := os.Stat(ref)
	if err != nil || !info.Mode().IsRegular() {
		if !partOfID.MatchString(ref) {
			return "", nil
		}
		return resolveModel(cmd, o, ref)
	}
	f, err := openCheckpoint(ref)
	if err != nil {
		return "", err
	}
	defer f.Close()
	id, err := f.QuickID()
	if err != nil {
		return "", fmt.Errorf("%s: %w", ref, err)
	}
	return id, heldSomewhere(cmd, o, ref, id)
}

// runStrengths reads the flags of run and finds the deployment's LoRAs that they
// mean.
func runStrengths(cmd *cobra.Command, o *operator, spec *pb.DeploymentSpec, texts []string) (out []picture.LoRA, err error) {
	for _, text := range texts {
		ref, s, err := cutStrengths(text)
		if err != nil {
			return nil, err
		}
		if len(s) == 0 {
			return nil, usage(fmt.Errorf("--lora %s: the strength is missing or no number; it is NAME:STRENGTH, such as style:0.8, or NAME:FIRST:LAST", text))
		}
		l, err := deployedLoRA(cmd, o, spec, ref)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(other picture.LoRA) bool { return other.ID == l.GetId() }) {
			return nil, usage(fmt.Errorf("--lora %s: %s has a strength already; one for each LoRA", text, l.GetName()))
		}
		out = append(out, picture.LoRA{Name: l.GetName(), ID: l.GetId(), First: s[0], Last: s[len(s)-1]})
	}
	return out, nil
}

func deployedLoRA(cmd *cobra.Command, o *operator, spec *pb.DeploymentSpec, ref string) (*pb.LoRA, error) {
	id := ""
	if info, err := os.Stat(ref); err == nil && info.Mode().IsRegular() {
		if id, err = loraID(cmd, o, ref); err != nil {
			return nil, err
		}
	}
	for _, l := range spec.GetLoras() {
		name := l.GetName()
		if id == l.GetId() || id == "" && (name == ref || strings.TrimSuffix(name, path.Ext(name)) == ref || partOfID.MatchString(ref) && strings.HasPrefix(l.GetId(), ref)) {
			return l, nil
		}
	}
	return nil, usage(fmt.Errorf("deployment %s has no LoRA %s%s; this adds it: %s", spec.GetName(), ref, named(spec.GetLoras()), deployCommand(spec, ref)))
}

// named lists what a deployment has, in brackets.
func named(all []*pb.LoRA) string {
	var names []string
	for _, l := range all {
		names = append(names, l.GetName())
	}
	if len(names) == 0 {
		return ""
	}
	return " (it has " + strings.Join(names, ", ") + ")"
}

// deployCommand deploys what there is with one LoRA more.
func deployCommand(spec *pb.DeploymentSpec, ref string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "distorch deploy %s --model %s --workload %s", spec.GetName(), spec.GetModelName(), showWorkload(spec.GetWorkload().GetDims()))
	if d := spec.GetDtype(); d != "" {
		fmt.Fprintf(&b, " --dtype %s", d)
	}
	for _, p := range newSpecView(spec).Pins {
		fmt.Fprintf(&b, " --pin %s", p)
	}
	for _, x := range spec.GetExcludes() {
		fmt.Fprintf(&b, " --exclude %s", x)
	}
	mode := ""
	for _, l := range spec.GetLoras() {
		fmt.Fprintf(&b, " --lora %s:%g", l.GetName(), l.GetStrength())
		mode = l.GetMode()
	}
	fmt.Fprintf(&b, " --lora %s", ref)
	if mode != "" && mode != string(lora.Add) {
		fmt.Fprintf(&b, " --lora-mode %s", mode)
	}
	return output.Clean(b.String())
}
