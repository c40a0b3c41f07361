# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""The MODEL: a ModelPatcher around a BaseModel whose diffusion model is remote."""

from __future__ import annotations

import concurrent.futures
import logging
import threading

import torch

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
from comfy.patcher_extension import WrappersMP

from . import lora, refuse, sharing
from .errors import ClusterError, shown
from .remote import RemoteModel, Run, tokens

log = logging.getLogger("distorch")

KEY = "distorch"
PREFIX = lora.PREFIX


class RemotePatcher(comfy.model_patcher.ModelPatcher):
    """Keeps LoRAs for the cluster, and refuses what would change the inside of the model
    at the node that does it. The constructor is ModelPatcher's, as clone calls it.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.distorch_loras: list[lora.LoRA] = []

    def clone(self, *args, **kwargs):
        if kwargs.get("force_deepcopy"):
            raise RuntimeError(
                "distorch spreads the model over the cluster's devices itself; remove the multi-GPU node"
            )
        n = super().clone(*args, **kwargs)
        n.distorch_loras = list(self.distorch_loras)
        return n

    def is_dynamic(self):
        return False

    @property
    def remote(self) -> RemoteModel:
        return self.model.diffusion_model

    @shown
    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        if strength_model != 1.0:
            raise refuse.refusal(["a merge with another model (ModelMerge)"])
        keys = {PREFIX + k: v for k, v in self.remote.names.items()}
        found = lora.read(patches, keys, strength_patch)
        taken = super().add_patches(patches, strength_patch, strength_model)
        if found.patches:
            self.distorch_loras.append(found)
        return taken

    @shown
    def get_key_patches(self, filter_prefix=None):
        raise ClusterError(
            "the weights of a distorch MODEL are on the cluster, so ComfyUI can neither merge nor save them; use a local MODEL for that",
            "unsupported",
        )

    def state_dict_for_saving(self, *args, **kwargs):
        return self.get_key_patches()

    @shown
    def set_model_patch(self, patch, name):
        raise refuse.refusal([refuse.patch(name)])

    @shown
    def set_model_patch_replace(self, patch, name, block_name, number, transformer_index=None):
        raise refuse.refusal([refuse.replacement(name)])

    @shown
    def set_model_optimized_attention(self, optimized_attention):
        raise refuse.refusal(["an attention override (optimized_attention_override)"])

    @shown
    def add_weight_wrapper(self, name, function):
        raise refuse.refusal([f"the weight wrapper of {name}"])

    @shown
    def add_object_patch(self, name, obj):
        if refuse.inside(name):
            raise refuse.refusal([f"the replaced object {name}"])
        return super().add_object_patch(name, obj)

    @shown
    def add_wrapper_with_key(self, wrapper_type, key, wrapper):
        if wrapper_type == WrappersMP.DIFFUSION_MODEL or (
            wrapper_type == WrappersMP.APPLY_MODEL and key == "torch.compile"
        ):
            raise refuse.refusal(refuse.in_options({"wrappers": {wrapper_type: {key: [wrapper]}}}))
        return super().add_wrapper_with_key(wrapper_type, key, wrapper)

    @shown
    def set_injections(self, key, injections):
        raise refuse.refusal([f"the injection {key}"])

    @shown
    def register_all_hook_patches(self, hooks, *args, **kwargs):
        found = [refuse.hook(h) for h in getattr(hooks, "hooks", None) or []]
        refuse.check(found)
        return super().register_all_hook_patches(hooks, *args, **kwargs)

    @shown
    def add_hook_patches(self, hook, *args, **kwargs):
        raise refuse.refusal([refuse.hook(hook)])


@shown
def sampling(executor, *args, **kwargs):
    """OUTER_SAMPLE: what is around one sampling. Nothing is loaded yet, so what cannot
    run is refused here; the conditions, patches and hooks are all known.
    """
    guider = executor.class_obj
    patcher = guider.model_patcher
    remote = patcher.remote
    refuse.check(
        refuse.in_options(guider.model_options.get("transformer_options") or {})
        + refuse.in_patcher(patcher)
        + refuse.in_conditions(guider.conds)
    )
    shape = tuple(args[0].shape) if args else ()
    share = sharing.Sharing(remote.target, patcher.load_device)
    share.before()
    run, outer = Run(least(guider.conds)), remote.run
    remote.__dict__["run"] = run
    try:
        return executor(*args, **kwargs)
    finally:
        remote.__dict__["run"] = outer
        if run.forwards:
            remote.target.cluster.last[remote.target.name] = run.summary()
        log.info("distorch: %s: %s", remote.target.name, run.summary())
        end(remote.target.cluster, run)
        share.after(shape)


def least(conditions: dict) -> dict:
    """The text length that all conditions of a sampling fit into, so that the longer of
    two texts does not place the model anew.
    """
    lengths = [
        c["cross_attn"].shape[1]
        for listed in conditions.values()
        for c in listed or []
        if torch.is_tensor(c.get("cross_attn")) and c["cross_attn"].dim() == 3
    ]
    return {"text_tokens": tokens(max(lengths))} if lengths else {}


def end(cluster, run: Run):
    """Tells the cluster that a run is over; without it the run would end by being idle."""
    if not run.forwards:
        return

    def tell():
        try:
            cluster.client().call("DELETE", f"/v1/runs/{run.id}", timeout=5)
        except ClusterError:
            pass

    threading.Thread(target=tell, name="distorch-end", daemon=True).start()


def conditions(executor, model, conds, x_in, timestep, model_options):
    """CALC_COND_BATCH: conditions that do not fit into one batch (texts of unlike
    lengths) are computed side by side, as those that do are.
    """
    at = [i for i, c in enumerate(conds) if c]
    if len(at) < 2 or "model_function_wrapper" in model_options or one_batch([conds[i] for i in at]):
        return executor(model, conds, x_in, timestep, model_options)
    inference, stop = torch.is_inference_mode_enabled(), threading.Event()

    def part(i):
        model.diffusion_model.interrupts.stop = stop
        options = {**model_options, "transformer_options": dict(model_options.get("transformer_options") or {})}
        with torch.inference_mode(inference), torch.no_grad():
            return executor(model, [c if j == i else None for j, c in enumerate(conds)], x_in, timestep, options)[i]

    with concurrent.futures.ThreadPoolExecutor(len(at), "distorch-cond") as threads:
        futures = {i: threads.submit(part, i) for i in at}
        try:
            waiting = list(futures.values())
            while waiting:
                done, _ = concurrent.futures.wait(waiting, 0.01, concurrent.futures.FIRST_EXCEPTION)
                for f in done:
                    f.result()
                waiting = [f for f in waiting if f not in done]
                comfy.model_management.throw_exception_if_processing_interrupted()
        except BaseException:
            stop.set()
            raise
    return [futures[i].result() if i in futures else torch.zeros_like(x_in) for i in range(len(conds))]


def one_batch(conds: list) -> bool:
    """Whether ComfyUI would compute these conditions in one call."""
    if any(len(c) != 1 for c in conds):
        return True  # several conditions on either side: left to ComfyUI
    first, *others = (c[0].get("model_conds") or {} for c in conds)
    return all(first.keys() == o.keys() and all(v.can_concat(o[k]) for k, v in first.items()) for o in others)


def build(target, info: dict, dtype: torch.dtype) -> RemotePatcher:
    """A MODEL for a model of the cluster, whose dimensions ComfyUI's own detection reads
    from the names and shapes that the cluster gives.
    """
    given = {t["name"]: torch.empty(t["shape"], dtype=dtype, device="meta") for t in info.get("tensors") or []}
    try:
        config = comfy.model_detection.model_config_from_unet(dict(given), "")
    except Exception as e:
        raise ClusterError(
            f"this ComfyUI cannot read the dimensions of {info.get('name')} ({type(e).__name__}: {e}); update ComfyUI",
            "unsupported",
        ) from None
    if config is None:
        raise ClusterError(
            f"this ComfyUI does not know the architecture of {info.get('name')} ({info.get('architecture')}); update ComfyUI",
            "unsupported",
        )
    from_shapes(config.unet_config, given)
    config.unet_config["disable_unet_model_creation"] = True
    config.set_inference_dtype(dtype, None)
    latent = latent_format(config.latent_format, info.get("latent") or {}, given)
    config.latent_format = latent
    model = config.get_model(dict(given), "")
    own = config.process_unet_state_dict(dict(given))
    names = {id(t): n for n, t in given.items()}
    remote = RemoteModel(target, info, dtype)
    model.diffusion_model = remote
    scale = (getattr(latent, "spacial_downscale_ratio", 8), getattr(latent, "temporal_downscale_ratio", 4))
    remote.describe(
        model,
        {k: names[id(t)] for k, t in own.items() if id(t) in names},
        {k: tuple(t.shape) for k, t in own.items()},
        config.unet_config.get("patch_size"),
        scale,
    )
    # No memory of ComfyUI's is used, so nothing is to be reserved, moved out or split.
    model.memory_required = lambda *args, **kwargs: 0
    model.state_dict_for_saving = lambda *args, **kwargs: patcher.get_key_patches()
    patcher = RemotePatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
        size=1,
    )
    super(RemotePatcher, patcher).add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sampling)
    super(RemotePatcher, patcher).add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, conditions)
    return patcher


def from_shapes(config: dict, tensors: dict):
    """Corrects what older detections take for granted of FLUX (widths of 3072 and 4096)."""
    if (
        config.get("image_model") != "flux"
        or "img_in.weight" not in tensors
        or "final_layer.linear.weight" not in tensors
    ):
        return
    side = config.get("patch_size") or 2
    hidden, width = tensors["img_in.weight"].shape
    config.update(
        hidden_size=hidden,
        in_channels=width // (side * side),
        out_channels=tensors["final_layer.linear.weight"].shape[0] // (side * side),
    )
    norm = tensors.get("double_blocks.0.img_attn.norm.query_norm.scale")
    if norm is not None:
        config["num_heads"] = hidden // norm.shape[0]
    for name, key in (("context_in_dim", "txt_in.weight"), ("vec_in_dim", "vector_in.in_layer.weight")):
        if key in tensors:
            config[name] = tensors[key].shape[1]


def latent_format(own, said: dict, tensors: dict):
    """ComfyUI's latent format of the architecture, changed where the model's differs."""
    channels = said.get("channels")
    if channels and channels != own.latent_channels:
        own.latent_channels = channels
        own.latent_rgb_factors = None  # ComfyUI's are for other channels; no previews then
        own.latent_rgb_factors_bias = None
    elif "txt_in.weight" in tensors and tensors["txt_in.weight"].shape[1] == 64 and channels == 16:
        # the demo checkpoint: channels 0 to 11 are 2x2 pixels of three colours
        own.latent_rgb_factors = [[0.25 if c // 4 == colour else 0.0 for colour in range(3)] for c in range(16)]
        own.latent_rgb_factors_bias = None
    return own
