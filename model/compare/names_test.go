// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestOrder(t *testing.T) {
	want := []string{"a", "a1", "a01b", "a1b", "a2", "a010", "a10", "b", "step-9.latent", "step-10.latent"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, Order)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestOrderIsTotal: of two names exactly one comes first, and three agree.
func TestOrderIsTotal(t *testing.T) {
	name := rapid.StringMatching(`[a01.]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := name.Draw(t, "a"), name.Draw(t, "b"), name.Draw(t, "c")
		if Order(a, b) != -Order(b, a) || (Order(a, b) == 0) != (a == b) {
			t.Fatalf("%q and %q: %d and %d", a, b, Order(a, b), Order(b, a))
		}
		if Order(a, b) < 0 && Order(b, c) < 0 && Order(a, c) >= 0 {
			t.Fatalf("%q < %q < %q, but the first is not before the last", a, b, c)
		}
	})
}

func TestStep(t *testing.T) {
	for name, want := range map[string]int{
		"step.3": 3, "cfg1.step.0": 0, "step-00012.latent": 12, "STEP_7": 7, "step5": 5, "steps/step 4": 4,
		"latent_tensor": -1, "footstep.3": -1, "step": -1, "ComfyUI_00001_.latent": -1, "step.99999999999": -1, "timestep.3": -1,
	} {
		got, ok := Step(name)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d, want %d", name, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	both, onlyA, onlyB := Names([]string{"x10", "x9", "p"}, []string{"q", "x9", "x10"})
	if diff := cmp.Diff([][]string{{"x9", "x10"}, {"p"}, {"q"}}, [][]string{both, onlyA, onlyB}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
