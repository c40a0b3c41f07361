# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later


import hashlib
import json
import types
import unittest

import torch

import case
from comfyui import lora, wire

QKV = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
H = 32


class LoRAAdapter:
    name = "lora"

    def __init__(self, up, down, alpha=None, mid=None, dora=None, reshape=None):
        self.weights = (up, down, alpha, mid, dora, reshape)


def swap_scale_shift(weight):
    return weight


def other_function(weight):
    return weight


def pair(seed, rows=3 * H, rank=2):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=g), torch.randn(rank, H, generator=g)


class Patches(case.Connected):
    def blobs(self, patcher):
        self.server.forwards.clear()
        self.sample(patcher, steps=1)
        uses = json.loads(self.server.forwards[0][0].get("loras", "[]"))
        return uses, [wire.unpack(bytearray(self.server.blobs[u["digest"]])) for u in uses]

    def test_blob(self):
        up, down = pair(1, H)
        key_norm = torch.ones(16)
        patcher = self.load().clone()
        taken = patcher.add_patches(
            {
                (QKV, (0, H, H)): LoRAAdapter(up, down, 4.0),
                ("diffusion_model.final_layer.adaLN_modulation.1.weight", None, swap_scale_shift): LoRAAdapter(
                    *pair(2, 2 * H)
                ),
                "diffusion_model.double_blocks.0.img_attn.qkv.bias": ("diff", (torch.full((3 * H,), 0.5),)),
                # ComfyUI of 2026 has another name than the checkpoint for the scales of norms
                "diffusion_model.double_blocks.0.img_attn.norm.key_norm.weight": ("diff", (key_norm,)),
                "diffusion_model.no_such_layer.weight": LoRAAdapter(up, down),
            },
            0.75,
        )
        self.assertEqual(len(taken), 4)
        uses, files = self.blobs(patcher)
        self.assertEqual([u["strength"] for u in uses], [0.75])
        tensors, metadata = files[0]
        self.assertEqual(
            json.loads(metadata["distorch_lora"]),
            [
                {
                    "alpha": None,
                    "function": None,
                    "key": "double_blocks.0.img_attn.norm.key_norm.scale",
                    "offset": None,
                    "tensors": ["0.diff"],
                    "type": "diff",
                },
                {
                    "alpha": None,
                    "function": None,
                    "key": "double_blocks.0.img_attn.qkv.bias",
                    "offset": None,
                    "tensors": ["1.diff"],
                    "type": "diff",
                },
                {
                    "alpha": 4.0,
                    "function": None,
                    "key": "double_blocks.0.img_attn.qkv.weight",
                    "offset": [0, H, H],
                    "tensors": ["2.up", "2.down"],
                    "type": "lora",
                },
                {
                    "alpha": None,
                    "function": "swap_scale_shift",
                    "key": "final_layer.adaLN_modulation.1.weight",
                    "offset": None,
                    "tensors": ["3.up", "3.down"],
                    "type": "lora",
                },
            ],
        )
        self.assertTrue(
            torch.equal(tensors["2.up"], up)
            and torch.equal(tensors["2.down"], down)
            and torch.equal(tensors["0.diff"], key_norm)
        )

    def test_several_and_strengths(self):
        a, b = LoRAAdapter(*pair(1)), LoRAAdapter(*pair(2))
        first = self.load().clone()
        first.add_patches({QKV: a}, 0.5)
        second = first.clone()
        second.add_patches({QKV: b}, -1.0)
        one, two = self.blobs(first)[0], self.blobs(second)[0]
        self.assertEqual([u["strength"] for u in two], [0.5, -1.0])
        self.assertEqual(one, two[:1], "a clone's LoRA changed the one it was made from")
        again = self.load().clone()
        before = len(self.server.blobs)
        again.add_patches({QKV: a}, 0.9)
        third = self.blobs(again)[0]
        self.assertEqual(
            (third[0]["digest"], third[0]["strength"], len(self.server.blobs)), (one[0]["digest"], 0.9, before)
        )

    def test_digest_is_of_the_content(self):
        up, down = pair(1)
        file = lora.read({QKV: LoRAAdapter(up, down)}, {QKV: "k"}, 1).bytes()
        again = lora.read({QKV: LoRAAdapter(up.clone(), down.clone())}, {QKV: "k"}, 2).bytes()
        self.assertEqual(hashlib.sha256(file).hexdigest(), hashlib.sha256(again).hexdigest())
        digests = lora.Digests()
        self.assertEqual(
            digests.of(lora.read({QKV: LoRAAdapter(up, down)}, {QKV: "k"}, 1)), hashlib.sha256(file).hexdigest()
        )

    def test_digests_are_not_of_freed_tensors(self):
        digests, seen = lora.Digests(), set()
        for seed in range(50):  # freed tensors' ids come again
            seen.add(digests.of(lora.read({QKV: LoRAAdapter(*pair(seed))}, {QKV: "k"}, 1)))
        self.assertEqual(len(seen), 50)

    def test_refused(self):
        up, down = pair(1)
        for name, value, at in (
            ("LoHa", types.SimpleNamespace(name="loha", weights=()), QKV),
            ("LoKr", types.SimpleNamespace(name="lokr", weights=()), QKV),
            ("OFT", types.SimpleNamespace(name="oft", weights=()), QKV),
            ("DoRA", LoRAAdapter(up, down, dora=torch.ones(1)), QKV),
            ("lora_mid", LoRAAdapter(up, down, mid=torch.ones(1)), QKV),
            ("reshape_weight", LoRAAdapter(up, down, reshape=[1, 2]), QKV),
            ("do not fit", LoRAAdapter(up, torch.ones(3, H)), QKV),
            ("kind set", ("set", (up,)), QKV),
            ("pad_weight", ("diff", (up, {"pad_weight": True})), QKV),
            ("other_function", LoRAAdapter(up, down), (QKV, None, other_function)),
        ):
            patcher = self.load().clone()
            with self.subTest(name), self.refused("img_attn.qkv.weight", name):
                patcher.add_patches({at: value})
            self.assertEqual(patcher.patches, {}, "half of a LoRA was taken")


class Wire(unittest.TestCase):
    def test_round_trip(self):
        for dtype in wire.DTYPES.values():
            t = {
                "b": torch.arange(6).reshape(2, 3).to(dtype),
                "a": torch.zeros(0, 4, dtype=dtype),
                "s": torch.ones((), dtype=dtype),
            }
            body = wire.pack(t, {"z": "1", "a": "ö"})
            got, metadata = wire.unpack(body)
            self.assertEqual(metadata, {"a": "ö", "z": "1"})
            self.assertTrue(all(torch.equal(got[k], t[k]) and got[k].dtype == dtype for k in t))
            self.assertEqual(body, wire.pack(dict(reversed(t.items())), {"a": "ö", "z": "1"}))

    def test_refused(self):
        good = bytes(wire.pack({"a": torch.ones(4)}))

        def header(text):
            return len(text).to_bytes(8, "little") + text

        for body in (
            b"",
            good[:7],
            good[:20],
            good[:-1],
            header(b"[]"),
            header(b"{"),
            header(b'{"a":1}'),
            (1 << 60).to_bytes(8, "little") + good[8:],
            header(b'{"a":{"dtype":"F9","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
            header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}') + bytes(4),
            header(b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}') + bytes(4),
            header(b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}') + bytes(4),
            header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}') + bytes(4),
            header(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'),
            header(b'{"__metadata__":[],"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
        ):
            with self.subTest(body[:60]), self.assertRaises(wire.Malformed):
                wire.unpack(bytearray(body))
