// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/distorch/distorch/model/lora"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

// ComfyWorkers is what a coordinator needs of those who speak to ComfyUI.
type ComfyWorkers interface {
	// Parse checks the URL of a ComfyUI and returns it in the form that is stored.
	Parse(url string) (string, error)
	// Probe asks the ComfyUI at a URL for its version.
	Probe(ctx context.Context, url string) (version string, err error)
	// States are the workers that this coordinator polls, by name, and where it
	// serves ComfyUI's API; listen is empty where it does not.
	States() (workers map[string]*pb.ComfyWorker, listen string)
}

const (
	maxComfyWorkers = 1000
	probeTimeout    = 5 * time.Second
)

var errNoComfy = &InvalidError{errors.New("this coordinator cannot speak to ComfyUI workers")}

// AddComfyWorker registers a ComfyUI, after a look whether there is one.
func (c *Coordinator) AddComfyWorker(ctx context.Context, req *pb.AddComfyWorkerRequest) (*pb.AddComfyWorkerResponse, error) {
	if err := operator(ctx); err != nil {
		return nil, toStatus(err)
	}
	if c.cfg.Comfy == nil {
		return nil, toStatus(errNoComfy)
	}
	address, err := c.cfg.Comfy.Parse(req.GetUrl())
	if err != nil {
		return nil, toStatus(&InvalidError{err})
	}
	name := cmp.Or(req.GetName(), nameOfURL(address))
	if err := identity.ValidName(name); err != nil {
		return nil, toStatus(invalid("name of a ComfyUI worker: %w; give one with --name", err))
	}
	all, err := store.List(ctx, c.cfg.Store, store.ComfyWorkers())
	if err != nil {
		return nil, toStatus(err)
	}
	for _, e := range all.Entries {
		switch {
		case e.Value.GetName() == name:
			return nil, toStatus(invalid("there is a ComfyUI worker %s already, at %s; give another name with --name, or take it off with `distorch comfy remove %s`", name, e.Value.GetUrl(), name))
		case e.Value.GetUrl() == address:
			return nil, toStatus(invalid("%s is worker %s already", address, e.Value.GetName()))
		}
	}
	if len(all.Entries) >= maxComfyWorkers {
		return nil, toStatus(invalid("there are %d ComfyUI workers; no more are taken", len(all.Entries)))
	}
	w := &pb.ComfyWorker{Record: &pb.ComfyWorkerRecord{Name: name, Url: address, AddedUnix: time.Now().Unix()}}
	if !req.GetUnchecked() {
		pctx, cancel := context.WithTimeout(ctx, probeTimeout)
		version, err := c.cfg.Comfy.Probe(pctx, address)
		cancel()
		if err != nil {
			return nil, toStatus(invalid("no ComfyUI answers at %s, as seen from the coordinator: %w; start it with --listen on an address that the coordinator reaches, or add it all the same with --no-check", address, err))
		}
		w.Live, w.Version = true, version
	}
	if _, err := store.Create(ctx, c.cfg.Store, store.ComfyWorkerKey(name), w.Record); err != nil {
		return nil, toStatus(fmt.Errorf("add ComfyUI worker %s: %w", name, err))
	}
	c.log.Info("comfyui worker added", "name", name, "url", address)
	return &pb.AddComfyWorkerResponse{Worker: w}, nil
}

// nameOfURL is host and port as a name.
func nameOfURL(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	name := regexp.MustCompile(`[^A-Za-z0-9._-]+`).ReplaceAllString(u.Host+u.Path, "-")
	return regexp.MustCompile(`^[._-]+|[._-]+$`).ReplaceAllString(name, "")
}

// ListComfyWorkers lists the registered workers by name.
func (c *Coordinator) ListComfyWorkers(ctx context.Context, _ *pb.ListComfyWorkersRequest) (*pb.ListComfyWorkersResponse, error) {
	if err := operator(ctx); err != nil {
		return nil, toStatus(err)
	}
	all, err := store.List(ctx, c.cfg.Store, store.ComfyWorkers())
	if err != nil {
		return nil, toStatus(err)
	}
	out := &pb.ListComfyWorkersResponse{}
	var known map[string]*pb.ComfyWorker
	if c.cfg.Comfy != nil {
		known, out.Listen = c.cfg.Comfy.States()
	}
	for _, e := range all.Entries {
		w := known[e.Value.GetName()]
		if w == nil || w.GetRecord().GetUrl() != e.Value.GetUrl() {
			w = &pb.ComfyWorker{}
		}
		w.Record = e.Value
		out.Workers = append(out.Workers, w)
	}
	return out, nil
}

// RemoveComfyWorker takes a worker off the list. What it runs is queued again.
func (c *Coordinator) RemoveComfyWorker(ctx context.Context, req *pb.RemoveComfyWorkerRequest) (*pb.RemoveComfyWorkerResponse, error) {
	if err := operator(ctx); err != nil {
		return nil, toStatus(err)
	}
	all, err := store.List(ctx, c.cfg.Store, store.ComfyWorkers())
	if err != nil {
		return nil, toStatus(err)
	}
	var names []string
	for _, e := range all.Entries {
		names = append(names, e.Value.GetName())
	}
	name := req.GetName()
	if !slices.Contains(names, name) {
		return nil, toStatus(&UnknownError{Kind: kindComfyWorker, Name: name, Nearest: nearest(name, names), Advice: "none is registered; `distorch comfy add URL` adds one"})
	}
	if err := store.Delete(ctx, c.cfg.Store, store.ComfyWorkerKey(name), 0); err != nil {
		return nil, toStatus(fmt.Errorf("remove ComfyUI worker %s: %w", name, err))
	}
	c.log.Info("comfyui worker removed", "name", name)
	return &pb.RemoveComfyWorkerResponse{}, nil
}

// ModelFile is a model of the cluster by its file's name, and the deployment that
// runs it, if there is one.
type ModelFile struct{ File, Deployment string }

// ModelFiles are all models, as last followed: by name, those that run first.
func (c *Coordinator) ModelFiles() []ModelFile {
	st := c.latest()
	if st == nil {
		return nil
	}
	var out []ModelFile
	for id, e := range st.Models {
		if e.Value.GetArchitecture() == lora.Architecture {
			continue
		}
		m := ModelFile{File: e.Value.GetName()}
		for name, spec := range st.Specs {
			if _, planned := st.Plans[name]; planned && spec.Value.GetModel() == id && (m.Deployment == "" || name < m.Deployment) {
				m.Deployment = name
			}
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b ModelFile) int {
		return cmp.Or(cmp.Compare(a.File, b.File), -cmp.Compare(a.Deployment, b.Deployment))
	})
	return out
}
