// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/distorch/distorch/agent/calibration"
	"github.com/distorch/distorch/agent/catalog"
	"github.com/distorch/distorch/agent/device"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/node"
)

// overhead is what the process takes beside the account: the Go runtime, the
// connections' buffers and the kernels' scratch.
const overhead = 96 * tensor.MB

// calibrate finds the device's rates: those that were kept for this very
// machine, or by running its programs for a few seconds.
func (a *Agent) calibrate(ctx context.Context) (*calibration.Calibration, error) {
	id := calibration.Of(a.device, a.cfg.EngineName, a.cfg.Version)
	c, err := a.cfg.Calibrations.Load(id)
	if err != nil {
		a.log.Warn("calibration not used, measuring again", "error", err)
	}
	if c != nil {
		a.log.Info("calibration loaded", "path", a.cfg.Calibrations.Path(id), "extent", c.Extent, "measured", c.Measured)
		return c, nil
	}
	rates, err := a.rates(ctx)
	if err != nil {
		return nil, err
	}
	c = calibration.New(id, calibration.Quick, rates, time.Now())
	a.keep(c)
	return c, nil
}

// keep writes a calibration; an agent that cannot works without.
func (a *Agent) keep(c *calibration.Calibration) {
	path, err := a.cfg.Calibrations.Save(c)
	switch {
	case err != nil:
		a.log.Warn("calibration not kept", "error", err)
	case path != "":
		a.log.Info("calibration kept", "path", path)
	}
}

// rates measures in a session of its own: the stages' account starts at zero.
func (a *Agent) rates(ctx context.Context) (_ [][]measure.Rates, err error) {
	s, err := a.cfg.Engine.Open(ctx, a.cfg.Device)
	if err != nil {
		return nil, fmt.Errorf("open %s to measure it: %w", a.cfg.Device, err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var out [][]measure.Rates
	for _, t := range a.device.DTypes {
		r, err := a.cfg.Measure(ctx, s, t)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// describe is the node's record.
func (a *Agent) describe(ctx context.Context, c *calibration.Calibration) *pb.NodeRecord {
	self := a.cfg.Credentials.Self()
	d := &pb.Device{
		Name: string(a.device.ID), Uuid: a.device.UUID, Model: a.device.Model,
		MemoryTotalBytes: uint64(a.cfg.Memory + a.cfg.Reserve), MemoryAllocatableBytes: uint64(a.cfg.Memory),
		ReserveBytes: uint64(a.cfg.Reserve), Threads: uint32(a.device.Threads), Isa: a.device.ISA, OverheadBytes: uint64(overhead),
		MemoryBytesPerSecond: c.Memory.All.PerSecond, HostCopyBytesPerSecond: c.Memory.Copy.PerSecond,
	}
	if m := device.CPUModel(); m != "" && a.device.ID == "cpu" {
		d.Model = m
	}
	for _, t := range a.device.DTypes {
		d.NumericsClasses = append(d.NumericsClasses, a.device.Class(t))
	}
	rated(d, c)
	load := a.loadRate(ctx, c)
	return &pb.NodeRecord{
		Id: a.ID(), Name: self.Name, Incarnation: a.node.Incarnation(), Address: a.Address(), Devices: []*pb.Device{d},
		Labels: a.cfg.Labels, Version: a.cfg.Version, ProtocolMin: node.ProtocolMin, ProtocolMax: node.ProtocolMax,
		OpSet: graph.OpSet, Platform: runtime.GOOS + "/" + runtime.GOARCH, Engine: a.cfg.EngineName, Pid: int64(os.Getpid()),
		LoadBytesPerSecond: load.PerSecond, LoadCold: load.Cold, DonateBytes: uint64(a.cfg.Donate),
	}
}

// rated gives a device the rates of a calibration.
func rated(d *pb.Device, c *calibration.Calibration) {
	d.Rates, d.Calibration = nil, c.ID()
	for _, r := range c.Rates {
		t, err := tensor.ParseDType(r.DType)
		if err != nil {
			continue // it was checked
		}
		d.Rates = append(d.Rates, &pb.Rates{
			Dtype: lower(t), Elements: uint64(r.Elements), Tokens: uint64(r.Tokens),
			LinearFlopsPerSecond: r.Linear.PerSecond, AttentionFlopsPerSecond: r.Attention.PerSecond,
			ElementwiseBytesPerSecond: r.Elementwise.PerSecond, ExpandBytesPerSecond: r.Expand.PerSecond,
			Uncertainty: &pb.RateUncertainty{
				Linear: r.Linear.Uncertainty, Attention: r.Attention.Uncertainty,
				Elementwise: r.Elementwise.Uncertainty, Expand: r.Expand.Uncertainty,
			},
		})
	}
}

// probeBytes is what loadRate reads of a checkpoint.
const probeBytes = 64 << 20

// loadRate is the calibration's where that is of the largest checkpoint's
// folder; otherwise the beginning of that file is read. 0 without checkpoints.
func (a *Agent) loadRate(ctx context.Context, c *calibration.Calibration) measure.Disk {
	largest := catalog.Largest(a.entries)
	if largest == nil {
		return measure.Disk{}
	}
	folder, err := filepath.Abs(filepath.Dir(largest.Path))
	if k := c.Disk; err == nil && k.Bytes.PerSecond > 0 && k.Folder == folder {
		return measure.Disk{PerSecond: k.Bytes.PerSecond, Uncertainty: k.Bytes.Uncertainty, Cold: k.Cold}
	}
	d, err := measure.File(ctx, largest.Path, probeBytes)
	if err != nil {
		a.log.Warn("rate of loading not measured", "path", largest.Path, "error", err)
	}
	return d
}
