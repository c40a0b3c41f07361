// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package measure_test

import (
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/sim"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/model/tensor"
)

// TestCopies finds the rates that simulated devices were given, on devices that
// are larger and smaller than a long copy.
func TestCopies(t *testing.T) {
	const fast, slow = 4e8, 5e7
	e, err := sim.New(sim.Config{
		Devices: []sim.Device{
			{Name: "sim:0", Memory: 128 * tensor.MiB, H2D: fast, D2H: slow, Peer: fast},
			{Name: "sim:1", Memory: 6 * tensor.MiB, H2D: fast, D2H: fast, Peer: slow},
		},
		Host: engine.NewAccount(0, ""),
	})
	if err != nil {
		t.Fatal(err)
	}
	var sessions []engine.Session
	for _, id := range []engine.DeviceID{"sim:0", "sim:1"} {
		s, err := e.Open(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		sessions = append(sessions, s)
	}
	about := func(what string, got, want float64) {
		t.Helper()
		// A copy takes its time, or longer on a machine that has other things to do.
		if got > 1.1*want || got <= 0 {
			t.Errorf("%s: measured %.3g bytes/s, it is %.3g", what, got, want)
		}
	}
	for i, want := range []measure.Bus{{HostToDevice: fast, DeviceToHost: slow}, {HostToDevice: fast, DeviceToHost: fast}} {
		b, err := measure.Copies(t.Context(), sessions[i])
		if err != nil {
			t.Fatal(err)
		}
		about("from RAM", b.HostToDevice, want.HostToDevice)
		about("to RAM", b.DeviceToHost, want.DeviceToHost)
		if used, _, _ := sessions[i].Account(); used != 0 {
			t.Errorf("%v are still in use", used)
		}
	}
	rate, err := measure.Peer(t.Context(), sessions[0], sessions[1])
	if err != nil {
		t.Fatal(err)
	}
	about("from the other device", rate, slow)
}

// TestSmallDevice: a device without room for the larger programs is known by the
// smaller ones.
func TestSmallDevice(t *testing.T) {
	e, err := sim.New(sim.Config{Devices: []sim.Device{{Name: "sim:0", Memory: 12 * tensor.MB}}, Host: engine.NewAccount(0, "")})
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.Open(t.Context(), "sim:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	rates, err := measure.Measure(t.Context(), s, tensor.BF16)
	if err != nil || len(rates) != 1 || rates[0].Linear <= 0 {
		t.Errorf("%+v, %v", rates, err)
	}
	if used, _, _ := s.Account(); used != 0 {
		t.Errorf("%v are still in use", used)
	}
}
