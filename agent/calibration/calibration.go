// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package calibration keeps what was measured of a machine, so that an agent
// that starts again need not measure: one file for each hardware identity, and
// one beside it for what forwards have taught since.
//
// Imported by the agent and by the calibrate command. It must not import the
// wire or placement. Files are replaced as a whole; whoever writes last wins.
package calibration

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"

	"github.com/distorch/distorch/agent/device"
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/model/tensor"
)

// Version is that of the files. It changes with their form and with what the
// measured programs are.
const Version = 1

// Identity is what rates depend on. A file is used on the very machine alone
// that it names, by the same build and with the same threads.
type Identity struct {
	Platform    string `json:"platform"` // linux/amd64
	CPU         string `json:"cpu"`
	Stepping    string `json:"stepping"`     // with the microcode, where the system tells it
	Cores       int    `json:"cores"`        // that the system shows
	MemoryBytes uint64 `json:"memory_bytes"` // of the machine, in whole 256 MiB
	Device      string `json:"device"`       // cpu
	UUID        string `json:"uuid"`
	Threads     int    `json:"threads"`
	ISA         string `json:"isa"`
	Engine      string `json:"engine"`   // native
	Numerics    string `json:"numerics"` // classes, which name the engine's version
	Build       string `json:"build"`    // of distorch
}

// memoryUnit hides the pages that a kernel keeps for itself.
const memoryUnit = 256 << 20

// Of is this machine's identity with a device of an engine.
func Of(d engine.Device, engineName, build string) Identity {
	id := Identity{
		Platform: runtime.GOOS + "/" + runtime.GOARCH, CPU: device.CPUModel(), Stepping: device.CPUStepping(), Cores: runtime.NumCPU(),
		Device: string(d.ID), UUID: d.UUID, Threads: d.Threads, ISA: d.ISA, Engine: engineName, Build: build,
	}
	for _, t := range d.DTypes {
		if id.Numerics != "" {
			id.Numerics += " "
		}
		id.Numerics += d.Class(t)
	}
	if ram, err := device.RAM(); err == nil {
		id.MemoryBytes = (uint64(ram.Total) + memoryUnit/2) / memoryUnit * memoryUnit
	}
	return id
}

// Key names the identity's files: 16 hex digits.
func (id Identity) Key() string {
	b, err := json.Marshal(id)
	if err != nil {
		return "" // strings and numbers alone
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// Extent is how much was measured.
type Extent string

// The extents.
const (
	Quick Extent = "quick" // two sizes of activations for each dtype
	Full  Extent = "full"  // the curve, and memory and disk
)

// Calibration is what was measured of one device. Rates are in FLOP/s and
// bytes/s; uncertainties are relative, half of the 10th to the 90th percentile
// of the repetitions.
type Calibration struct {
	Version  int       `json:"version"`
	Identity Identity  `json:"identity"`
	Measured time.Time `json:"measured"`
	Extent   Extent    `json:"extent"`
	Rates    []Rates   `json:"rates"` // by dtype, then size
	Memory   Memory    `json:"memory"`
	Disk     Disk      `json:"disk"`
}

// Rate is a speed per second.
type Rate struct {
	PerSecond   float64 `json:"per_second"`
	Uncertainty float64 `json:"uncertainty"`
}

// Rates of one compute dtype at one size of activations.
type Rates struct {
	DType       string `json:"dtype"` // F32, BF16
	Tokens      int64  `json:"tokens"`
	Elements    int64  `json:"elements"` // tokens times hidden size
	Linear      Rate   `json:"linear_flops"`
	Attention   Rate   `json:"attention_flops"`
	Elementwise Rate   `json:"elementwise_bytes"`
	Expand      Rate   `json:"expand_bytes"`
}

// Memory is how fast bytes move in RAM; zero where it was not measured.
type Memory struct {
	All  Rate `json:"all_threads_bytes"` // read and written
	Copy Rate `json:"one_copy_bytes"`    // copied by one thread
}

// Disk is how fast a checkpoint's folder is read; zero where it was not
// measured.
type Disk struct {
	Folder string `json:"folder,omitempty"`
	Bytes  Rate   `json:"bytes"`
	Cold   bool   `json:"cold"` // past the system's file cache
}

// New puts measured rates into the form that is kept.
func New(id Identity, extent Extent, rates [][]measure.Rates, now time.Time) *Calibration {
	c := &Calibration{Version: Version, Identity: id, Measured: now.UTC().Truncate(time.Second), Extent: extent}
	for _, of := range rates {
		for _, r := range of {
			u := r.Uncertainty
			c.Rates = append(c.Rates, Rates{
				DType: r.DType.String(), Tokens: r.Tokens, Elements: r.Elements,
				Linear: Rate{r.Linear, u.Linear}, Attention: Rate{r.Attention, u.Attention},
				Elementwise: Rate{r.Elementwise, u.Elementwise}, Expand: Rate{r.Expand, u.Expand},
			})
		}
	}
	return c
}

// ID tells one measuring from another: 12 hex digits of its content.
func (c *Calibration) ID() string {
	b, err := json.Marshal(c)
	if err != nil {
		return "" // it was checked when it was made
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:6])
}

// Of are the rates of one dtype, from the smallest size on.
func (c *Calibration) Of(d tensor.DType) []Rates {
	var out []Rates
	for _, r := range c.Rates {
		if r.DType == d.String() {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b Rates) int { return int(min(max(a.Elements-b.Elements, -1), 1)) })
	return out
}

// Check says what is wrong with a calibration.
func (c *Calibration) Check() error {
	switch {
	case c.Version != Version:
		return fmt.Errorf("it is of version %d, this build writes %d", c.Version, Version)
	case c.Extent != Quick && c.Extent != Full:
		return fmt.Errorf("extent %.40q is unknown", c.Extent)
	case len(c.Rates) == 0 || len(c.Rates) > maxRates:
		return fmt.Errorf("it has %d rates, want 1 to %d", len(c.Rates), maxRates)
	}
	for _, r := range c.Rates {
		if _, err := tensor.ParseDType(r.DType); err != nil {
			return err
		}
		if r.Tokens < 0 || r.Elements <= 0 {
			return fmt.Errorf("%s has a size of %d elements in %d tokens", r.DType, r.Elements, r.Tokens)
		}
		for _, x := range []Rate{r.Linear, r.Attention, r.Elementwise, r.Expand} {
			if !(x.PerSecond > 0) || x.check() != nil {
				return fmt.Errorf("%s at %d elements has the rate %g per second", r.DType, r.Elements, x.PerSecond)
			}
		}
	}
	return errors.Join(c.Memory.All.check(), c.Memory.Copy.check(), c.Disk.Bytes.check())
}

// maxRates bounds what a file may hold.
const maxRates = 256

func (r Rate) check() error {
	if !(r.PerSecond >= 0) || math.IsInf(r.PerSecond, 0) || !(r.Uncertainty >= 0) || math.IsInf(r.Uncertainty, 0) {
		return fmt.Errorf("%g ± %g per second is no rate", r.PerSecond, r.Uncertainty)
	}
	return nil
}

// Change is how many times longer work takes by the rates of b than by those
// of a, for one dtype at the measured size that is nearest: the mean of matrix
// products and attention, geometric. 1 where they share no size.
func Change(a, b *Calibration, d tensor.DType, elements float64) float64 {
	old, now := nearest(a.Of(d), b.Of(d), elements)
	if old == nil {
		return 1
	}
	return math.Sqrt(old.Linear.PerSecond / now.Linear.PerSecond * old.Attention.PerSecond / now.Attention.PerSecond)
}

// nearest is the size that both have and that is the fewest times larger or
// smaller.
func nearest(a, b []Rates, elements float64) (x, y *Rates) {
	best := math.Inf(1)
	for i := range a {
		for k := range b {
			far := math.Abs(math.Log(float64(a[i].Elements) / max(elements, 1)))
			if a[i].Elements == b[k].Elements && far < best {
				best, x, y = far, &a[i], &b[k]
			}
		}
	}
	return x, y
}

// Renew takes newer rates of some sizes. Those that were not measured again
// change as the largest that was: a device beside whose stages the large
// programs have no room is measured at its small sizes.
func (c *Calibration) Renew(newer *Calibration) *Calibration {
	out := *c
	out.Measured, out.Rates = newer.Measured, slices.Clone(c.Rates)
	for i := range out.Rates {
		r := &out.Rates[i]
		d, err := tensor.ParseDType(r.DType)
		if err != nil {
			continue
		}
		old, now := nearest(c.Of(d), newer.Of(d), float64(r.Elements))
		switch {
		case old == nil:
		case old.Elements == r.Elements:
			*r = *now
		default:
			scale := func(to *Rate, old, now Rate) { to.PerSecond *= now.PerSecond / old.PerSecond }
			scale(&r.Linear, old.Linear, now.Linear)
			scale(&r.Attention, old.Attention, now.Attention)
			scale(&r.Elementwise, old.Elementwise, now.Elementwise)
			scale(&r.Expand, old.Expand, now.Expand)
		}
	}
	return &out
}
