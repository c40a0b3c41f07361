// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package allocation

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestDefault runs testdata/default: a string in, the assignment, the reasons and the warnings out, or the refusal. Refresh
// with -rewrite.
//
//	assign [devices=(…)] [blocks=(…)] [fixed=…]
//	STRING
func TestDefault(t *testing.T) {
	datadriven.RunTest(t, "testdata/default", func(t *testing.T, d *datadriven.TestData) string {
		devices, blocks := home(t)
		for _, arg := range d.CmdArgs {
			value := strings.Join(arg.Vals, ",")
			switch arg.Key {
			case "devices":
				devices = devicesOf(t, value)
			case "blocks":
				blocks = Blocks{Runs: blocksOf(t, value).Runs, Fixed: blocks.Fixed}
			case "fixed":
				fixed, err := ParseBytes(value)
				if err != nil {
					t.Fatal(err)
				}
				blocks.Fixed = fixed
			}
		}
		e, err := Parse(d.Input, Default)
		var r *Result
		if err == nil {
			r, err = Assign(e, devices, blocks)
		}
		var wrong *SyntaxError
		var short *FitError
		switch {
		case errors.As(err, &wrong):
			if _, err := Parse(wrong.Nearest, Default); err != nil {
				t.Errorf("%s: the nearest string %q: %v", d.Input, wrong.Nearest, err)
			}
			return fmt.Sprintf("%s\n%s\n", wrong, wrong.Picture())
		case errors.As(err, &short):
			if short.Nearest != "" {
				checkFits(t, short.Nearest, Default, devices, blocks)
			}
			return short.Error() + "\n"
		case err != nil:
			return err.Error() + "\n"
		}
		return show(r)
	})
}

func show(r *Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s; computes on %s\n", Show(r.Assignment), r.Compute)
	for _, u := range r.Devices {
		if u.Named {
			fmt.Fprintf(&b, "%s [%s]: %s of %s: %s\n", u.ID, u.Asked, u.Given, u.Limit, u.Why)
		}
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	return b.String()
}

// checkFits assigns a string and checks that nothing is overfilled, that every block is placed once, and, in the default
// mode, that every device has one range.
func checkFits(t interface{ Errorf(string, ...any) }, text string, mode Mode, devices []Device, blocks Blocks) {
	e, err := Parse(text, mode)
	if err != nil {
		t.Errorf("%q: %v", text, err)
		return
	}
	r, err := Assign(e, devices, blocks)
	if err != nil {
		t.Errorf("%q: %v", text, err)
		return
	}
	if u, over := r.Over(); over {
		t.Errorf("%q: %s holds %s of %s", text, u.ID, u.Given, u.Free)
	}
	layout, at := r.Layout(), 0
	for _, s := range layout.Spans {
		if s.First != at || s.Blocks < 1 {
			t.Errorf("%q: span %+v at block %d", text, s, at)
		}
		at += s.Blocks
	}
	if at != r.Blocks || mode == Default && !layout.Contiguous {
		t.Errorf("%q: %d of %d blocks, contiguous %v", text, at, r.Blocks, layout.Contiguous)
	}
}
