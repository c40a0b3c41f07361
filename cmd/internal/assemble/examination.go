// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"errors"

	"github.com/distorch/distorch/agent/diagnose"
	"github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/agent/examine"
	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/transport/identity"
)

// Examination is what there is to look at on this machine, as it is configured.
func Examination(cfg *config.Config, dir identity.Dir, version string) examine.Config {
	return examine.Config{
		Node: cfg.Agent.Name, Version: version, Engine: cfg.Agent.Engine, Models: cfg.Models.Dirs, DataDir: cfg.DataDir,
		Certificate: dir.CertFile(identity.SlotNode), Memory: tensor.Bytes(cfg.Agent.Memory), Reserve: tensor.Bytes(cfg.Agent.Reserve),
		Torch: func(ctx context.Context) diagnose.Torch {
			return lookForTorch(ctx, TorchSearch(cfg))
		},
	}
}

// lookForTorch is the first Python whose PyTorch can serve, or what is wrong
// with the one that would be taken.
func lookForTorch(ctx context.Context, s torch.Search) diagnose.Torch {
	first := diagnose.Torch{Problem: diagnose.TorchAbsent}
	for i, c := range torch.Find(s) {
		info, err := torch.Probe(ctx, c.Python)
		if err == nil {
			return torchFacts(info)
		}
		if i == 0 {
			first = diagnose.Torch{Python: c.Python, Problem: problem(err), Error: err.Error()}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return first
}

func problem(err error) diagnose.Problem {
	switch {
	case errors.Is(err, torch.ErrAbsent):
		return diagnose.TorchAbsent
	case errors.Is(err, torch.ErrBroken):
		return diagnose.TorchBroken
	case errors.Is(err, torch.ErrTooOld):
		return diagnose.TorchTooOld
	}
	return diagnose.TorchFailed
}

func torchFacts(info torch.Info) diagnose.Torch {
	out := diagnose.Torch{Python: info.Python, Version: info.Version, Runtime: info.Runtime, Archs: info.Archs}
	for _, d := range info.Devices {
		out.Devices = append(out.Devices, diagnose.TorchDevice{
			ID: string(d.ID), Kind: d.Kind, Model: d.Model, UUID: d.UUID, Arch: d.Arch, Lacks: d.Missing != nil,
		})
	}
	return out
}
