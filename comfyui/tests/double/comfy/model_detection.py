# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Double: FLUX's configuration; the widths are those that older ComfyUIs take for granted."""

from . import latent_formats, model_base


class Config:
    def __init__(self, unet_config):
        self.unet_config, self.latent_format = unet_config, latent_formats.Flux()

    def set_inference_dtype(self, dtype, manual_cast_dtype):
        self.unet_config["dtype"] = dtype

    def process_unet_state_dict(self, state_dict):
        """Newer ComfyUIs have another name for the scales of norms."""
        return {(k[: -len("scale")] + "weight" if k.endswith("_norm.scale") else k): v for k, v in state_dict.items()}

    def get_model(self, state_dict, prefix=""):
        return model_base.Flux(self)


def model_config_from_unet(state_dict, prefix):
    if prefix + "double_blocks.0.img_attn.norm.key_norm.scale" not in state_dict:
        return None
    return Config(
        {
            "image_model": "flux",
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "hidden_size": 3072,
            "context_in_dim": 4096,
            "vec_in_dim": 768,
            "num_heads": 24,
            "guidance_embed": prefix + "guidance_in.in_layer.weight" in state_dict,
        }
    )
