# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""What cannot run on a cluster, by its name.

A cluster computes the model's own forward. Whatever changes the inside of it is
Python in this process that the cluster does not have: it would be left out
without a word, so it is an error, at the node that adds it where that is
possible, before the first step otherwise.
"""

from __future__ import annotations

from comfy.patcher_extension import WrappersMP

from .errors import ClusterError

WAY_OUT = "remove the node that adds it, or use a local MODEL"

SOURCES = {
    "attn1_patch": "ToMe, HyperTile and alike",
    "attn1_output_patch": "IPAdapter, NAG and alike",
    "attn2_patch": "IPAdapter and alike",
    "double_block": "a ControlNet patch and alike",
    "dit": "SkipLayerGuidance, first-block caches and alike",
    "attn1": "PAG, SAG and alike",
    "attn2": "IPAdapter and alike",
}


def refusal(found: list[str]) -> ClusterError:
    return ClusterError(
        f"distorch cannot run this on the cluster: {', '.join(dict.fromkeys(found))}; {WAY_OUT}", "unsupported"
    )


def check(found: list[str]):
    if found:
        raise refusal(found)


def patch(name: str) -> str:
    source = SOURCES.get(name)
    return f"the model patch {name}" + (f" ({source})" if source else "")


def replacement(name: str) -> str:
    source = SOURCES.get(name)
    return f"the replaced {name} blocks" + (f" ({source})" if source else "")


def in_options(options: dict) -> list[str]:
    """What transformer_options have that the model's inside would read. Empty
    dictionaries and lists are always there and mean nothing.
    """
    found = [patch(n) for n, v in (options.get("patches") or {}).items() if v]
    found += [replacement(n) for n, v in (options.get("patches_replace") or {}).items() if v]
    wrappers = options.get("wrappers") or {}
    for key, value in (wrappers.get(WrappersMP.DIFFUSION_MODEL) or {}).items():
        if value:
            found.append(f"the wrapper {key or 'without a name'} around the model (diffusion_model)")
    if (wrappers.get(WrappersMP.APPLY_MODEL) or {}).get("torch.compile"):
        found.append("torch.compile")
    if options.get("optimized_attention_override"):
        found.append("an attention override (optimized_attention_override)")
    if rope(options.get("rope_options") or {}):
        found.append("changed rope positions (rope_options)")
    return found


def rope(options: dict) -> bool:
    return any(v not in (None, 1.0 if k.startswith("scale") else 0.0) for k, v in options.items())


def in_conditions(conditions: dict) -> list[str]:
    """What lists of conditions by name (positive, negative) bring."""
    found = []
    for c in [c for listed in conditions.values() for c in listed or []]:
        if c.get("control") is not None:
            found.append(f"ControlNet ({type(c['control']).__name__})")
        if c.get("hooks") is not None:
            found += [hook(h) for h in getattr(c["hooks"], "hooks", [])] or ["hooks"]
        if c.get("gligen") is not None:
            found.append("GLIGEN")
    return found


def hook(h) -> str:
    kind = getattr(h, "hook_type", None)
    return f"the hook {type(h).__name__}" + (f" ({getattr(kind, 'value', kind)})" if kind else "")


def in_patcher(patcher) -> list[str]:
    """What a ModelPatcher itself carries."""
    found = [f"the weight wrapper of {n}" for n in patcher.weight_wrapper_patches]
    found += [f"the replaced object {n}" for n in patcher.object_patches if inside(n)]
    found += [f"the injection {n}" for n, v in patcher.injections.items() if v]
    if patcher.hook_patches or patcher.current_hooks:
        found.append("weight hooks (Create Hook LoRA and alike)")
    if sum(len(v) for v in patcher.patches.values()) != sum(len(r.patches) for r in patcher.distorch_loras):
        found.append("weights that were patched past add_patches")
    return found


def inside(name: str) -> bool:
    """Whether an object's name is in the model that the cluster runs."""
    return name == "diffusion_model" or name.startswith("diffusion_model.")
