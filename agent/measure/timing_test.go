// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSummary(t *testing.T) {
	for _, c := range []struct {
		name        string
		took        []float64
		want        timing
		uncertainty float64
	}{
		{"one", []float64{2}, timing{2, 2, 2}, 0},
		{"even", []float64{1, 1, 1, 1}, timing{1, 1, 1}, 0},
		{"eleven", []float64{11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, timing{6, 2, 10}, (3 - 0.6) / 2},
		{"an outlier in the last tenth", []float64{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1000}, timing{1, 1, 1}, 0},
	} {
		if got := summary(c.took); got != c.want || math.Abs(got.uncertainty()-c.uncertainty) > 1e-12 {
			t.Errorf("%s: %+v, uncertainty %g", c.name, got, got.uncertainty())
		}
	}
}

func TestRepeat(t *testing.T) {
	n := 0
	if _, err := repeat(t.Context(), bound{rounds: 3, most: 10, each: time.Hour}, func() error { n++; return nil }); err != nil || n != 10 {
		t.Errorf("%d executions, %v", n, err)
	}
	n = 0
	if _, err := repeat(t.Context(), bound{rounds: 3, most: 10}, func() error { n++; return nil }); err != nil || n != 3 {
		t.Errorf("%d executions, %v", n, err)
	}
	broken := errors.New("broken")
	if _, err := repeat(t.Context(), brief(), func() error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := repeat(ctx, brief(), func() error { cancel(broken); return nil }); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestRAM(t *testing.T) {
	m, err := RAM(t.Context(), 2)
	if err != nil || m.All < 1e7 || m.Copy < 1e7 || m.AllUncertainty < 0 || m.CopyUncertainty < 0 {
		t.Errorf("%+v, %v", m, err)
	}
	t.Logf("%+v", m)
}

func TestDisk(t *testing.T) {
	dir := t.TempDir()
	d, err := Folder(t.Context(), dir)
	if err != nil || d.PerSecond < 1e5 || d.Uncertainty < 0 {
		t.Errorf("%+v, %v", d, err)
	}
	t.Logf("%+v", d)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	small := filepath.Join(dir, "small")
	if err := os.WriteFile(small, []byte("weights"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err := File(t.Context(), small, 1<<30); err != nil || d.PerSecond <= 0 {
		t.Errorf("a file of seven bytes: %+v, %v", d, err)
	}
	if err := os.Truncate(small, 0); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{small, filepath.Join(dir, "none"), dir} {
		if _, err := File(t.Context(), path, 1<<30); err == nil {
			t.Errorf("%s has a rate", path)
		}
	}
	if _, err := Folder(t.Context(), filepath.Join(dir, "none")); err == nil {
		t.Error("a folder that is not there has a rate")
	}
}
