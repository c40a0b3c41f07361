// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import "math"

func (s *solver) several(one *candidate) (*candidate, float64, error) { return nil, math.Inf(1), nil }

const maxDistinct = 64

func (f *field) distinct() int                            { return 0 }
func (f *field) bucketed(m mode) ([]part, float64, error) { return f.local(m) }
func (f *field) lends() bool                              { return false }
func (f *field) remotely(m mode, list []part, bound float64) ([]part, float64, error) {
	return list, bound, nil
}
