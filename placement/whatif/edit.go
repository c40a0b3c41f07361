// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package whatif changes a problem by short texts and compares the plans: "add b/cuda:0=rtx4090", "link a-b=10gbps",
// "stored=f8_e4m3".
//
// The command line imports it. It is pure: it must not import os, net, context, sync, a logger or a clock. Devices by
// name and tables at other workloads come through functions of the caller's.
//
// # Grammar
//
//	change = edit { ";" edit }                   all of one row
//	edit   = "add node" NAME ":" item { "," item }
//	       | "add" NODE "/" DEVICE "=" KIND
//	       | "remove" NODE [ "/" DEVICE ]
//	       | "link" NODE "-" NODE "=" RATE       both directions
//	       | ( "nic" | "disk" ) NODE "=" RATE
//	       | "ram" NODE "=" SIZE
//	       | "memory" NODE "/" DEVICE "=" SIZE
//	       | "exclude" NODE
//	       | KEY "=" VALUE
//	item   = [ COUNT "x" ] KIND | ( "nic" | "disk" ) "=" RATE | "ram" "=" SIZE | "latency" "=" SECONDS
//	KEY    = "dtype" | "stored" | "workload" | "objective" | "max-nodes" | "max-pipelines" | "max-degree" | "reserve" | "fit" | "numerics"
//
// RATE, SIZE and SECONDS are written as in a cluster file. "dtype" of eight bits or less is what weights are stored in, as
// nothing computes in it.
package whatif

import (
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/internal/edits"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/cluster"
)

// Error says where a change cannot be read, what was expected there, and what is near.
type Error struct {
	Text    string // the whole change
	Offset  int    // bytes before the fault
	Want    string
	Nearest string
}

func (e *Error) Error() string {
	near := ""
	if e.Nearest != "" {
		near = fmt.Sprintf(", did you mean %q?", e.Nearest)
	}
	return fmt.Sprintf("what-if %q: character %d: want %s%s", e.Text, e.Offset+1, e.Want, near)
}

// Tables says at what the model's block table was made.
type Tables struct {
	Workload string
	DType    placement.DType // of the computation
	Stored   placement.DType // of the weights
	Sizes    []int           // of [placement.Problem.Batches]
}

// Scenario is a problem and what its tables were made at.
type Scenario struct {
	Problem placement.Problem
	Tables  Tables
}

// Options are the caller's knowledge. A nil function makes the edits that need it errors.
type Options struct {
	// Device is a device by a catalogue's name, without an id. Its error names what is near.
	Device func(name string) (placement.Device, error)
	// Table makes the block tables at another workload, dtype or storage.
	Table func(t Tables) (placement.Model, []placement.Batch, error)
	// Objective reads an objective as the command line writes it.
	Objective func(text string) (placement.Objective, error)
}

const (
	maxText  = 4096
	maxEdits = 64
)

// editor applies one change.
type editor struct {
	text string
	opt  Options
	s    Scenario
}

// Apply makes one change. The scenario given is left as it was. Errors are *[Error], or those of the options' functions.
func Apply(s Scenario, text string, opt Options) (Scenario, error) {
	if len(text) > maxText {
		return s, &Error{Text: text[:40] + "...", Want: fmt.Sprintf("at most %d characters", maxText)}
	}
	e := &editor{text: text, opt: opt, s: s}
	p := &e.s.Problem
	p.Nodes, p.Links, p.Constraints.Exclude = slices.Clone(p.Nodes), slices.Clone(p.Links), slices.Clone(p.Constraints.Exclude)
	for i := range p.Nodes {
		p.Nodes[i].Devices = slices.Clone(p.Nodes[i].Devices)
	}
	at := 0
	for n, part := range strings.Split(text, ";") {
		if n == maxEdits {
			return s, &Error{Text: text, Offset: at, Want: fmt.Sprintf("at most %d edits", maxEdits)}
		}
		if err := e.edit(word{part, at}.trim()); err != nil {
			return s, err
		}
		at += len(part) + 1
	}
	return e.s, nil
}

// word is a piece of the text with its place.
type word struct {
	s  string
	at int
}

func (w word) trim() word {
	left := strings.TrimLeft(w.s, " \t")
	return word{strings.TrimRight(left, " \t"), w.at + len(w.s) - len(left)}
}

// cut is the piece before and behind the first sep.
func (w word) cut(sep string) (before, after word, ok bool) {
	i := strings.Index(w.s, sep)
	if i < 0 {
		return w, word{"", w.at + len(w.s)}, false
	}
	return word{w.s[:i], w.at}.trim(), word{w.s[i+len(sep):], w.at + i + len(sep)}.trim(), true
}

func (e *editor) bad(w word, nearest, want string, args ...any) error {
	return &Error{Text: e.text, Offset: w.at, Want: fmt.Sprintf(want, args...), Nearest: nearest}
}

func verbs() []string {
	return []string{"add", "disk", "exclude", "link", "memory", "nic", "ram", "remove"}
}

func keys() []string {
	return []string{"dtype", "fit", "max-degree", "max-nodes", "max-pipelines", "numerics", "objective", "reserve", "stored", "workload"}
}

func (e *editor) edit(w word) error {
	verb, rest, spaced := w.cut(" ")
	key, value, assigned := w.cut("=")
	switch {
	case w.s == "":
		return e.bad(w, "", "an edit such as \"nic a=10gbps\"")
	case slices.Contains(keys(), key.s) && assigned:
		return e.set(key.s, value)
	case slices.Contains(verbs(), verb.s) && spaced:
		return e.do(verb.s, rest)
	case slices.Contains(verbs(), verb.s):
		return e.bad(rest, "", "a node behind %q", verb.s)
	case slices.Contains(keys(), w.s):
		return e.bad(rest, "", "\"=\" and a value behind %q", w.s)
	}
	first := verb
	if assigned && len(key.s) < len(verb.s) || !spaced {
		first = key
	}
	return e.bad(first, edits.Nearest(first.s, slices.Concat(verbs(), keys())), "one of %s, or a setting %s", strings.Join(verbs(), ", "), strings.Join(keys(), ", "))
}

func (e *editor) do(verb string, w word) error {
	switch verb {
	case "add":
		if name, rest, ok := w.cut(" "); ok && name.s == "node" {
			return e.addNode(rest)
		}
		return e.addDevice(w)
	case "remove":
		return e.remove(w)
	case "exclude":
		i, err := e.node(w)
		if err != nil {
			return err
		}
		e.s.Problem.Constraints.Exclude = append(e.s.Problem.Constraints.Exclude, string(e.s.Problem.Nodes[i].ID))
		return nil
	}
	left, right, ok := w.cut("=")
	if !ok {
		return e.bad(right, "", "\"=\" and a value")
	}
	switch verb {
	case "link":
		return e.link(left, right)
	case "memory":
		n, d, err := e.device(left)
		if err != nil {
			return err
		}
		size, err := e.size(right)
		e.s.Problem.Nodes[n].Devices[d].Allocatable = size
		return err
	default:
		i, err := e.node(left)
		if err != nil {
			return err
		}
		return e.figure(&e.s.Problem.Nodes[i], verb, right)
	}
}

// figure sets the nic, disk, ram or latency of a node.
func (e *editor) figure(n *placement.Node, key string, value word) (err error) {
	switch key {
	case "nic":
		n.Link.BytesPerSecond, err = e.rate(value)
		n.Link.Source = placement.SourceGiven
	case "disk":
		n.Disk, err = e.rate(value)
	case "ram":
		n.RAM, err = e.size(value)
	case "latency":
		if n.Link.Latency, err = cluster.ParseSeconds(value.s); err != nil {
			err = e.bad(value, "", "a time such as 100us: %v", err)
		}
	}
	return err
}

// names are the labels of all nodes.
func (e *editor) names() []string {
	var out []string
	for _, n := range e.s.Problem.Nodes {
		out = append(out, n.Label())
	}
	return out
}

func (e *editor) find(name string) int {
	by := func(match func(placement.Node) bool) int { return slices.IndexFunc(e.s.Problem.Nodes, match) }
	if i := by(func(n placement.Node) bool { return string(n.ID) == name }); i >= 0 {
		return i
	}
	return by(func(n placement.Node) bool { return n.Name != "" && n.Name == name })
}

func (e *editor) node(w word) (int, error) {
	i := e.find(w.s)
	if i < 0 {
		return -1, e.bad(w, edits.Nearest(w.s, e.names()), "a node of the cluster (%s)", some(e.names()))
	}
	return i, nil
}

// some lists the first eight names.
func some(names []string) string {
	const named = 8
	if len(names) > named {
		return strings.Join(names[:named], ", ") + fmt.Sprintf(", %d more", len(names)-named)
	}
	return strings.Join(names, ", ")
}

// device finds NODE/DEVICE.
func (e *editor) device(w word) (node, device int, err error) {
	name, id, ok := w.cut("/")
	if !ok {
		return 0, 0, e.bad(id, "", "\"/\" and a device behind the node")
	}
	if node, err = e.node(name); err != nil {
		return 0, 0, err
	}
	var ids []string
	for i, d := range e.s.Problem.Nodes[node].Devices {
		if d.ID == id.s {
			return node, i, nil
		}
		ids = append(ids, d.ID)
	}
	return 0, 0, e.bad(id, edits.Nearest(id.s, ids), "a device of node %s (%s)", name.s, some(ids))
}
