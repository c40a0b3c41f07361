// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package serve

import "testing"

func TestIdle(t *testing.T) {
	var s Server
	idle, changed := s.Idle()
	if !idle {
		t.Fatal("nothing is open and it is not idle")
	}
	release := s.Occupy()
	select {
	case <-changed:
	default:
		t.Error("nobody was told of a run that began")
	}
	idle, changed = s.Idle()
	if idle {
		t.Error("idle with a run open")
	}
	release()
	select {
	case <-changed:
	default:
		t.Error("nobody was told of a run that ended")
	}
	if idle, _ = s.Idle(); !idle {
		t.Error("not idle when all has ended")
	}
}

// A computation is alone if none was there when it began and none began before
// it ended.
func TestAlone(t *testing.T) {
	var u usage
	if a := u.work(nil); !a() {
		t.Error("one computation is not alone")
	}
	a := u.work(nil)
	b := u.work(nil)
	if b() || a() {
		t.Error("two at a time are alone")
	}
	a = u.work(nil)
	b = u.work(nil)
	b()
	c := u.work(nil)
	if a() || c() {
		t.Error("one that met two others is alone, or a later one")
	}
	if a := u.work(nil); !a() {
		t.Error("nothing is left and it is not alone")
	}
}
