// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package cluster reads and writes cluster files: the nodes, links and groups
// that a plan is made for, as YAML that people write by hand or that
// `distorch nodes -o cluster` writes from a running cluster.
//
// The command line imports it. It is pure like placement: it must not import os,
// net, context, sync, a logger or a clock.
//
// One table of fields (fields.go) says what a file may hold. The reader follows
// it, and the JSON schema and the reference in docs are made of it, so that the
// three cannot differ.
package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/placement"
)

// Limits of a file.
const (
	MaxFile   = 4 << 20 // bytes
	maxNodes  = 1024
	maxOnNode = 64 // devices
	maxLinks  = maxNodes * 64
	maxGroups = maxNodes
	maxPoints = 64     // of one curve
	maxText   = 253    // bytes of a name
	maxVisits = 400000 // YAML values looked at, those behind aliases each time
	maxShown  = 20     // problems in one error
	maxKept   = 10000  // problems, to sort them
)

// Cluster is what a plan is made for. The live inventory is one too.
type Cluster struct {
	Nodes  []placement.Node
	Links  []placement.PeerLink
	Groups []placement.Group
}

// Problem is one thing wrong with a file and the way out.
type Problem struct {
	File         string
	Line, Column int // from 1; Line 0 when it is the file as a whole
	Text         string
}

func (p Problem) String() string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %s", p.File, p.Text)
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Text)
}

// Error is all that is wrong with a file, from top to bottom.
type Error struct {
	Problems []Problem
	More     int // problems that are not listed
}

func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Problems)+1)
	for _, p := range e.Problems {
		lines = append(lines, p.String())
	}
	if e.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more problems", e.More))
	}
	return strings.Join(lines, "\n")
}

// Parse reads a cluster file. name stands before each problem; the error is an
// *[Error]. Nodes come sorted by id, links by their ends, groups by kind and
// name, rates by dtype and tokens.
func Parse(name string, data []byte) (Cluster, error) {
	r := &reader{file: name}
	root := r.load(data)
	var c Cluster
	if root != nil {
		if top := r.object(root, fileTable()); top != nil {
			c = r.cluster(top)
		}
	}
	if err := r.failed(); err != nil {
		return Cluster{}, err
	}
	return c, nil
}

// sorted is a copy in the order that Parse gives and with nothing left out that
// Parse fills in.
func (c Cluster) sorted() Cluster {
	out := Cluster{Nodes: slices.Clone(c.Nodes), Links: slices.Clone(c.Links), Groups: slices.Clone(c.Groups)}
	source := func(s *placement.Source) {
		if *s == "" {
			*s = placement.SourceMeasured
		}
	}
	for i := range out.Nodes {
		n := &out.Nodes[i]
		if n.Name == "" {
			n.Name = string(n.ID)
		}
		source(&n.Link.Source)
		n.Devices = slices.Clone(n.Devices)
		for j := range n.Devices {
			d := &n.Devices[j]
			source(&d.Source)
			d.Rates = slices.Clone(d.Rates)
			sortRates(d.Rates)
		}
	}
	slices.SortStableFunc(out.Nodes, func(a, b placement.Node) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortStableFunc(out.Links, func(a, b placement.PeerLink) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	for i := range out.Groups {
		out.Groups[i].Nodes = slices.Sorted(slices.Values(out.Groups[i].Nodes))
	}
	slices.SortStableFunc(out.Groups, func(a, b placement.Group) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func sortRates(rates []placement.Rate) {
	slices.SortStableFunc(rates, func(a, b placement.Rate) int {
		return cmp.Or(cmp.Compare(a.DType, b.DType), cmp.Compare(a.Tokens, b.Tokens))
	})
}
