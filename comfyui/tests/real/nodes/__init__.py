# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Nodes that only the tests against a real ComfyUI link into it.

DISTORCH_TEST_DEMO names the folder with the demo checkpoint and its words.
"""

import os
import time

import comfy.controlnet
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch

DEMO = os.environ["DISTORCH_TEST_DEMO"]
CHECKPOINT = os.path.join(DEMO, "demo.safetensors")
CATEGORY = "distorch/test"

# The demo model, for a ComfyUI that takes FLUX for 3072 wide whatever the shapes say.
CONFIG = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 64, "context_in_dim": 64,
    "hidden_size": 256, "mlp_ratio": 4.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 4, "axes_dim": [16, 56, 56],
    "theta": 10000, "qkv_bias": True, "guidance_embed": True,
}


def weights():
    return comfy.utils.load_torch_file(CHECKPOINT, safe_load=True)


def stock_reads_widths():
    """Whether the checkout's own loader opens the demo checkpoint."""
    return comfy.model_detection.detect_unet_config(weights(), "").get("hidden_size") == CONFIG["hidden_size"]


class Local:
    """The demo checkpoint as a MODEL of this ComfyUI, built from an explicit unet_config."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"way": (["stock" if stock_reads_widths() else "explicit"],)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "load", CATEGORY

    def load(self, way):
        config = comfy.supported_models.Flux(dict(CONFIG))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "")
        model.load_model_weights(weights(), "")
        return (comfy.model_patcher.ModelPatcher(
            model, load_device=comfy.model_management.get_torch_device(), offload_device=comfy.model_management.unet_offload_device()),)


class Words:
    """Five words as CONDITIONING; fewer are filled up with <pad>."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": "large red circle on blue"})}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "encode", CATEGORY

    def encode(self, text):
        tensors, metadata = comfy.utils.load_torch_file(os.path.join(DEMO, "words.safetensors"), safe_load=True, return_metadata=True)
        names, words = metadata["words"].split(), text.split()
        context = torch.stack([tensors["word"][names.index(w)] for w in words + ["<pad>"] * (5 - len(words))]) + tensors["position"]
        return ([[context[None], {"pooled_output": context.mean(0)[None]}]],)


class Clip:
    """No CLIP, for loaders that ask for one."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "none", CATEGORY

    def none(self):
        return (None,)


class Control(comfy.controlnet.ControlBase):
    """A ControlNet that adds nothing."""

    def get_control(self, *args, **kwargs):
        return {"input": [], "middle": [], "output": []}

    def copy(self):
        c = Control()
        self.copy_to(c)
        return c


class ControlNet:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONTROL_NET",), "make", CATEGORY

    def make(self):
        return (Control(),)


class Hold:
    """Keeps the worker busy until it is interrupted."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0})}}

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "hold", CATEGORY, True

    def hold(self, seed):
        for _ in range(12000):
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.01)
        raise RuntimeError("nobody interrupted the test's hold for two minutes")


NODE_CLASS_MAPPINGS = {
    "DistorchTestLocal": Local, "DistorchTestWords": Words, "DistorchTestClip": Clip, "DistorchTestControlNet": ControlNet,
    "DistorchTestHold": Hold,
}
