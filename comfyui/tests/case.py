# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""What tests share: a fake cluster, connected."""

import os
import unittest

import torch

import comfy.model_management as mm
import server
from comfy.samplers import Guider
from comfyui import nodes


class Connected(unittest.TestCase):
    """A test on a fake cluster with one deployment, called there."""

    model = None

    def setUp(self):
        self.server = server.Server(self.model)
        self.addCleanup(self.server.close)
        self.server.deployments["there"] = {
            "model": "tiny.safetensors",
            "workload": {"width": 1024, "height": 1024, "text_tokens": 512, "in_flight": 2},
        }
        self.connect(self.server.line())
        self.cluster = nodes.CLUSTER = nodes.Cluster()
        self.addCleanup(self.close_client)
        mm.interrupted.clear()
        mm.freed.clear()

    def close_client(self):
        if self.cluster._client is not None:
            self.cluster._client.close()

    def connect(self, line):
        os.environ["DISTORCH_CONNECTION"] = line
        self.addCleanup(os.environ.pop, "DISTORCH_CONNECTION", None)

    def load(self, name="there (deployment)", dtype="default", vram=0.0, allocation="", workload=None):
        return nodes.LoadDiffusionModel().load(name, dtype, vram, allocation, workload)[0]

    def sample(self, patcher, cfg=1.0, positive=None, negative=None, steps=3, batch=1, side=8, **kwargs):
        noise = torch.randn(batch, 16, side, side, generator=torch.Generator().manual_seed(3))
        sigmas = torch.linspace(1, 0, steps + 1)
        guider = Guider(patcher, positive or server.condition(), negative or server.condition(seed=2), cfg)
        return guider.sample(noise, sigmas, **kwargs)

    def refused(self, *parts):
        return self.assertRaisesRegex(RuntimeError, ".*".join(parts))


def local(positive, negative=None, cfg=1.0, steps=3, batch=1, side=8, dtype=torch.float32):
    """The same sampling with the prediction computed here, in the order of the double."""
    x = torch.randn(batch, 16, side, side, generator=torch.Generator().manual_seed(3))
    sigmas = torch.linspace(1, 0, steps + 1)

    def one(cond, x, sigma):
        c = cond[0]
        t = {
            "x": x.to(dtype),
            "timestep": sigma,
            "context": c[0].to(dtype),
            "y": c[1]["pooled_output"].to(dtype),
            "guidance": torch.tensor([c[1].get("guidance", 3.5)]).to(dtype),
        }
        t.update(
            {
                f"ref_latents.{i}": ((v - 0.1159) * 0.3611).to(dtype)
                for i, v in enumerate(c[1].get("reference_latents", []))
            }
        )
        return x - torch.cat([server.predict({**t, "x": r[None]}) for r in t["x"]]).float() * sigma

    for i in range(steps):
        cond = one(positive, x, sigmas[i : i + 1])
        if cfg != 1:
            uncond = one(negative, x, sigmas[i : i + 1])
            cond = uncond + (cond - uncond) * cfg
        x = x + (x - cond) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x / 0.3611 + 0.1159
