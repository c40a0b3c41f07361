// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/distorch/distorch/model/tensor"
)

// idle is whether a server holds nothing for anybody.
func (r *rig) idle() bool {
	r.server.mu.Lock()
	forwards := r.server.forwards
	r.server.mu.Unlock()
	r.server.memory.mu.Lock()
	defer r.server.memory.mu.Unlock()
	return forwards == 0 && r.server.memory.all == 0
}

// TestSlowClients: those that send nothing, stop in the middle, or leave hold no
// memory and no slot for longer than Stall; those that go on slowly are served
// as long as they are not too slow.
func TestSlowClients(t *testing.T) {
	const stall = 100 * time.Millisecond
	r := newRig(t, func(c *Config) { c.Limits.Stall, c.Limits.BytesPerSecond = stall, 100 })
	whole := pack(t, map[string]string{"run": "r"}, usualInputs()...)

	stalled := r.begin("POST", forwardPath, len(whole), whole[:50])
	until(t, "memory for its body", func() bool { return !r.idle() })
	if a := r.answer(stalled, "POST", forwardPath); a.status != http.StatusRequestTimeout || a.failure(t).Message != fmt.Sprintf("50 of the body's %d bytes came in time; send it again", len(whole)) {
		t.Errorf("stalled: %d %s", a.status, a.body)
	}
	until(t, "its memory to be free", r.idle)

	gone := r.begin("POST", forwardPath, len(whole), whole[:50])
	until(t, "memory for its body", func() bool { return !r.idle() })
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, "the memory of one that left to be free", r.idle)

	// A part in every half of Stall.
	slow := r.begin("POST", forwardPath, len(whole), nil)
	tick := time.NewTicker(stall / 4)
	defer tick.Stop()
	for at := 0; at < len(whole); at += 200 {
		if _, err := slow.Write(whole[at:min(at+200, len(whole))]); err != nil {
			t.Fatal(err)
		}
		<-tick.C
	}
	if a := r.answer(slow, "POST", forwardPath); a.status != 200 {
		t.Errorf("slow: %d %s", a.status, a.body)
	}
	if len(r.forwards) != 1 {
		t.Errorf("%d forwards", len(r.forwards))
	}
}

// TestClientThatNeverReads: an answer larger than the buffers between is cut off
// after Stall.
func TestClientThatNeverReads(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Stall = 200 * time.Millisecond })
	in := usualInputs()
	in[0].shape = tensor.Shape{1, 4, 1024, 1024} // 16 MiB
	whole := pack(t, map[string]string{"run": "r"}, in...)
	conn := r.begin("POST", forwardPath, len(whole), nil)
	if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(whole); err != nil {
		t.Fatal(err)
	}
	until(t, "the forward to be done", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.forwards) == 1
	})
	until(t, "its memory to be free", r.idle)
}

// TestLimits of connections, memory, and forwards of one client.
func TestLimits(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Connections = 8 })
	if a := r.do("all", "GET", "/v1", nil); a.status != 200 { // and keeps one of the two
		t.Fatal(a.status)
	}
	r.dial()
	until(t, "two connections", func() bool {
		r.server.conns.mu.Lock()
		defer r.server.conns.mu.Unlock()
		return r.server.conns.all == 2
	})
	third := r.dial()
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("a third connection of this address was served")
	}

	b := newBudget(100)
	one, err := b.take("a", 50)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.take("a", 1); asError(err).Code != CodeBusy {
		t.Errorf("more than half for one client: %v", err)
	}
	if _, err := b.take("b", 50); err != nil {
		t.Error(err)
	}
	if _, err := b.take("c", 1); asError(err).Code != CodeBusy {
		t.Errorf("more than all: %v", err)
	}
	one()
	one()
	if b.all != 50 {
		t.Errorf("%d bytes", b.all)
	}
}
