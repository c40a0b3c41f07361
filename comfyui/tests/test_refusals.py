# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later


import types

import torch

import case
import server
from comfy.patcher_extension import WrappersMP


class Control:
    pass


class Hooks:
    def __init__(self, *hooks):
        self.hooks = list(hooks)


class WeightHook:
    hook_type = types.SimpleNamespace(value="weight")


class AtTheNode(case.Connected):
    """Refused where a node asks for it, long before sampling."""

    def test_by_name(self):
        for name, call in (
            ("model patch attn1_patch .ToMe, HyperTile", lambda m: m.set_model_attn1_patch(id)),
            ("model patch double_block", lambda m: m.set_model_patch(id, "double_block")),
            ("replaced attn1 blocks .PAG", lambda m: m.set_model_attn1_replace(id, "input", 3)),
            (
                "replaced dit blocks .SkipLayerGuidance",
                lambda m: m.set_model_patch_replace(id, "dit", "double_block", 0),
            ),
            (
                "wrapper easycache around the model",
                lambda m: m.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "easycache", id),
            ),
            ("wrapper without a name", lambda m: m.add_wrapper(WrappersMP.DIFFUSION_MODEL, id)),
            ("torch.compile", lambda m: m.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", id)),
            (
                "weight wrapper of diffusion_model.img_in.weight",
                lambda m: m.add_weight_wrapper("diffusion_model.img_in.weight", id),
            ),
            ("replaced object diffusion_model.img_in", lambda m: m.add_object_patch("diffusion_model.img_in", id)),
            ("injection AnimateDiff", lambda m: m.set_injections("AnimateDiff", [id])),
            ("attention override", lambda m: m.set_model_optimized_attention(id)),
            ("hook WeightHook .weight", lambda m: m.add_hook_patches(WeightHook(), {})),
            ("merge with another model", lambda m: m.add_patches({}, 0.5, 0.5)),
            ("neither merge nor save", lambda m: m.get_key_patches("diffusion_model.")),
            ("neither merge nor save", lambda m: m.model.state_dict_for_saving()),
            ("neither merge nor save", lambda m: m.state_dict_for_saving()),
            ("multi-GPU node", lambda m: m.clone(force_deepcopy=True)),
        ):
            with self.subTest(name), self.refused(name):
                call(self.load().clone())

    def test_fine(self):
        patcher = self.load().clone(disable_dynamic=True)
        patcher.add_object_patch("model_sampling", object())
        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "context_windows", id)
        self.assertFalse(patcher.is_dynamic())


class BeforeSampling(case.Connected):
    """Refused before the first forward, when conditions and options are known."""

    def refuses(self, name, change, **conditions):
        patcher = self.load().clone()
        change(patcher)
        with self.subTest(name):
            with self.refused(name):
                self.sample(patcher, positive=server.condition(**conditions))
            self.assertEqual(self.server.forwards, [])

    def test_by_name(self):
        def options(m, key, value):
            m.model_options["transformer_options"][key] = value

        self.refuses("ControlNet .Control", lambda m: None, control=Control())
        self.refuses("hook WeightHook", lambda m: None, hooks=Hooks(WeightHook()))
        self.refuses("GLIGEN", lambda m: None, gligen=("position", object(), []))
        self.refuses("model patch attn2_patch", lambda m: options(m, "patches", {"attn2_patch": [1]}))
        self.refuses("replaced attn1 blocks", lambda m: options(m, "patches_replace", {"attn1": {("input", 1): 1}}))
        self.refuses("attention override", lambda m: options(m, "optimized_attention_override", 1))
        self.refuses("rope positions", lambda m: options(m, "rope_options", {"scale_x": 2.0, "shift_x": 0.0}))
        self.refuses("weight wrapper of w", lambda m: m.weight_wrapper_patches.update(w=[id]))
        self.refuses("weight hooks", lambda m: m.hook_patches.update(h={}))
        self.refuses(
            "patched past add_patches", lambda m: m.patches.update(w=[(1, ("diff", (torch.zeros(1),)), 1, None, None)])
        )

    def test_empty_options_mean_nothing(self):
        patcher = self.load().clone()
        patcher.model_options["transformer_options"].update(
            patches={},
            patches_replace={"dit": {}},
            callbacks={"on_pre_run": {}},
            rope_options={"scale_x": 1.0, "shift_x": 0.0},
            prefetch_dynamic_vbars=False,
        )
        self.sample(patcher, steps=1)


class InForward(case.Connected):
    """What turns up only when the model is called, as some guidance nodes do."""

    def test_by_name(self):
        patcher = self.load()
        self.sample(patcher, steps=1)
        model, x = patcher.model, torch.zeros(1, 16, 8, 8)
        good = {"context": torch.zeros(1, 3, server.TEXT), "y": torch.zeros(1, server.POOLED)}
        for name, options, more in (
            ("replaced dit blocks", {"patches_replace": {"dit": {("double_block", 1): 1}}}, {}),
            ("ControlNet", {}, {"control": {"input": [x]}}),
            ("wrapper w around the model", {"wrappers": {"diffusion_model": {"w": [id]}}}, {}),
            ("input clip_fea", {}, {"clip_fea": x}),
            ("input frame_rate", {}, {"frame_rate": 25}),
        ):
            with self.subTest(name), self.refused(name):
                model.diffusion_model(x, torch.ones(1), transformer_options=options, **good, **more)
        self.assertEqual(
            model.diffusion_model(
                x.to(torch.bfloat16),
                torch.ones(1),
                transformer_options={"sigmas": 1, "sample_sigmas": 1, "unknown": 1},
                **good,
            ).shape,
            x.shape,
        )
