# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""The nodes."""

from __future__ import annotations

import concurrent.futures

import torch

import comfy.model_management

from . import gantt, patcher
from .client import Call
from .cluster import DEPLOYMENT, USUAL, Cluster, Target, deployment_name, seconds, size
from .errors import ClusterError, shown

CATEGORY = "distorch"
WORKLOAD = "DISTORCH_WORKLOAD"
GB = 1 << 30  # as virtual VRAM is given in everywhere
DTYPES = {"default": None, "bf16": torch.bfloat16, "f32": torch.float32}

CLUSTER = Cluster()


def choice():
    """The menu of deployments and models, as INPUT_TYPES gives it."""
    known = CLUSTER.listing()
    return (known.names(), {"tooltip": known.tooltip()})


def placement_inputs() -> dict:
    return {
        "dtype": (
            list(DTYPES),
            {
                "default": "default",
                "tooltip": "Of the computation, where a model is deployed; default is the model's own choice.",
            },
        ),
        "virtual_vram_gb": (
            "FLOAT",
            {
                "default": 0.0,
                "min": 0.0,
                "max": 1024.0,
                "step": 0.1,
                "tooltip": "Memory of donors to use instead of the compute device's, in GB; 0 places automatically.",
            },
        ),
        "allocation": (
            "STRING",
            {
                "default": "",
                "tooltip": "An allocation string such as a/cuda:0,6gb;a/cpu,*; empty places automatically.",
            },
        ),
    }


def wanted(dtype: str, virtual_vram_gb: float, allocation: str) -> dict:
    """The parts of a deployment's spec that a node's inputs say."""
    if virtual_vram_gb > 0 and allocation.strip():
        raise ClusterError(
            "give virtual VRAM or an allocation string, not both: set virtual_vram_gb to 0 or empty allocation",
            "bad_request",
        )
    out = {}
    if dtype != "default":
        out["dtype"] = dtype
    if virtual_vram_gb > 0:
        out["virtual_vram"] = round(virtual_vram_gb * GB)
    if allocation.strip():
        out["allocation"] = allocation.strip()
    return out


class LoadDiffusionModel:
    DESCRIPTION = "A diffusion model that runs on a distorch cluster. Choose a deployment that is there, or a model: it is then deployed when the first step says how large the picture is, or at once for a workload."
    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("MODEL",), ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"model": choice(), **placement_inputs()},
            "optional": {
                "workload": (WORKLOAD, {"tooltip": "The largest picture; without it the first step decides."})
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model):
        return True  # a menu that was read before the cluster came refuses nothing; load does, with the reason

    @classmethod
    def IS_CHANGED(cls, model="", **inputs):
        """What the choice means on the cluster at this moment."""
        known = CLUSTER.listing()
        specs = [d.get("spec") or {} for d in known.deployments if d["name"] == model.removesuffix(DEPLOYMENT)]
        return str(
            [(s.get("model"), s.get("dtype")) for s in specs] + [m["id"] for m in known.models if m["name"] == model]
        )

    @shown
    def load(self, model, dtype, virtual_vram_gb, allocation, workload=None):
        options = wanted(dtype, virtual_vram_gb, allocation)
        name, entry = CLUSTER.find(model)
        if name is not None:
            return (load_deployment(name, options, workload),)
        if entry.get("problem"):
            raise ClusterError(f"model {entry['name']} cannot be used: {entry['problem']}", "bad_request")
        client = CLUSTER.client()
        info = CLUSTER.model(entry["id"])
        own = client.get("/v1").get("client") or {}
        target = Target(CLUSTER, deployment_name(own.get("name", "comfyui"), entry["name"]), entry, options, workload)
        if workload:
            wait_for(target, workload)
        return (patcher.build(target, info, DTYPES[dtype] or DTYPES.get(info.get("dtype")) or torch.bfloat16),)


def wait_for(target: Target, workload: dict):
    """Deploys for a workload; an interrupt ends the wait."""
    call = Call()
    done = CLUSTER.client().threads.submit(target.ready, workload, call)
    try:
        while not concurrent.futures.wait([done], 0.05).done:
            comfy.model_management.throw_exception_if_processing_interrupted()
    except BaseException:
        call.cancel()
        raise
    done.result()


def load_deployment(name: str, options: dict, workload):
    if options or workload:
        raise ClusterError(
            f"deployment {name} is placed already, so dtype, virtual VRAM, allocation and workload have no meaning for it: leave them alone, or choose the model instead",
            "bad_request",
        )
    spec = CLUSTER.deployment(name).get("spec") or {}
    info = CLUSTER.model(spec.get("model", ""))
    dtype = DTYPES.get(spec.get("dtype")) or DTYPES.get(info.get("dtype")) or torch.bfloat16
    return patcher.build(Target(CLUSTER, name), info, dtype)


class Workload:
    DESCRIPTION = "The largest request that a model is placed for. Connect it to Load Diffusion Model to deploy before the first step, or to Plan."
    CATEGORY, FUNCTION = CATEGORY, "make"
    RETURN_TYPES, RETURN_NAMES = (WORKLOAD,), ("workload",)

    @classmethod
    def INPUT_TYPES(cls):
        extent = {"min": 16, "max": 16384, "step": 16}
        return {
            "required": {
                "width": ("INT", {"default": 1024, **extent}),
                "height": ("INT", {"default": 1024, **extent}),
                "frames": ("INT", {"default": 1, "min": 1, "max": 4096, "tooltip": "Of a clip; 1 for pictures."}),
                "text_tokens": ("INT", {"default": 512, "min": 1, "max": 65536}),
                "in_flight": (
                    "INT",
                    {
                        "default": 2,
                        "min": 1,
                        "max": 64,
                        "tooltip": "Forwards at the same time; CFG above 1 has two a picture.",
                    },
                ),
            }
        }

    def make(self, width, height, frames, text_tokens, in_flight):
        words = {"width": width, "height": height, "text_tokens": text_tokens, "batch": 1, "in_flight": in_flight}
        if frames > 1:
            words["frames"] = frames
        return (words,)


class ClusterStatus:
    DESCRIPTION = "The nodes, models and deployments of the cluster, and what the last runs measured."
    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "show", True
    RETURN_TYPES, RETURN_NAMES = ("STRING",), ("text",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls):
        return float("nan")

    @shown
    def show(self):
        text = status_text()
        return {"ui": {"text": (text,)}, "result": (text,)}


def status_text() -> str:
    client = CLUSTER.client()
    hello = client.get("/v1")
    lines = [
        f"cluster {hello.get('cluster', '')} at {client.name}, distorch {hello.get('version', '')}, as client {(hello.get('client') or {}).get('name', '')}",
        "",
        "nodes",
    ]
    for n in listed(client.get("/v1/nodes"), "nodes"):
        lines.append(f"  {n['name']}: {n.get('state', '')}, {n.get('address', '')}")
        for d in n.get("devices") or []:
            if d.get("lost"):
                lines.append(f"    {d.get('name', '')}: not used any more: {d['lost']}")
                continue
            lines.append(
                f"    {d.get('name', '')}: {d.get('model') or d.get('kind', '')}, {size(d.get('memory') or 0)}, {size(d.get('free') or 0)} free; {', '.join(d.get('class') or [])}"
            )
    lines += ["", "models"]
    for m in listed(client.get("/v1/models"), "models"):
        said = f"; {m['problem']}" if m.get("problem") else ""
        blocks = f", {m['blocks']} blocks" if m.get("blocks") else ""  # a LoRA has none
        lines.append(
            f"  {m['name']}: {m.get('architecture', '')} {m.get('variant', '')}, {size(m.get('bytes') or 0)}{blocks}{said}"
        )
    lines += ["", "deployments"]
    for d in listed(client.get("/v1/deployments"), "deployments"):
        step = (d.get("forecast") or {}).get("step_s")
        lines.append(
            f"  {d['name']}: {d.get('state', '')}"
            + (f", {seconds(step)} per step" if step else "")
            + (f"; {d['message']}" if d.get("message") not in (None, "", d.get("state")) else "")
            + (f"; {d['numerics']}" if d.get("numerics") else "")
        )
        if d["name"] in CLUSTER.last:
            lines.append(f"    last run: {CLUSTER.last[d['name']]}")
    return "\n".join(lines)


def listed(answer, key: str) -> list:
    found = answer.get(key) if isinstance(answer, dict) else answer
    return [v for v in found or [] if isinstance(v, dict) and "name" in v]


class Plan:
    DESCRIPTION = "How a model would be placed, in words and as a drawing of one step over time. Nothing is deployed."
    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "plan", True
    RETURN_TYPES, RETURN_NAMES = ("STRING", "IMAGE"), ("text", "chart")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"model": choice(), **placement_inputs()},
            "optional": {"workload": (WORKLOAD, {"tooltip": "1024x1024 with 512 tokens unless connected."})},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model):
        return True

    @classmethod
    def IS_CHANGED(cls, **inputs):
        return float("nan")

    @shown
    def plan(self, model, dtype, virtual_vram_gb, allocation, workload=None):
        options = wanted(dtype, virtual_vram_gb, allocation)
        name, entry = CLUSTER.find(model)
        if name is not None:
            spec = CLUSTER.deployment(name).get("spec") or {}
            body = {
                **{k: v for k, v in spec.items() if k != "loras"},
                "workload": workload or spec.get("workload"),
                **options,
            }
        else:
            body = {"model": entry["id"], "workload": workload or USUAL, **options}
        answer = CLUSTER.client().send("POST", "/v1/plan", body, 60)
        text = answer.get("text", "").strip()
        if not answer.get("feasible") and answer.get("message", "") not in text:
            text = "\n".join(t for t in (answer["message"], text) if t)
        if not answer.get("report"):
            raise ClusterError(text or "the cluster gave no plan", "conflict")
        forwards = 2 if (body["workload"] or {}).get("in_flight", 0) > 1 else 1
        return {"ui": {"text": (text,)}, "result": (text, gantt.draw(answer["report"], forwards))}
