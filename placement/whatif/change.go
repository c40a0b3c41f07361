// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package whatif

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/distorch/distorch/internal/edits"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/cluster"
)

// catalogued is a device by name.
func (e *editor) catalogued(w word) (placement.Device, error) {
	if e.opt.Device == nil {
		return placement.Device{}, e.bad(w, "", "no device by name: there is no catalogue here")
	}
	if w.s == "" {
		return placement.Device{}, e.bad(w, "", "a device of the catalogue, such as rtx4090")
	}
	d, err := e.opt.Device(w.s)
	if err != nil {
		return d, fmt.Errorf("what-if %q: character %d: %w", e.text, w.at+1, err)
	}
	return d, nil
}

func (e *editor) addDevice(w word) error {
	place, kind, ok := w.cut("=")
	name, id, slash := place.cut("/")
	if !ok || !slash || id.s == "" {
		return e.bad(w, "", "NODE/DEVICE=KIND, such as b/cuda:0=rtx4090, or \"node NAME: KIND\"")
	}
	i, err := e.node(name)
	if err != nil {
		return err
	}
	n := &e.s.Problem.Nodes[i]
	if slices.ContainsFunc(n.Devices, func(d placement.Device) bool { return d.ID == id.s }) {
		return e.bad(id, "", "a device that node %s does not have yet", name.s)
	}
	d, err := e.catalogued(kind)
	if err != nil {
		return err
	}
	d.ID = id.s
	n.Devices = append(n.Devices, d)
	return nil
}

const (
	maxDevices = 64
	maxName    = 63
	oneGigabit = 1e9 / 8 * cluster.LineShare
)

func (e *editor) addNode(w word) error {
	name, items, ok := w.cut(":")
	switch {
	case !ok:
		return e.bad(items, "", "\":\" and what the node has, such as \"c: rtx3090,nic=1gbps,ram=32GB\"")
	case name.s == "" || len(name.s) > maxName || strings.ContainsAny(name.s, " \t/="):
		return e.bad(name, "", "a name of 1 to %d characters without spaces, / and =", maxName)
	case e.find(name.s) >= 0:
		return e.bad(name, "", "a name that no node has yet")
	}
	n := placement.Node{
		ID: placement.NodeID(name.s), Name: name.s, HasModel: true,
		Link: placement.Link{BytesPerSecond: oneGigabit, Latency: 1e-4, Source: placement.SourceGiven},
	}
	at := items.at
	for part := range strings.SplitSeq(items.s, ",") {
		item := word{part, at}.trim()
		at += len(part) + 1
		key, value, assigned := item.cut("=")
		if !assigned {
			if err := e.addKind(&n, item); err != nil {
				return err
			}
			continue
		}
		known := []string{"disk", "latency", "nic", "ram"}
		if !slices.Contains(known, key.s) {
			return e.bad(key, edits.Nearest(key.s, known), "a device, or one of %s", strings.Join(known, ", "))
		}
		if err := e.figure(&n, key.s, value); err != nil {
			return err
		}
	}
	for i := range n.Devices {
		if d := &n.Devices[i]; d.Kind == placement.KindCPU && d.Allocatable == 0 {
			d.Allocatable = n.RAM
		}
	}
	e.s.Problem.Nodes = append(e.s.Problem.Nodes, n)
	return nil
}

// addKind gives a node "rtx4090" or "2xrtx4090".
func (e *editor) addKind(n *placement.Node, item word) error {
	count, kind := 1, item
	if before, after, ok := item.cut("x"); ok {
		if v, err := strconv.Atoi(before.s); err == nil {
			count, kind = v, after
		}
	}
	if count < 1 || count > maxDevices {
		return e.bad(item, "", "1 to %d devices", maxDevices)
	}
	d, err := e.catalogued(kind)
	if err != nil {
		return err
	}
	for range count {
		d.ID = "cpu"
		if d.Kind == placement.KindGPU {
			gpus := 0
			for _, have := range n.Devices {
				gpus += map[bool]int{true: 1}[have.Kind == placement.KindGPU]
			}
			d.ID = fmt.Sprintf("cuda:%d", gpus)
		}
		if slices.ContainsFunc(n.Devices, func(have placement.Device) bool { return have.ID == d.ID }) {
			return e.bad(item, "", "one CPU in a node")
		}
		n.Devices = append(n.Devices, d)
	}
	return nil
}

func (e *editor) remove(w word) error {
	p := &e.s.Problem
	if strings.Contains(w.s, "/") {
		n, d, err := e.device(w)
		if err != nil {
			return err
		}
		p.Nodes[n].Devices = slices.Delete(p.Nodes[n].Devices, d, d+1)
		return nil
	}
	i, err := e.node(w)
	if err != nil {
		return err
	}
	id := p.Nodes[i].ID
	p.Nodes = slices.Delete(p.Nodes, i, i+1)
	p.Links = slices.DeleteFunc(p.Links, func(l placement.PeerLink) bool { return l.From == id || l.To == id })
	groups := slices.Clone(p.Groups)
	for g := range groups {
		groups[g].Nodes = slices.DeleteFunc(slices.Clone(groups[g].Nodes), func(n placement.NodeID) bool { return n == id })
	}
	p.Groups = slices.DeleteFunc(groups, func(g placement.Group) bool { return len(g.Nodes) == 0 })
	return nil
}

// link sets both directions between two nodes; names may hold the dash that separates them.
func (e *editor) link(pair, value word) error {
	from, to := -1, -1
	for i := range pair.s {
		if pair.s[i] != '-' {
			continue
		}
		a, b := e.find(strings.TrimSpace(pair.s[:i])), e.find(strings.TrimSpace(pair.s[i+1:]))
		if a >= 0 && b >= 0 {
			from, to = a, b
			break
		}
	}
	if from < 0 || from == to {
		a, b, _ := pair.cut("-")
		for _, w := range []word{a, b} {
			if w.s != "" && e.find(w.s) < 0 {
				_, err := e.node(w)
				return err
			}
		}
		return e.bad(pair, "", "two nodes as A-B")
	}
	rate, err := e.rate(value)
	if err != nil {
		return err
	}
	p := &e.s.Problem
	a, b := p.Nodes[from], p.Nodes[to]
	p.Links = slices.DeleteFunc(p.Links, func(l placement.PeerLink) bool {
		return l.From == a.ID && l.To == b.ID || l.From == b.ID && l.To == a.ID
	})
	latency := math.Max(a.Link.Latency, b.Link.Latency)
	p.Links = append(p.Links, placement.PeerLink{From: a.ID, To: b.ID, BytesPerSecond: rate, Latency: latency}, placement.PeerLink{From: b.ID, To: a.ID, BytesPerSecond: rate, Latency: latency})
	return nil
}

// computes are the dtypes that a model is computed in, narrow those that weights are only stored in.
func computes() []string { return []string{"bf16", "f16", "f32"} }

func narrow() []string {
	return []string{"f8_e4m3", "f8_e5m2", "fp8", "q2_k", "q3_k", "q4_0", "q4_k", "q5_0", "q5_k", "q6_k", "q8_0"}
}

func (e *editor) set(key string, w word) (err error) {
	c := &e.s.Problem.Constraints
	switch key {
	case "dtype", "stored":
		return e.dtype(key, w)
	case "workload":
		t := e.s.Tables
		t.Workload = w.s
		return e.table(w, t)
	case "objective":
		if e.opt.Objective == nil {
			return e.bad(w, "", "no objective here")
		}
		o, err := e.opt.Objective(w.s)
		if err != nil {
			return fmt.Errorf("what-if %q: character %d: %w", e.text, w.at+1, err)
		}
		e.s.Problem.Objective = o
		return nil
	case "max-nodes":
		c.MaxNodes, err = e.number(w)
	case "max-pipelines":
		c.MaxPipelines, err = e.number(w)
	case "max-degree":
		c.MaxDegree, err = e.number(w)
	case "reserve":
		c.Reserve, err = e.size(w)
	case "fit":
		c.Fit = placement.Fit(w.s)
		err = e.oneOf(w, []string{string(placement.FitFallback), string(placement.FitStrict)})
	case "numerics":
		c.Numerics = placement.Numerics(w.s)
		err = e.oneOf(w, []string{string(placement.NumericsAny), string(placement.NumericsOne)})
	}
	return err
}

func (e *editor) oneOf(w word, words []string) error {
	if slices.Contains(words, w.s) {
		return nil
	}
	return e.bad(w, edits.Nearest(w.s, words), "one of %s", strings.Join(words, ", "))
}

func (e *editor) number(w word) (int, error) {
	n, err := strconv.Atoi(w.s)
	if err != nil || n < 0 || n > 4096 {
		return 0, e.bad(w, "", "a number from 0 to 4096")
	}
	return n, nil
}

func (e *editor) dtype(key string, w word) error {
	known := slices.Concat(computes(), narrow())
	t := e.s.Tables
	d := strings.ToLower(w.s)
	if err := e.oneOf(word{d, w.at}, known); err != nil {
		return err
	}
	if d == "fp8" {
		d = "f8_e4m3"
	}
	if key == "dtype" && slices.Contains(computes(), d) {
		t.DType = placement.DType(d)
	} else {
		t.Stored = placement.DType(d)
	}
	return e.table(w, t)
}

// table makes the model anew.
func (e *editor) table(w word, t Tables) error {
	if e.opt.Table == nil {
		return e.bad(w, "", "no other table: the model's shapes are not known here")
	}
	m, batches, err := e.opt.Table(t)
	if err != nil {
		return fmt.Errorf("what-if %q: character %d: %w", e.text, w.at+1, err)
	}
	e.s.Problem.Model, e.s.Problem.Batches, e.s.Tables = m, batches, t
	return nil
}

func (e *editor) rate(w word) (float64, error) {
	v, _, err := cluster.ParseRate(w.s)
	if err == nil && v < 1 {
		err = errors.New("0 is no rate")
	}
	if err != nil {
		return 0, e.bad(w, "", "a rate such as 10gbps or 1.2GB/s: %v", err)
	}
	return v, nil
}

func (e *editor) size(w word) (placement.Bytes, error) {
	v, err := cluster.ParseSize(w.s)
	if err != nil {
		return 0, e.bad(w, "", "a size such as 24GB or 24GiB: %v", err)
	}
	return v, nil
}
