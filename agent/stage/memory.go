// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// allocate takes everything that forwards need at the workload's dimensions.
func (st *Stage) allocate() error {
	scratch := tensor.Bytes(0)
	for _, p := range st.programs {
		scratch = max(scratch, p.Scratch())
	}
	in, err := st.inputLayout(st.cfg.Program)
	if err != nil {
		return err
	}
	out, err := st.outputLayout(st.cfg.Program)
	if err != nil {
		return err
	}
	if st.scratch, err = st.buffer(scratch); err != nil {
		return err
	}
	for i := range st.state {
		if st.state[i], err = st.buffer(stateBytes(st.cfg.Program)); err != nil {
			return err
		}
	}
	if st.travel, err = st.buffer(layoutOf(st.cfg.Program.Travel).Bytes); err != nil {
		return err
	}
	for range st.cfg.InFlight {
		a, err := st.hostBuffer(in.Bytes)
		if err != nil {
			return err
		}
		b, err := st.hostBuffer(out.Bytes)
		if err != nil {
			return err
		}
		st.Inputs, st.Outputs = append(st.Inputs, a), append(st.Outputs, b)
	}
	return st.allocateNear(in.Bytes, out.Bytes)
}

func (st *Stage) allocateNear(in, out tensor.Bytes) (err error) {
	if st.session.Device().Unified {
		return nil
	}
	st.near = &near{}
	if st.near.input, err = st.buffer(in); err != nil {
		return err
	}
	if st.near.output, err = st.buffer(out); err != nil || !st.cfg.Head {
		return err
	}
	st.near.conditioning, err = st.buffer(graph.ConditioningLayout(st.cfg.Program).Bytes)
	return err
}

// expander is a program that says what its session takes of the device to pack
// weights.
type expander interface {
	Expansion(weights []engine.Weight) tensor.Bytes
}

// streamed says whether a launch's weights come to the device for each use, when
// it rests so.
func (st *Stage) streamed(l *launch, r offload.Rest) bool {
	return len(l.weights) > 0 && (st.cfg.Stored || r.Kind != offload.Device)
}

// atRest is what a launch's weights take where they rest.
func (st *Stage) atRest(l *launch, r offload.Rest) tensor.Bytes {
	if st.cfg.Stored || r.Kind == offload.Disk {
		return l.stored
	}
	return l.packed
}

// slots is how many slots the ring has, with launches resting so.
func (st *Stage) slots(rests []offload.Rest) int {
	streamed, depth := 0, 0
	for i := range st.launches {
		if !st.streamed(&st.launches[i], rests[i]) {
			continue
		}
		streamed++
		if depth = max(depth, st.cfg.Slots); rests[i].Kind != offload.Device {
			depth = max(depth, st.cfg.Ring)
		}
	}
	return min(depth, streamed)
}

// stagingNeed is what bringing blocks to the device takes.
type stagingNeed struct {
	depth, bounces    int
	slot, raw, bounce tensor.Bytes // of each
}

func (st *Stage) stagingNeed(rests []offload.Rest) (n stagingNeed) {
	n.depth = st.slots(rests)
	for i := range st.launches {
		l, r := &st.launches[i], rests[i]
		if !st.streamed(l, r) {
			continue
		}
		n.slot = max(n.slot, l.packed)
		switch {
		case r.Kind == offload.Donor && st.cfg.Stored:
			n.raw = max(n.raw, l.stored)
		case r.Kind == offload.Remote || r.Kind == offload.Disk:
			n.bounce = max(n.bounce, st.atRest(l, r))
			n.bounces = max(n.depth, 2)
		}
	}
	return n
}

// needs is what the stage will allocate of each memory when its launches rest
// so: the larger of loading and running, one run at the workload's dimensions
// with its conditioning included.
func (st *Stage) needs(rests []offload.Rest) offload.Need {
	n := offload.Need{Donors: map[engine.DeviceID]tensor.Bytes{}}
	var scratch, expansion, device, host tensor.Bytes
	constants := map[string]tensor.Bytes{}
	quantised := tensor.Bytes(0)
	for i := range st.launches {
		l, r := &st.launches[i], rests[i]
		p := st.programs[l.Segment]
		scratch = max(scratch, p.Scratch())
		if x, ok := p.(expander); ok {
			expansion = max(expansion, x.Expansion(l.weights))
		}
		for _, id := range l.Segment.Constants {
			constants[l.Segment.Values[id].Name] = l.Segment.Values[id].Bytes
		}
		size := st.atRest(l, r)
		switch r.Kind {
		case offload.Device:
			device += size
		case offload.Donor:
			n.Donors[r.Donor] += size
		case offload.RAM:
			host += size
		}
		if r.Kind == offload.Disk && l.quantised() {
			quantised = max(quantised, l.file.bytes)
		}
	}
	raw, second := st.readBuffers(rests)
	read := raw + second
	s := st.stagingNeed(rests)
	device += tensor.Bytes(s.depth)*s.slot + s.raw
	host += tensor.Bytes(s.bounces)*s.bounce + quantised
	in, out, conditioning := st.regions()
	expanding := expansion // with the first pack: while loading, or not before a run
	if !st.cfg.Stored {
		device, expanding = device+expansion, 0
	}
	running := expanding + scratch + 2*stateBytes(st.cfg.Program) + layoutOf(st.cfg.Program.Travel).Bytes
	for _, b := range constants {
		running += b
	}
	regions := tensor.Bytes(st.cfg.InFlight) * (in + out)
	if st.cfg.Head {
		regions += conditioning
	}
	if st.session.Device().Unified {
		n.Device = device + host + max(read, running+regions)
		return n
	}
	running += in + out
	if st.cfg.Head {
		running += conditioning
	}
	n.Device, n.Host = device+running, host+max(read, regions)
	return n
}

// regions are the sizes of what arrives, leaves and conditions; Load has found
// that the layouts are there.
func (st *Stage) regions() (in, out, conditioning tensor.Bytes) {
	i, err := st.inputLayout(st.cfg.Program)
	o, err2 := st.outputLayout(st.cfg.Program)
	if err != nil || err2 != nil {
		return 0, 0, 0
	}
	return i.Bytes, o.Bytes, graph.ConditioningLayout(st.cfg.Program).Bytes
}

// Need is what the stage was predicted to allocate at most.
func (st *Stage) Need() offload.Need { return st.need }
