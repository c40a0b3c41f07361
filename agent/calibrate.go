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

// kernels is what the native kernels' scratch takes of a simulated device.
const kernels = tensor.MiB

// measureDevices finds the rates of every device, one after another. A device
// with memory of its own on which that fails is left out, so that the node serves
// with the others.
func (a *Agent) measureDevices(ctx context.Context) error {
	for _, measure := range []func(context.Context, *unit) error{a.measureUnit, a.measureCopies} {
		var fit []*unit
		for _, u := range a.units {
			err := measure(ctx, u)
			if err != nil && (u.device.Unified || ctx.Err() != nil) {
				return err
			}
			if err != nil {
				a.log.Warn("device not used: its rates cannot be measured", "device", string(u.device.ID), "reason", err)
				_ = u.session.Close() // nothing was done on it
				continue
			}
			fit = append(fit, u)
		}
		if a.units = fit; len(fit) == 0 {
			return errors.New("no device is left to use: the rates of none could be measured")
		}
	}
	if a.cfg.Host != nil {
		a.cfg.Host.Restart() // stages begin here
	}
	return nil
}

// measureUnit finds what a device computes at, and what was learned of it before.
func (a *Agent) measureUnit(ctx context.Context, u *unit) error {
	c, err := a.calibrate(ctx, u)
	if err != nil {
		return err
	}
	lessons, err := a.cfg.Calibrations.Lessons(c)
	if err != nil {
		a.log.Warn("what was learned before is not used", "device", string(u.device.ID), "error", err)
	}
	u.calibration = c
	u.learner = newLearner(fmt.Sprintf("node %s, %s", a.cfg.Credentials.Self().Name, u.device.ID), a.log, c, lessons)
	return nil
}

// measureCopies finds how fast bytes come to a device of its own memory and leave
// it, in sessions of their own.
func (a *Agent) measureCopies(ctx context.Context, u *unit) (err error) {
	if u.device.Unified {
		return nil
	}
	own, err := a.cfg.Engine.Open(ctx, u.device.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, own.Close()) }()
	if u.bus, err = measure.Copies(ctx, own); err != nil {
		return fmt.Errorf("measure copies to and from %s: %w", u.device.ID, err)
	}
	for _, o := range a.units {
		if o == u || o.device.Unified {
			continue
		}
		other, err := a.cfg.Engine.Open(ctx, o.device.ID)
		if err != nil {
			return err
		}
		rate, err := measure.Peer(ctx, own, other)
		if err = errors.Join(err, other.Close()); err != nil {
			a.log.Info("devices do not copy to each other", "from", string(o.device.ID), "to", string(u.device.ID), "reason", err)
			continue
		}
		u.peers[o.device.ID] = rate
	}
	return nil
}

// calibrate finds a device's rates: those that were kept for this very
// machine, or by running its programs for a few seconds.
func (a *Agent) calibrate(ctx context.Context, u *unit) (*calibration.Calibration, error) {
	id := calibration.Of(u.device, a.cfg.EngineName, a.cfg.Version)
	c, err := a.cfg.Calibrations.Load(id)
	if err != nil {
		a.log.Warn("calibration not used, measuring again", "error", err)
	}
	if c != nil {
		a.log.Info("calibration loaded", "device", string(u.device.ID), "path", a.cfg.Calibrations.Path(id), "extent", c.Extent, "measured", c.Measured)
		return c, nil
	}
	rates, err := a.rates(ctx, u)
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
func (a *Agent) rates(ctx context.Context, u *unit) (_ [][]measure.Rates, err error) {
	s, err := a.cfg.Engine.Open(ctx, u.device.ID)
	if err != nil {
		return nil, fmt.Errorf("open %s to measure it: %w", u.device.ID, err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var out [][]measure.Rates
	for _, t := range u.device.DTypes {
		r, err := a.cfg.Measure(ctx, s, t)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// describe is the node's record.
func (a *Agent) describe(ctx context.Context) *pb.NodeRecord {
	self := a.cfg.Credentials.Self()
	load := a.loadRate(ctx, a.host().calibration)
	r := &pb.NodeRecord{
		Id: a.ID(), Name: self.Name, Incarnation: a.node.Incarnation(), Address: a.Address(),
		Labels: a.cfg.Labels, Version: a.cfg.Version, ProtocolMin: node.ProtocolMin, ProtocolMax: node.ProtocolMax,
		OpSet: graph.OpSet, Platform: runtime.GOOS + "/" + runtime.GOARCH, Engine: a.cfg.EngineName, Pid: int64(os.Getpid()),
		LoadBytesPerSecond: load.PerSecond, LoadCold: load.Cold, DonateBytes: uint64(a.cfg.Donate),
		HostMemoryBytes: uint64(max(0, a.cfg.Memory-overhead)), DiskBytesPerSecond: load.PerSecond,
	}
	if rate, err := measure.Decode(); err == nil {
		r.DecodeBytesPerSecond = rate
	}
	for _, u := range a.units {
		r.Devices = append(r.Devices, a.describeDevice(u))
	}
	return r
}

// describeDevice is a device's part of the record.
func (a *Agent) describeDevice(u *unit) *pb.Device {
	c := u.learner.latest()
	d := &pb.Device{
		Name: string(u.device.ID), Uuid: u.device.UUID, Model: u.device.Model, Kind: u.device.Kind,
		Unified: u.device.Unified, Simulated: u.device.Simulated, Overlaps: !u.device.Unified,
		MemoryTotalBytes: uint64(u.total), MemoryAllocatableBytes: uint64(u.total - u.reserve),
		ReserveBytes: uint64(u.reserve), Threads: uint32(u.device.Threads), Isa: u.device.ISA,
		MemoryBytesPerSecond: c.Memory.All.PerSecond, HostCopyBytesPerSecond: c.Memory.Copy.PerSecond,
		HostToDeviceBytesPerSecond: u.bus.HostToDevice, DeviceToHostBytesPerSecond: u.bus.DeviceToHost,
		Feedback: u.learner.told(),
	}
	switch {
	case u.device.Unified:
		d.OverheadBytes = uint64(overhead)
	case u.device.Simulated:
		d.OverheadBytes = uint64(kernels)
	}
	if m := device.CPUModel(); m != "" && u.device.ID == "cpu" {
		d.Model = m
	}
	for _, t := range u.device.DTypes {
		d.NumericsClasses = append(d.NumericsClasses, u.device.Class(t))
	}
	for _, o := range a.units {
		if rate := u.peers[o.device.ID]; rate > 0 {
			d.Peers = append(d.Peers, &pb.DevicePeer{Device: string(o.device.ID), BytesPerSecond: rate})
		}
	}
	rated(d, c)
	return d
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
