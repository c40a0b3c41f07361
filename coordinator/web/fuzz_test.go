// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"testing"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/tensor"
)

// FuzzForward: no body makes the parser panic, or take memory that the body does
// not pay for.
func FuzzForward(f *testing.F) {
	f.Add(pack(f, map[string]string{"run": "r", "step": "1", "branch": "1", "deadline_ms": "5", "dims": `{"ref_method":1}`}, usualInputs()...))
	f.Add(pack(f, map[string]string{"run": "r", "loras": `[{"digest":"x","strength":1}]`}, usualInputs()[:2]...))
	f.Add([]byte("\x10\x00\x00\x00\x00\x00\x00\x00{}              "))
	wide := tiny
	wide.Concat = 4
	g := wide.Build(arch.Options{})
	limits := Limits{}.filled()
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parseForward(body, limits)
		if err != nil {
			if c := asError(err).Code; c != CodeBadRequest && c != CodeTooLarge {
				t.Errorf("code %s: %v", c, err)
			}
			return
		}
		total := 0
		for _, p := range append(r.step32, r.conditioningList()...) {
			total += len(p.Data)
		}
		if total > 2*len(body) {
			t.Errorf("%d bytes of a body of %d", total, len(body))
		}
		r.split(g)
		_, _ = r.words(g, map[string]tensor.Shape{"context": {1, 5, 8}})
	})
}
