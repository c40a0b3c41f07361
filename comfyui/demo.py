# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""What surrounds the demo checkpoint: its texts are five words, its latents are pixels."""

from __future__ import annotations

import os

import torch

from . import wire
from .errors import ClusterError, shown

TOKENS = 5
PAD = "<pad>"
EXAMPLE = "large red circle on blue"
CHANNELS = 12  # of the latent's, that are 2x2 pixels of three colours
# FLUX's latent format, as ComfyUI shows latents outside of its sampler.
SCALE, SHIFT = 0.3611, 0.1159


class Vocabulary:
    """The words and the positions of words.safetensors: [18,64] and [5,64]."""

    def __init__(self, path: str):
        with open(path, "rb") as f:
            tensors, metadata = wire.unpack(bytearray(f.read()))
        self.words, self.word, self.position = metadata["words"].split(), tensors["word"], tensors["position"]

    def encode(self, prompt: str) -> list:
        """CONDITIONING of a prompt; of an empty one, that of no text."""
        words = prompt.lower().split() or [PAD] * TOKENS
        known = ", ".join(w for w in self.words if w != PAD)
        for w in words:
            if w not in self.words:
                raise ClusterError(f"the demo model does not know the word {w[:40]!r}; it knows {known}", "bad_request")
        if len(words) != TOKENS:
            raise ClusterError(
                f"the demo model reads five words such as {EXAMPLE!r}; the prompt has {len(words)}", "bad_request"
            )
        context = (self.word[[self.words.index(w) for w in words]] + self.position).unsqueeze(0)
        return [[context, {"pooled_output": context.mean(1)}]]


class DemoText:
    DESCRIPTION = "The conditioning of the demo checkpoint: five words such as large red circle on blue; empty is the unconditional text."
    CATEGORY, FUNCTION = "distorch/demo", "encode"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"prompt": ("STRING", {"default": EXAMPLE})}}

    @shown
    def encode(self, prompt):
        return (
            Vocabulary(os.path.join(os.path.dirname(os.path.abspath(__file__)), "words.safetensors")).encode(prompt),
        )


class DemoPicture:
    DESCRIPTION = "The picture of a latent of the demo checkpoint, without a VAE."
    CATEGORY, FUNCTION = "distorch/demo", "decode"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "enlarge": ("INT", {"default": 8, "min": 1, "max": 64})}}

    @shown
    def decode(self, samples, enlarge):
        z = samples["samples"]
        if z.dim() != 4 or z.shape[1] < CHANNELS:
            raise ClusterError(
                f"a latent {list(z.shape)} is not the demo checkpoint's; it has 16 channels", "bad_request"
            )
        x = (z[:, :CHANNELS].float() - SHIFT) * SCALE
        picture = torch.nn.functional.pixel_shuffle(x, 2).movedim(1, -1)
        level = ((picture + 1) * 127.5).clamp(0, 255).round() / 255
        return (level.repeat_interleave(enlarge, 1).repeat_interleave(enlarge, 2),)
