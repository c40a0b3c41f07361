// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/agent/calibration"
	"github.com/distorch/distorch/agent/catalog"
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/cmd/internal/assemble"
	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/cmd/internal/output"
)

// calibrationView is what was measured and where it is kept.
type calibrationView struct {
	Path   string `json:"path"`
	ID     string `json:"id"`
	Cached bool   `json:"cached"` // it was there already
	*calibration.Calibration
}

// calibrateFlags are what `distorch calibrate` can be told.
type calibrateFlags struct{ quick, force, cluster, refresh bool }

func newCalibrate(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "calibrate",
		Short: "Measure this machine and keep that for its agents",
		Long: `Measures this machine with small programs on the engine that agents use: matrix
products, attention, everything between them, and the expansion of fp8 weights,
for each compute dtype at five sizes of activations; then RAM and the disk. Each
rate is the median of several repetitions with half the distance from the 10th
to the 90th percentile. It needs no cluster, takes about a minute or two, and is
true only if nothing else computes meanwhile.

The result is kept in --data-dir for this very hardware, build, instruction set
and number of threads. An agent that starts with the same loads it and measures
nothing; one that finds none measures two sizes itself. What is kept is printed
and not measured again without --force.

With --cluster nothing is measured here: the links between the running nodes are
shown, with --refresh after each node has measured its own again, one by one.`,
		Args: arguments(0),
	}
	var f calibrateFlags
	flags := cmd.Flags()
	config.Flag(flags, "models", "models.dirs", "folders with checkpoints, whose disk is measured (default: the disk of --data-dir)")
	config.Flag(flags, "threads", "agent.threads", "threads that compute (default: one per core)")
	config.Flag(flags, "cpu-isa", "agent.cpu_isa", "instruction set: auto, avx512bf16, avx512, avx2 or generic")
	flags.BoolVar(&f.quick, "quick", false, "two sizes only, without RAM and disk: what an agent does at its start")
	flags.BoolVar(&f.force, "force", false, "measure even if this machine's calibration is kept")
	flags.BoolVar(&f.cluster, "cluster", false, "show the links between the nodes of the cluster instead")
	flags.BoolVar(&f.refresh, "refresh", false, "with --cluster: measure every link again first, two seconds each; refused while a node runs something")
	operatorFlags(cmd)
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case f.refresh && !f.cluster:
			return usage(errors.New("--refresh is for --cluster; --force measures this machine again"))
		case f.cluster && (f.quick || f.force):
			return usage(errors.New("--quick and --force are for this machine, --cluster measures nothing here"))
		case f.cluster:
			return a.calibrateLinks(cmd, f.refresh, *format)
		}
		v, err := a.calibrate(cmd, f)
		if err != nil {
			return err
		}
		if *format != output.Table {
			return output.Write(a.stdout, *format, v)
		}
		return v.write(a)
	}
	return cmd
}

// calibrate loads what is kept, or measures and keeps it.
func (a *app) calibrate(cmd *cobra.Command, f calibrateFlags) (*calibrationView, error) {
	cfg, log, err := a.load(cmd)
	if err != nil {
		return nil, err
	}
	set, err := isa.Parse(cfg.Agent.CPUISA)
	if err != nil {
		return nil, usage(fmt.Errorf("agent.%w", err))
	}
	e, err := native.New(native.Config{ISA: set, Threads: cfg.Agent.Threads})
	if err != nil {
		return nil, err
	}
	devices, err := e.Devices(cmd.Context())
	if err != nil {
		return nil, err
	}
	dir, id := assemble.Calibrations(cfg.DataDir), calibration.Of(devices[0], "native", version)
	if !f.force {
		c, err := dir.Load(id)
		if err != nil {
			log.Warn("kept calibration not used, measuring again", "error", err)
		}
		if c != nil && (f.quick || c.Extent == calibration.Full) {
			return &calibrationView{dir.Path(id), c.ID(), true, c}, nil
		}
	}
	m := measuring{engine: e, device: devices[0], progress: output.NewProgress(a.stderr)}
	defer m.progress.Done()
	c, err := m.run(cmd.Context(), id, cfg, f.quick)
	if err != nil {
		return nil, err
	}
	path, err := dir.Save(c)
	if err != nil {
		return nil, err
	}
	return &calibrationView{path, c.ID(), false, c}, nil
}

// measuring is one run of all programs.
type measuring struct {
	engine   engine.Engine
	device   engine.Device
	progress *output.Progress
}

func (m *measuring) run(ctx context.Context, id calibration.Identity, cfg *config.Config, quick bool) (*calibration.Calibration, error) {
	rates, err := m.rates(ctx, quick)
	if err != nil || quick {
		return calibration.New(id, calibration.Quick, rates, time.Now()), err
	}
	c := calibration.New(id, calibration.Full, rates, time.Now())
	m.progress.Step("memory and disk", 0, 2, "")
	ram, err := measure.RAM(ctx, m.device.Threads)
	if err != nil {
		return nil, err
	}
	c.Memory = calibration.Memory{
		All:  calibration.Rate{PerSecond: ram.All, Uncertainty: ram.AllUncertainty},
		Copy: calibration.Rate{PerSecond: ram.Copy, Uncertainty: ram.CopyUncertainty},
	}
	m.progress.Step("memory and disk", 1, 2, "")
	if c.Disk, err = disk(ctx, cfg); err != nil {
		return nil, err
	}
	m.progress.Step("memory and disk", 2, 2, "")
	return c, nil
}

// rates measures each dtype in one session.
func (m *measuring) rates(ctx context.Context, quick bool) (all [][]measure.Rates, err error) {
	s, err := m.engine.Open(ctx, m.device.ID)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for _, d := range m.device.DTypes {
		label, total, done := "measuring "+strings.ToLower(d.String()), int64(measure.Programs()), int64(0)
		var r []measure.Rates
		if quick {
			m.progress.Step(label, 0, 1, "")
			r, err = measure.Measure(ctx, s, d)
			total = 1
		} else {
			m.progress.Step(label, 0, total, "")
			r, err = measure.Curve(ctx, s, d, func() {
				done++
				m.progress.Step(label, done, total, "")
			})
		}
		if err != nil {
			return nil, err
		}
		m.progress.Step(label, total, total, "") // sizes that take too long are left out
		all = append(all, r)
	}
	return all, nil
}

// diskBytes is what is read of a checkpoint.
const diskBytes = 512 << 20

// disk reads the largest checkpoint, as an agent would choose it, or a file of
// its own in the data directory.
func disk(ctx context.Context, cfg *config.Config) (calibration.Disk, error) {
	entries, _, err := catalog.Scan(cfg.Models.Dirs)
	if err != nil {
		return calibration.Disk{}, err
	}
	if largest := catalog.Largest(entries); largest != nil {
		d, err := measure.File(ctx, largest.Path, diskBytes)
		return kept(filepath.Dir(largest.Path), d, err)
	}
	dir := string(assemble.Calibrations(cfg.DataDir))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return calibration.Disk{}, err
	}
	d, err := measure.Folder(ctx, dir)
	return kept(dir, d, err)
}

func kept(folder string, d measure.Disk, err error) (calibration.Disk, error) {
	if err != nil {
		return calibration.Disk{}, fmt.Errorf("measure the disk: %w", err)
	}
	if abs, err := filepath.Abs(folder); err == nil {
		folder = abs
	}
	return calibration.Disk{Folder: folder, Bytes: calibration.Rate{PerSecond: d.PerSecond, Uncertainty: d.Uncertainty}, Cold: d.Cold}, nil
}

func (v *calibrationView) write(a *app) error {
	p := &printer{w: a.stdout}
	id := v.Identity
	cpu := id.CPU
	if cpu == "" {
		cpu = id.Platform
	}
	p.line("%s: %d cores, %s; %s with %d threads of %s", cpu, id.Cores, output.Bytes(id.MemoryBytes), id.Device, id.Threads, id.ISA)
	var rows [][]string
	for _, r := range v.Rates {
		rows = append(rows, []string{
			strings.ToLower(r.DType), fmt.Sprint(r.Tokens), output.Count(float64(r.Elements), ""),
			rate(r.Linear, "FLOP"), rate(r.Attention, "FLOP"), rate(r.Elementwise, "B"), rate(r.Expand, "B"),
		})
	}
	p.table([]string{"DTYPE", "TOKENS", "ELEMENTS", "LINEAR", "ATTENTION", "ELEMENTWISE", "EXPAND"}, rows)
	if v.Extent == calibration.Full {
		p.line("memory: %s read and written by %d threads, %s copied by one", rate(v.Memory.All, "B"), id.Threads, rate(v.Memory.Copy, "B"))
		how := "warm, from the system's file cache"
		if v.Disk.Cold {
			how = "cold"
		}
		p.line("disk: %s, %s, in %s", rate(v.Disk.Bytes, "B"), how, v.Disk.Folder)
	}
	if worst := v.worst(); worst > noisy {
		p.line("repetitions differ by up to ±%.0f %%: something else computes on this machine; `distorch calibrate --force` measures again", 100*worst)
	}
	if v.Cached {
		p.line("measured %s, kept in %s", v.Measured.Local().Format(time.DateTime), v.Path)
		return p.err
	}
	p.line("calibration %s kept in %s", v.ID, v.Path)
	return p.err
}

// noisy is how far repetitions differ on a machine that does something else
// too.
const noisy = 0.25

// worst is the largest uncertainty of what a forecast rests on most.
func (v *calibrationView) worst() float64 {
	worst := 0.0
	for _, r := range v.Rates {
		worst = max(worst, r.Linear.Uncertainty, r.Attention.Uncertainty)
	}
	return worst
}

// rate is a speed with its uncertainty: "69.1 GFLOP/s ±2 %".
func rate(r calibration.Rate, unit string) string {
	return fmt.Sprintf("%s ±%.0f %%", output.Rate(r.PerSecond, unit), 100*r.Uncertainty)
}
