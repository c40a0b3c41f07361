// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"math"
	"strings"

	"github.com/distorch/distorch/model/planes"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement"
)

// compress has blocks of a stage rest compressed in other nodes' RAM, where their
// link is so slow that they are there sooner, and takes what that saves off the
// stage's forecast. It gives how much sooner a forward ends, in seconds.
func (w *world) compress(s *Stage, dtype tensor.DType) (sooner float64) {
	n := w.node[s.Node]
	saved := 0.0
	for i := range s.Tiers {
		t := &s.Tiers[i]
		o := w.node[t.Node]
		if t.Kind != placement.TierRemote || o == nil || n.Link == nil || o.Link == nil {
			continue
		}
		x := planes.Transfer{
			Bytes: tensor.Bytes(min(t.Bytes, math.MaxInt64)), Ratio: planes.Ratio(dtype),
			Link: min(n.Link.BytesPerSecond, o.Link.BytesPerSecond), Decode: n.Decode,
		}
		if t.Compressed = x.Pays(); t.Compressed {
			saved += x.Plain() - x.Compressed()
		}
	}
	f := &s.Forecast
	saved = min(saved, f.Stream)
	sooner = min(saved, f.Stall)
	f.Stream -= saved
	f.Stall -= sooner
	return sooner
}

// hasten takes what compression saves off a plan's forecast. The certificate is
// of plans without it, so its bound goes down with the plan.
func (p *Plan) hasten(sooner float64) {
	f := &p.Forecast
	f.Step -= sooner
	f.Pair -= sooner
	f.Expand = max(f.Expand-sooner, 0)
	p.Certificate.LowerBound -= sooner
}

// atRest is the dtype that most bytes of a stage's blocks have.
func atRest(s *Stage, in *inputs, compute string) tensor.DType {
	name := compute
	if s.Stored {
		name = string(in.table.stored.StoredDType)
	}
	d, err := tensor.ParseDType(strings.ToUpper(name))
	if err != nil {
		return tensor.Invalid
	}
	return d
}
