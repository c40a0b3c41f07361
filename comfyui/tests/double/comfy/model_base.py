# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Double: how ComfyUI calls a FLUX diffusion model, and what it reads of it."""

import torch


class ModelSamplingFlux:
    shift = 1.15

    def timestep(self, sigma):
        return sigma


class Flux(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.unet_config.get("disable_unet_model_creation"), "the double builds no diffusion model"
        self.model_config, self.latent_format = config, config.latent_format
        self.manual_cast_dtype = None
        self.model_sampling = ModelSamplingFlux()
        self.current_patcher = None

    def memory_required(self, input_shape, cond_shapes=None):
        return 1 << 40

    def state_dict_for_saving(self, *args):
        return self.state_dict()

    def dtype(self):
        return self.manual_cast_dtype or self.diffusion_model.dtype

    def conditions(self, cond):
        """The model's keyword inputs of one condition."""
        d = self.dtype()
        out = {"context": cond["cross_attn"], "y": cond["pooled_output"]}
        if cond.get("guidance", 3.5) is not None:
            out["guidance"] = torch.tensor([cond.get("guidance", 3.5)])
        out = {k: v.to(d) for k, v in out.items()}
        if "reference_latents" in cond:
            out["ref_latents"] = [self.latent_format.process_in(v).to(d) for v in cond["reference_latents"]]
            if "reference_latents_method" in cond:
                out["ref_latents_method"] = cond["reference_latents_method"]
        out.update(cond.get("extra", {}))
        return out

    def apply_model(self, x, sigma, transformer_options, control=None, **conditions):
        t = self.model_sampling.timestep(sigma).float()
        out = self.diffusion_model(
            x.to(self.dtype()),
            t,
            context=conditions.pop("context"),
            control=control,
            transformer_options=transformer_options,
            **conditions,
        )
        return x - out.float() * sigma.reshape(-1, *[1] * (x.dim() - 1))
