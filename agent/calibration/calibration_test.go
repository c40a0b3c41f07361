// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package calibration

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/model/tensor"
)

func machine(threads int) Identity {
	return Of(engine.Device{
		ID: "cpu", UUID: "cpu", Threads: threads, ISA: "avx2", DTypes: []tensor.DType{tensor.F32, tensor.BF16},
		Class: func(d tensor.DType) string { return "native/1/" + strings.ToLower(d.String()) },
	}, "native", "test")
}

// measured has the given speed at small sizes and twice of it at each larger.
func measured(id Identity, extent Extent, speed float64, sizes ...int64) *Calibration {
	var all [][]measure.Rates
	for _, d := range []tensor.DType{tensor.F32, tensor.BF16} {
		var rates []measure.Rates
		for i, n := range sizes {
			v := speed * math.Exp2(float64(i))
			rates = append(rates, measure.Rates{DType: d, Tokens: 8, Elements: n, Linear: v, Attention: v, Elementwise: v, Expand: v, Uncertainty: measure.Uncertainty{Linear: 0.03}})
		}
		all = append(all, rates)
	}
	return New(id, extent, all, time.Unix(1_700_000_000, 5))
}

func TestKept(t *testing.T) {
	dir, id := Dir(filepath.Join(t.TempDir(), "calibration")), machine(2)
	if c, err := dir.Load(id); c != nil || err != nil {
		t.Fatalf("nothing was kept: %v, %v", c, err)
	}
	c := measured(id, Full, 1e9, 100, 400)
	path, err := dir.Save(c)
	if err != nil {
		t.Fatal(err)
	}
	back, err := dir.Load(id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, back); diff != "" || back.ID() != c.ID() {
		t.Errorf("%s (-saved +loaded):\n%s", path, diff)
	}
	if other, err := dir.Load(machine(3)); other != nil || err != nil {
		t.Errorf("another number of threads has %v, %v", other, err)
	}
	lessons := []Lesson{{DType: "BF16", Elements: 400, Ratio: 1.3, Samples: 12, Base: 1.3, Again: true}}
	if err := dir.SaveLessons(c, lessons); err != nil {
		t.Fatal(err)
	}
	got, err := dir.Lessons(c)
	if diff := cmp.Diff(lessons, got); diff != "" || err != nil {
		t.Errorf("%v (-saved +loaded):\n%s", err, diff)
	}
	if got, err := dir.Lessons(measured(id, Full, 2e9, 100, 400)); got != nil || err != nil {
		t.Errorf("lessons of other rates: %v, %v", got, err)
	}
	if left, err := os.ReadDir(string(dir)); err != nil || len(left) != 2 {
		t.Errorf("files: %v, %v", left, err)
	}
	var none Dir
	if p, err := none.Save(c); p != "" || err != nil {
		t.Errorf("no folder: %q, %v", p, err)
	}
}

func TestUnusable(t *testing.T) {
	dir, id := Dir(t.TempDir()), machine(2)
	good, err := json.Marshal(measured(id, Quick, 1e9, 100))
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) string {
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("%s is not in %s", old, good)
		}
		return strings.Replace(string(good), old, new, 1)
	}
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "it is damaged"},
		{"cut", string(good[:len(good)/2]), "it is damaged"},
		{"of a later form", `{"version":2,"rates":{"new":"form"}}`, "it is of version 2, this build writes 1"},
		{"a key of no meaning", replace(`"extent"`, `"extend"`), `unknown field "extend"`},
		{"another machine", replace(`"isa":"avx2"`, `"isa":"avx512"`), "is of another machine, build or number of threads"},
		{"no rate", replace(`"linear_flops":{"per_second":1000000000`, `"linear_flops":{"per_second":0`), "F32 at 100 elements has the rate 0 per second"},
		{"a negative rate", replace(`"attention_flops":{"per_second":1000000000`, `"attention_flops":{"per_second":-1`), "has the rate -1 per second"},
		{"a rate beyond numbers", replace(`"attention_flops":{"per_second":1000000000`, `"attention_flops":{"per_second":1e999`), "it is damaged"},
		{"no dtype", replace(`"F32"`, `"F33"`), "F33"},
		{"no extent", replace(`"quick"`, `"half"`), `extent "half" is unknown`},
		{"too large", string(good) + strings.Repeat(" ", maxFile), "is larger than 1048576 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(dir.Path(id), []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := dir.Load(id)
			if got != nil || err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir.Path(id)) {
				t.Errorf("%v, %v; want an error with %q and the file's name", got, err, c.want)
			}
		})
	}
	if _, err := dir.Save(&Calibration{Version: Version, Identity: id, Extent: Quick}); err == nil {
		t.Error("a calibration without rates was kept")
	}
}

func TestChange(t *testing.T) {
	id := machine(2)
	a, b := measured(id, Full, 1e9, 100, 400, 1600), measured(id, Quick, 5e8, 100, 400)
	for _, n := range []float64{0, 1, 100, 1e9} {
		if got := Change(a, b, tensor.BF16, n); math.Abs(got-2) > 1e-12 {
			t.Errorf("half the speed takes %g times as long at %g elements", got, n)
		}
	}
	if got := Change(a, measured(id, Quick, 1, 7), tensor.F32, 100); got != 1 {
		t.Errorf("without a common size the change is %g", got)
	}
}

func TestRenew(t *testing.T) {
	id := machine(2)
	a, b := measured(id, Full, 1e9, 100, 400, 1600), measured(id, Quick, 5e8, 100, 400)
	a.Disk = Disk{Folder: "models", Bytes: Rate{PerSecond: 1e9}, Cold: true}
	b.Measured = b.Measured.Add(time.Hour)
	c := a.Renew(b)
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	want := []float64{5e8, 1e9, 2e9} // the third was not measured: half of 4e9
	for i, r := range c.Of(tensor.BF16) {
		for _, v := range []Rate{r.Linear, r.Attention, r.Elementwise, r.Expand} {
			if v.PerSecond != want[i] {
				t.Errorf("at %d elements %g, want %g", r.Elements, v.PerSecond, want[i])
			}
		}
	}
	if c.Extent != Full || c.Disk != a.Disk || !c.Measured.Equal(b.Measured) || c.ID() == a.ID() || a.Rates[0].Linear.PerSecond != 1e9 {
		t.Errorf("renewed: %+v", c)
	}
}

// FuzzParse: whatever is read, a calibration that is accepted can be kept.
func FuzzParse(f *testing.F) {
	good, err := json.Marshal(measured(machine(2), Quick, 1e9, 100))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"rates":[{"dtype":"F32"}]}`))
	f.Add([]byte(`{"version":1,"calibration":"","lessons":[{"dtype":"BF16","ratio":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := Parse(b); err == nil {
			again, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			if back, err := Parse(again); err != nil || back.ID() != c.ID() {
				t.Fatalf("%v, %v", back, err)
			}
		}
		if l, err := parseLessons(b); err == nil {
			for _, x := range l.Lessons {
				if f := x.State().Factor(); !(f > 0) || f > 10 {
					t.Fatalf("factor %g of %+v", f, x)
				}
			}
		}
	})
}
