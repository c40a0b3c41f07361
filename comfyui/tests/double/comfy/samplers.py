# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Double: Euler with CFG, calling wrappers and the model in ComfyUI's order."""

import copy
import uuid

import torch

from .patcher_extension import WrappersMP, wrapped


class Held:
    """A processed condition: what can be put into one batch says so itself."""

    def __init__(self, value):
        self.cond = value

    def can_concat(self, other):
        return torch.is_tensor(self.cond) and self.cond.shape == other.cond.shape


class Guider:
    def __init__(self, patcher, positive, negative, cfg):
        self.model_patcher, self.cfg = patcher, cfg
        self.model_options = patcher.model_options
        self.given = {"positive": positive, "negative": negative}

    def sample(self, noise, sigmas, latent=None, seed=None, callback=None):
        self.conds = {k: [{**v[1], "cross_attn": v[0], "uuid": uuid.uuid4()} for v in c] for k, c in self.given.items()}
        self.model_options = copy.deepcopy(self.model_options)
        self.model_options["transformer_options"]["wrappers"] = {
            k: {k1: w[:] for k1, w in v.items()} for k, v in self.model_patcher.wrappers.items()
        }
        for c in self.conds.values():
            for cond in c:
                if "hooks" in cond:
                    self.model_patcher.register_all_hook_patches(cond["hooks"], {}, self.model_options, None)
        with torch.inference_mode():
            return wrapped(self.outer_sample, WrappersMP.OUTER_SAMPLE, self.model_options, self)(
                noise, latent, None, sigmas, None, callback, False, seed
            )

    def outer_sample(self, noise, latent, sampler, sigmas, denoise_mask, callback, disable_pbar, seed):
        self.model_patcher.load()
        model = self.model_patcher.model
        self.model_patcher.pre_run()
        for c in self.conds.values():
            for cond in c:
                cond["model_conds"] = {k: Held(v) for k, v in model.conditions(cond).items()}
        options = {
            **self.model_options,
            "transformer_options": {**self.model_options["transformer_options"], "sample_sigmas": sigmas},
        }
        x = noise * sigmas[0] + (0 if latent is None else model.latent_format.process_in(latent) * (1 - sigmas[0]))
        for i in range(len(sigmas) - 1):
            denoised = self.denoised(model, x, sigmas[i].repeat(x.shape[0]), options)
            x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
            if callback is not None:
                callback(i, denoised)
        return model.latent_format.process_out(x)

    def denoised(self, model, x, sigma, options):
        conds = [self.conds["positive"], self.conds["negative"] if self.cfg != 1 else None]
        cond, uncond = wrapped(calc_cond_batch, WrappersMP.CALC_COND_BATCH, options)(model, conds, x, sigma, options)
        return cond if self.cfg == 1 else uncond + (cond - uncond) * self.cfg


def calc_cond_batch(model, conds, x, sigma, options):
    """The prediction of each list of conditions; those of equal shapes are one batch, the
    negative first.
    """
    out = [torch.zeros_like(x) for _ in conds]
    todo = [(c, i) for i, listed in enumerate(conds) for c in listed or []]
    while todo:
        first = todo[0][0]["model_conds"]
        batch = [t for t in todo if fits(t[0]["model_conds"], first)][::-1]
        todo = [t for t in todo if not any(t is b for b in batch)]
        n = len(batch)
        keyword = {k: join([t[0]["model_conds"][k].cond for t in batch], x.shape[0]) for k in first}
        to = {
            **options["transformer_options"],
            "cond_or_uncond": [i for _, i in batch],
            "uuids": [c["uuid"] for c, _ in batch],
            "sigmas": sigma,
        }
        control = batch[0][0].get("control")
        apply = lambda x, t, c: model.apply_model(x, t, control=control, **c)  # noqa: E731
        args = (torch.cat([x] * n), torch.cat([sigma] * n), {**keyword, "transformer_options": to})
        wrapper = options.get("model_function_wrapper")
        result = wrapper(apply, args) if wrapper else apply(*args)
        for part, (_, i) in zip(result.chunk(n), batch):
            out[i] = part
    return out


def fits(a, b):
    return a.keys() == b.keys() and all(
        a[k].can_concat(b[k]) if torch.is_tensor(a[k].cond) else a[k].cond is b[k].cond for k in a
    )


def join(values, rows):
    if torch.is_tensor(values[0]):
        return torch.cat([v.repeat(rows, *[1] * (v.dim() - 1)) for v in values])
    return values[0]
