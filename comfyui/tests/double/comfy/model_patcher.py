# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Double: ModelPatcher as far as nodes use it. Loading asserts what loading a remote
MODEL must not do: touch a weight or take memory.
"""

import copy
import uuid


class ModelPatcher:
    def __init__(self, model, load_device, offload_device, size=0, weight_inplace_update=False):
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, size
        self.weight_inplace_update = weight_inplace_update
        self.patches, self.object_patches, self.weight_wrapper_patches, self.hook_patches, self.injections = (
            {},
            {},
            {},
            {},
            {},
        )
        self.current_hooks = None
        self.model_options = {"transformer_options": {}}
        self.patches_uuid = uuid.uuid4()
        self.wrappers = {}

    def clone(self, disable_dynamic=False, model_override=None, force_deepcopy=False):
        n = self.__class__(
            self.model,
            self.load_device,
            self.offload_device,
            self.size,
            weight_inplace_update=self.weight_inplace_update,
        )
        n.patches = {k: v[:] for k, v in self.patches.items()}
        n.patches_uuid = self.patches_uuid
        n.object_patches, n.weight_wrapper_patches = dict(self.object_patches), dict(self.weight_wrapper_patches)
        n.model_options = copy.deepcopy(self.model_options)
        n.wrappers = {k: {k1: w[:] for k1, w in v.items()} for k, v in self.wrappers.items()}
        return n

    def model_size(self):
        return self.size

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        known, taken = self.model.state_dict(), []
        for k, value in patches.items():
            key, offset, function = (k, None, None) if isinstance(k, str) else (*k, None)[:3]
            if key in known:
                self.patches.setdefault(key, []).append((strength_patch, value, strength_model, offset, function))
                taken.append(k)
        self.patches_uuid = uuid.uuid4()
        return taken

    def get_key_patches(self, filter_prefix=None):
        raise AssertionError("a weight of a remote MODEL was read")

    def set_model_patch(self, patch, name):
        self.model_options["transformer_options"].setdefault("patches", {}).setdefault(name, []).append(patch)

    def set_model_patch_replace(self, patch, name, block_name, number, transformer_index=None):
        self.model_options["transformer_options"].setdefault("patches_replace", {}).setdefault(name, {})[
            (block_name, number)
        ] = patch

    def set_model_attn1_patch(self, patch):
        self.set_model_patch(patch, "attn1_patch")

    def set_model_attn1_replace(self, patch, block_name, number, transformer_index=None):
        self.set_model_patch_replace(patch, "attn1", block_name, number, transformer_index)

    def add_object_patch(self, name, obj):
        self.object_patches[name] = obj

    def set_model_compute_dtype(self, dtype):
        self.add_object_patch("manual_cast_dtype", dtype)

    def add_weight_wrapper(self, name, function):
        self.weight_wrapper_patches.setdefault(name, []).append(function)

    def add_wrapper_with_key(self, wrapper_type, key, wrapper):
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)

    def add_wrapper(self, wrapper_type, wrapper):
        self.add_wrapper_with_key(wrapper_type, None, wrapper)

    def set_injections(self, key, injections):
        self.injections[key] = injections

    def register_all_hook_patches(self, hooks, target_dict, model_options=None, registered=None):
        return registered

    def load(self):
        assert self.size == 1 and not list(self.model.parameters()) and not list(self.model.buffers())
        assert self.model.memory_required([2, 16, 128, 128]) == 0
        self.model.manual_cast_dtype = self.object_patches.get("manual_cast_dtype")
        self.model.to(self.load_device)

    def pre_run(self):
        self.model.current_patcher = self
