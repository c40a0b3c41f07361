// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/distorch/distorch/agent/engine"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// The waits between tries to open a device that was lost.
const (
	reviveFirst = time.Second
	reviveMost  = time.Minute
)

// lose notes that a session's device is gone, if the error says so. It does not
// wait: revive does the rest.
func (a *Agent) lose(name string, err error) {
	if !errors.Is(err, engine.ErrLost) {
		return
	}
	u, unknown := a.unit(name)
	if unknown != nil {
		return
	}
	u.mu.Lock()
	already := u.lost != nil
	if !already {
		u.lost = err
	}
	u.mu.Unlock()
	if already {
		return
	}
	a.log.Error("device lost", "device", name, "error", err)
	a.lookAgain()
}

// lookAgain has stages freed that cannot go on.
func (a *Agent) lookAgain() {
	select {
	case a.losses <- struct{}{}:
	default: // revive looks at all devices
	}
}

// gone says why a plan's stages of this node cannot go on; nil if they can.
func (a *Agent) gone(p *pb.Plan) error {
	if err := a.claims.lost(p); err != nil {
		return err
	}
	for _, i := range mine(p, a.ID(), a.node.Incarnation()) {
		names := []string{p.Stages[i].Device}
		for _, t := range p.Stages[i].Tiers {
			if t.Kind == pb.BlockTier_DONOR {
				names = append(names, t.Device)
			}
		}
		for _, name := range names {
			if u, err := a.unit(name); err == nil {
				if _, err := u.open(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// revive tells the cluster of devices that are lost, has their stages freed and
// opens them again when that works.
func (a *Agent) revive(ctx context.Context, wake func()) error {
	wait := reviveFirst
	var again <-chan time.Time
	for {
		select {
		case <-a.losses:
			wait = reviveFirst
		case <-again:
			wait = min(2*wait, reviveMost)
		case <-ctx.Done():
			return nil
		}
		a.publishLost(ctx)
		wake()
		again = nil
		if left := a.reopen(ctx); left > 0 {
			again = time.After(wait)
		} else {
			a.publishLost(ctx)
			wake()
		}
	}
}

// reopen tries every lost device and says how many are left.
func (a *Agent) reopen(ctx context.Context) (left int) {
	for _, u := range a.units {
		u.mu.Lock()
		lost, old := u.lost, u.session
		u.mu.Unlock()
		if lost == nil {
			continue
		}
		if a.serve.Uses(old) {
			left++ // its stages are being freed
			continue
		}
		s, err := a.cfg.Engine.Open(ctx, u.device.ID)
		if err != nil {
			left++
			continue
		}
		_ = old.Close() // it was lost
		u.mu.Lock()
		u.session, u.lost = s, nil
		u.mu.Unlock()
		a.log.Info("device is back", "device", string(u.device.ID))
	}
	return left
}

// publishLost writes which devices the node has now.
func (a *Agent) publishLost(ctx context.Context) {
	a.publish(ctx, func(r *pb.NodeRecord) {
		r.Lost = nil
		for _, u := range a.units {
			name := string(u.device.ID)
			at := slices.IndexFunc(r.Devices, func(d *pb.Device) bool { return d.Name == name })
			_, err := u.open()
			switch {
			case err == nil && at < 0:
				r.Devices = append(r.Devices, a.describeDevice(u))
			case err != nil:
				r.Lost = append(r.Lost, &pb.LostDevice{Name: name, Reason: u.reason()})
				if at >= 0 {
					r.Devices = slices.Delete(r.Devices, at, at+1)
				}
			}
		}
		slices.SortStableFunc(r.Devices, func(x, y *pb.Device) int { return a.order(x.Name) - a.order(y.Name) })
	})
}

func (a *Agent) order(device string) int {
	return slices.IndexFunc(a.units, func(u *unit) bool { return string(u.device.ID) == device })
}

func (u *unit) reason() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.lost == nil {
		return ""
	}
	return u.lost.Error()
}
