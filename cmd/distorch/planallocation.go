// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/allocation"
	"github.com/distorch/distorch/placement/byhand"
)

// byHand reads an allocation string or an amount of virtual VRAM as a constraint: one node's compute device runs every
// block, and the string says where each rests.
func (f *specFlags) byHand(p *placement.Problem) error {
	off, err := f.virtual()
	switch {
	case err != nil:
		return err
	case off > 0:
		return virtualVRAM(placement.Bytes(off), p)
	case f.allocation == "":
		return nil
	}
	a, _, err := byhand.Read(f.allocation, f.compat, p)
	if err != nil {
		return allocationError(err)
	}
	p.Constraints.Allocation = a
	return nil
}

// virtualVRAM chooses the GPU that is the fastest without so many bytes of the blocks.
func virtualVRAM(off placement.Bytes, p *placement.Problem) error {
	all, err := byhand.Virtual(off, p)
	if err != nil {
		return allocationError(err)
	}
	best := 0.0
	var first error
	for _, a := range all {
		q := *p
		q.Constraints.Allocation = a
		plan, err := placement.Place(q, placement.Options{SkipLosses: true})
		switch {
		case err != nil && first == nil:
			first = err
		case err == nil && (p.Constraints.Allocation == nil || plan.StepSeconds < best):
			best, p.Constraints.Allocation = plan.StepSeconds, a
		}
	}
	if p.Constraints.Allocation == nil {
		return planError(first)
	}
	return nil
}

// virtual reads --virtual-vram; its units are binary, as in allocation strings.
func (f *specFlags) virtual() (allocation.Bytes, error) {
	if f.virtualVRAM == "" {
		return 0, nil
	}
	n, err := allocation.ParseBytes(f.virtualVRAM)
	if err != nil || n <= 0 {
		return 0, usage(fmt.Errorf("--virtual-vram %q: want an amount such as 8GB (2^30 bytes each)", f.virtualVRAM))
	}
	return n, nil
}

// modes checks the flags that say where blocks rest.
func (f *specFlags) modes() error {
	if f.compat != "" {
		if err := chosen("compat", f.compat); err != nil {
			return usage(err)
		}
		if f.allocation == "" {
			return usage(errors.New("--compat is for --allocation STRING"))
		}
	}
	if f.allocation != "" && f.virtualVRAM != "" {
		return usage(errors.New("--allocation and --virtual-vram are both given; a string can say both: #cuda:0;8gb;cpu"))
	}
	if len(f.pins) > 0 && (f.allocation != "" || f.virtualVRAM != "") {
		return usage(errors.New("--pin puts blocks on nodes, --allocation and --virtual-vram on devices of one: use one of them"))
	}
	if f.storage != "" {
		if err := output.OneOf(f.storage, choices("storage")); err != nil {
			return usage(fmt.Errorf("--storage %w", err))
		}
	}
	return nil
}
