// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"fmt"
)

// checkLowRank wants x [...,K], strength [L], down [R,K] and t [...,R] or
// [...,R+L], with L ranks that add up to R.
func checkLowRank(ranks []int, in []typed, t typed, down Weight) error {
	x, strength := in[0], in[1]
	if err := firstError(kindIs(x, Compute), kindIs(t, Compute), kindIs(strength, F32), rank(strength, 1)); err != nil {
		return err
	}
	if len(x.shape) < 2 || len(down.Shape) != 2 || last(x.shape) != down.Shape[1] {
		return fmt.Errorf("%s %v does not multiply weight %s %v", x.name, x.shape, down.Name, down.Shape)
	}
	r, l := down.Shape[0], strength.shape[0]
	if int64(len(ranks)) != l {
		return fmt.Errorf("%d ranks for the %d strengths of %s", len(ranks), l, strength.name)
	}
	sum := int64(0)
	for _, n := range ranks {
		if n < 0 || int64(n) > r {
			return fmt.Errorf("rank %d of weight %s %v", n, down.Name, down.Shape)
		}
		sum += int64(n)
	}
	if sum != r {
		return fmt.Errorf("ranks add up to %d, weight %s has %d rows", sum, down.Name, r)
	}
	want := x.shape.Clone()
	want[len(want)-1] = r
	wider := want.Clone()
	wider[len(want)-1] = r + l
	if !t.shape.Equal(want) && !t.shape.Equal(wider) {
		return fmt.Errorf("%s is %v, must be %v or %v", t.name, t.shape, want, wider)
	}
	return nil
}

// checkLowRankAdd wants y [...,N], t [...,R], up [M,R] and columns First to
// First+M within N.
func checkLowRankAdd(first int64, in []typed, out typed, up Weight) error {
	y, t := in[0], in[1]
	if err := firstError(sameType(y, out), kindIs(y, Compute), kindIs(t, Compute)); err != nil {
		return err
	}
	if len(y.shape) < 2 || len(up.Shape) != 2 || len(t.shape) != len(y.shape) || last(t.shape) != up.Shape[1] ||
		!t.shape[:len(t.shape)-1].Equal(y.shape[:len(y.shape)-1]) {
		return fmt.Errorf("%s %v, with weight %s %v, does not add to %s %v", t.name, t.shape, up.Name, up.Shape, y.name, y.shape)
	}
	if m := up.Shape[0]; first < 0 || first > last(y.shape) || m > last(y.shape)-first {
		return fmt.Errorf("columns %d to %d of %s %v", first, first+m, y.name, y.shape)
	}
	return nil
}

// countLowRank counts a product's work and, where it adds to y, y's traffic.
func (s *Segment) countLowRank(st *Step, c *Cost) error {
	w := s.Weights[st.Weights[0]]
	x := s.Values[st.In[0]]
	if st.Op == OpLowRankAdd {
		x = s.Values[st.In[1]]
	}
	n, err := product(2, x.Shape, w.Shape[:1])
	if err != nil {
		return err
	}
	if err := addTo(&c.LinearFLOPs, n); err != nil {
		return err
	}
	if st.Op == OpLowRankAdd {
		y := s.Values[st.In[0]]
		if n, err = product(2*int64(y.DType.Size()), y.Shape[:len(y.Shape)-1], w.Shape[:1]); err != nil {
			return err
		}
		if err := addTo(&c.MovedBytes, n); err != nil {
			return err
		}
	}
	return s.countFewRows(x, w, c)
}
