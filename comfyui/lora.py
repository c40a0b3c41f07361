# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""LoRAs on their way to a cluster: one LoRA loader's patches as one file.

A file is safetensors with the list distorch_lora in its metadata; strengths are
not in it, so that they may change without another upload. Its digest is that of
its bytes.
"""

from __future__ import annotations

import json
import weakref

import torch

from . import wire
from .client import digest
from .errors import ClusterError

PREFIX = "diffusion_model."
FUNCTIONS = {"swap_scale_shift"}
KNOWN = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "glora": "GLoRA", "oft": "OFT", "boft": "BOFT"}


class Patch:
    """What one layer gets."""

    def __init__(self, key, kind, offset, function, alpha, tensors):
        self.key, self.kind, self.offset, self.function, self.alpha, self.tensors = (
            key,
            kind,
            offset,
            function,
            alpha,
            tensors,
        )

    def entry(self):
        return (self.key, self.kind, self.offset or (), self.function or "", self.alpha)

    def same(self):
        return (*self.entry(), *(id(t) for t in self.tensors))


class LoRA:
    """The patches of one call of add_patches."""

    def __init__(self, patches: list[Patch], strength: float):
        self.patches, self.strength = patches, strength

    def bytes(self) -> bytearray:
        entries, tensors = [], {}
        for i, p in enumerate(self.patches):
            names = [f"{i}.up", f"{i}.down"] if p.kind == "lora" else [f"{i}.diff"]
            tensors.update(zip(names, p.tensors))
            entries.append(
                {
                    "key": p.key,
                    "type": p.kind,
                    "offset": list(p.offset) if p.offset else None,
                    "function": p.function,
                    "alpha": p.alpha,
                    "tensors": names,
                }
            )
        text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
        return wire.pack(tensors, {"distorch_lora": text})


class Digests:
    """Digests of LoRAs by their tensors, which a loader hands out again when only a strength changes."""

    LIMIT = 32

    def __init__(self):
        self._known = {}

    def of(self, lora: LoRA) -> str:
        key = tuple(p.same() for p in lora.patches)
        tensors = [t for p in lora.patches for t in p.tensors]
        if key in self._known:
            value, refs = self._known[key]
            if all(r() is t for r, t in zip(refs, tensors)):
                return value
        while len(self._known) >= self.LIMIT:
            self._known.pop(next(iter(self._known)))
        value = digest(lora.bytes())
        self._known[key] = (value, [weakref.ref(t) for t in tensors])
        return value


def read(patches: dict, keys: dict, strength: float) -> LoRA:
    """The LoRA of a call of ModelPatcher.add_patches; keys are ComfyUI's names of the
    weights to the checkpoint's. A patch that a cluster cannot apply is an error that names it.
    """
    found = []
    for at, value in patches.items():
        key, offset, function = (at, None, None) if isinstance(at, str) else (*at, None)[:3]
        if key in keys:
            found.append(_patch(keys[key], value, offset, function))
    found.sort(key=lambda p: (p.key, p.offset or (), p.kind))
    return LoRA(found, float(strength))


def _patch(key, value, offset, function) -> Patch:
    name = getattr(function, "__name__", None) if function is not None else None
    if function is not None and name not in FUNCTIONS:
        raise _refused(key, f"it is reshaped by the function {name}")
    if offset is not None:
        offset = tuple(int(v) for v in offset)
    if isinstance(value, (tuple, list)):
        return _difference(key, value, offset, name)
    kind = getattr(value, "name", type(value).__name__)
    if kind != "lora":
        raise _refused(key, f"it is a {KNOWN.get(kind, kind)}")
    up, down, alpha, mid, dora, reshape = (*value.weights, None, None, None)[:6]
    for part, what in (
        (mid, "a convolution's LoRA (lora_mid)"),
        (dora, "a DoRA (dora_scale)"),
        (reshape, "a LoRA that makes the weight larger (reshape_weight)"),
    ):
        if part is not None:
            raise _refused(key, f"it is {what}")
    if up.dim() != 2 or down.dim() != 2 or up.shape[1] != down.shape[0]:
        raise _refused(key, f"its up {list(up.shape)} and down {list(down.shape)} do not fit a linear layer")
    return Patch(key, "lora", offset, name, None if alpha is None else float(alpha), [_plain(up), _plain(down)])


def _difference(key, value, offset, name) -> Patch:
    kind, data = (value[0], value[1]) if len(value) == 2 else ("diff", value)
    if kind != "diff":
        raise _refused(key, f"it is a patch of the kind {kind}")
    if len(data) > 1 and isinstance(data[1], dict) and data[1].get("pad_weight"):
        raise _refused(key, "it makes the weight larger (pad_weight)")
    return Patch(key, "diff", offset, name, None, [_plain(data[0])])


def _plain(t: torch.Tensor) -> torch.Tensor:
    """t as bodies carry it: fp8 and other storage is widened to float32, which is exact."""
    return t if t.dtype in (torch.float32, torch.bfloat16, torch.float16) else t.float()


def _refused(key: str, why: str) -> ClusterError:
    return ClusterError(
        f"distorch cannot apply the patch of {key}: {why}; a LoRA's pairs (up and down) and plain differences work, so merge this one into the checkpoint or leave it out",
        "unsupported",
    )
