// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/distorch/distorch/coordinator/comfy"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// Registered follows the workers that operators have registered, as Config.Workers.
func Registered(s *store.Store) func(ctx context.Context, fn func([]Registration)) error {
	return func(ctx context.Context, fn func([]Registration)) error {
		known := map[string]Registration{} // by key
		return store.Watch(ctx, s, store.ComfyWorkers(), func(c store.Change[*pb.ComfyWorkerRecord]) error {
			if c.Reset {
				clear(known)
			}
			for _, key := range c.Deleted {
				delete(known, key)
			}
			for _, e := range c.Entries {
				known[e.Key] = Registration{Name: e.Value.GetName(), URL: e.Value.GetUrl()}
			}
			fn(slices.Collect(maps.Values(known)))
			return nil
		})
	}
}

// Probe asks the ComfyUI at a URL of ParseURL's form for its version.
func Probe(ctx context.Context, url string) (version string, err error) {
	t := newTransport()
	defer t.CloseIdleConnections()
	raw, err := (api{base: url, http: newClient(t)}).stats(ctx)
	if err != nil {
		return "", err
	}
	var stats comfy.SystemStats
	if err := json.Unmarshal(raw, &stats); err != nil {
		return "", fmt.Errorf("/system_stats: %w", err)
	}
	if stats.System.ComfyUIVersion == "" && stats.System.PythonVersion == "" {
		return "", errors.New("/system_stats: that is no ComfyUI's answer")
	}
	return stats.System.ComfyUIVersion, nil
}

// Proto is the state as an operator's command is told it.
func (s WorkerState) Proto() *pb.ComfyWorker {
	out := &pb.ComfyWorker{
		Record: &pb.ComfyWorkerRecord{Name: s.Name, Url: s.URL}, Live: s.Live, Problem: s.Problem, Version: s.Version, Classes: uint32(s.Classes),
		Busy: s.Busy, Queued: uint32(s.Queued), Prompts: uint64(s.Prompts), Lost: uint64(s.Lost), Replaces: s.Replaces,
	}
	for _, d := range s.Devices {
		out.Devices = append(out.Devices, d.Name)
	}
	return out
}
