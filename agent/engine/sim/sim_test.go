// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package sim_test

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/enginetest"
	"github.com/distorch/distorch/agent/engine/multi"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/sim"
	"github.com/distorch/distorch/model/tensor"
)

// machine is a CPU with two simulated devices.
func machine(t *testing.T, host *engine.Account) *multi.Engine {
	t.Helper()
	cpu, err := native.New(native.Config{ISA: isa.Generic, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	s, err := sim.New(sim.Config{ISA: isa.Generic, Host: host, Devices: []sim.Device{
		{Name: "sim:0", Memory: 8 << 20, H2D: 1 << 30, D2H: 1 << 29, Peer: 1 << 30},
		{Name: "sim:1", Memory: 4 << 20, H2D: 1 << 30, D2H: 1 << 29, Peer: 1 << 28, Threads: 2},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return multi.New(cpu, s)
}

func open(t *testing.T, e engine.Engine, id engine.DeviceID) engine.Session {
	t.Helper()
	s, err := e.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestDevicesAreLabelled(t *testing.T) {
	e := machine(t, engine.NewAccount(0, ""))
	all, err := e.Devices(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatal(all, err)
	}
	if all[0].Simulated || !all[0].Unified || all[0].Kind != "cpu" {
		t.Errorf("the CPU: %+v", all[0])
	}
	for i, d := range all[1:] {
		if !d.Simulated || d.Unified || d.Kind != "sim" || !strings.Contains(d.Model, "simulated") || d.Class(tensor.BF16) != "native/1/bf16" || d.Threads != i+1 {
			t.Errorf("%+v", d)
		}
		if s := open(t, e, d.ID); s.Device().ID != d.ID || !s.Device().Simulated || s.Device().Memory != d.Memory {
			t.Errorf("session of %s: %+v", d.ID, s.Device())
		}
	}
	if _, err := e.Open(t.Context(), "cuda:0"); err == nil || !strings.Contains(err.Error(), "cuda:0") || !strings.Contains(err.Error(), "sim:1") {
		t.Errorf("a device that is not there: %v", err)
	}
}

func TestWrongDevicesAreRefused(t *testing.T) {
	host := engine.NewAccount(0, "")
	good := sim.Device{Name: "sim:0", Memory: 1 << 20}
	for name, tc := range map[string]struct {
		devices []sim.Device
		says    string
	}{
		"no name":  {[]sim.Device{{Memory: 1}}, "sim:0"},
		"the CPU":  {[]sim.Device{{Name: "cpu", Memory: 1}}, "cpu"},
		"twice":    {[]sim.Device{good, good}, "twice"},
		"no arena": {[]sim.Device{{Name: "sim:3"}}, "memory"},
		"rate":     {[]sim.Device{{Name: "sim:3", Memory: 1, Peer: -1}}, "rates"},
	} {
		if _, err := sim.New(sim.Config{ISA: isa.Generic, Host: host, Devices: tc.devices}); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := sim.New(sim.Config{ISA: isa.Generic, Devices: []sim.Device{good}}); err == nil {
		t.Error("no account of the host: accepted")
	}
}

// An arena has a capacity, and is not the host's memory.
func TestArena(t *testing.T) {
	host := engine.NewAccount(1<<20, "use less")
	s := open(t, machine(t, host), "sim:0")
	a, err := s.Buffer(6 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if a.Host() != nil || a.Bytes() != 6<<20 {
		t.Errorf("%v, the host sees %d bytes", a.Bytes(), len(a.Host()))
	}
	if _, err := s.Buffer(3 << 20); !errors.Is(err, engine.ErrNoMemory) || !strings.Contains(err.Error(), "sim:0") {
		t.Errorf("beyond the arena: %v", err)
	}
	h, err := s.HostBuffer(1 << 20)
	if err != nil || len(h.Host()) != 1<<20 {
		t.Fatal(err)
	}
	if _, err := s.HostBuffer(1); !errors.Is(err, engine.ErrNoMemory) || !strings.Contains(err.Error(), "use less") {
		t.Errorf("beyond the host: %v", err)
	}
	used, peak, limit := s.Account()
	hostUsed, _, hostLimit := s.HostAccount()
	if used != 6<<20 || peak != 6<<20 || limit != 8<<20 || hostUsed != 1<<20 || hostLimit != 1<<20 {
		t.Errorf("device %v, %v, %v; host %v of %v", used, peak, limit, hostUsed, hostLimit)
	}
	a.Free()
	h.Free()
	if used, _, _ := s.Account(); used != 0 {
		t.Errorf("%v in use", used)
	}
}

// Copies take their time on the link that they go over, and bring the bytes.
func TestCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := machine(t, engine.NewAccount(0, ""))
		a, b := open(t, e, "sim:0"), open(t, e, "sim:1")
		buffer := func(take func(tensor.Bytes) (engine.Buffer, error)) engine.Buffer {
			x, err := take(4 << 20)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(x.Free)
			return x
		}
		from, on, donor, to := buffer(a.HostBuffer), buffer(a.Buffer), buffer(b.Buffer), buffer(a.HostBuffer)
		for i := range from.Host() {
			from.Host()[i] = byte(i*7 + i>>9)
		}
		const second = float64(time.Second)
		for _, step := range []struct {
			name string
			move func() engine.Event
			by   engine.Session
			want float64
		}{
			{"host to donor", func() engine.Event { return b.Fetch(donor, 0, from, 0, 4<<20) }, b, 4. / 1024},
			{"donor to device", func() engine.Event { return a.Fetch(on, 0, donor, 0, 4<<20) }, a, 4. / 256},
			{"within the device", func() engine.Event { return a.Copy(on, 0, on, 1<<20, 1<<20) }, a, 0},
			{"device to host", func() engine.Event { return a.Copy(to, 0, on, 0, 4<<20) }, a, 4. / 512},
		} {
			<-time.After(10 * time.Millisecond) // the link is idle
			began := time.Now()
			if err := step.by.Wait(t.Context(), step.move()); err != nil {
				t.Fatal(step.name, err)
			}
			if took, want := time.Since(began), time.Duration(step.want*second); (took - want).Abs() > time.Microsecond {
				t.Errorf("%s took %v, want %v", step.name, took, want)
			}
		}
		copy(from.Host()[:1<<20], from.Host()[1<<20:2<<20])
		if string(from.Host()) != string(to.Host()) {
			t.Error("other bytes came back")
		}
		if err := a.Wait(t.Context(), a.Fetch(on, 1, from, 0, 4<<20)); err == nil || !strings.Contains(err.Error(), "sim:0") {
			t.Errorf("a copy beyond the buffer: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		last := a.Fetch(on, 0, from, 0, 4<<20)
		if err := a.Wait(ctx, last); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an impatient wait: %v", err)
		}
		if err := a.Wait(t.Context(), last); err != nil { // it still uses the buffers
			t.Error(err)
		}
	})
}

// The contract of sessions holds for a device whose memory the host does not see.
func TestSessions(t *testing.T) {
	enginetest.Sessions(t, func(t *testing.T, limit tensor.Bytes) engine.Session {
		e, err := sim.New(sim.Config{ISA: isa.Generic, Host: engine.NewAccount(0, ""), Devices: []sim.Device{{Name: "sim:0", Memory: cmp.Or(limit, 1<<30), Threads: 1}}})
		if err != nil {
			t.Fatal(err)
		}
		s, err := e.Open(t.Context(), "sim:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	})
}
