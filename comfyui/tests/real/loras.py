# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small LoRAs of the demo model under the names that trainers give them."""

import pathlib

import torch
from safetensors.torch import save_file

WIDTH = 256
RANK = 4

# Linears of FLUX by their own names: outputs, inputs.
KOHYA = {
    "double_blocks.0.img_attn.qkv": (3 * WIDTH, WIDTH),
    "double_blocks.1.txt_mlp.2": (WIDTH, 4 * WIDTH),
    "double_blocks.1.img_mod.lin": (6 * WIDTH, WIDTH),
    "single_blocks.0.linear1": (7 * WIDTH, WIDTH),
    "single_blocks.3.linear2": (WIDTH, 5 * WIDTH),
}

# By diffusers' names: the first three are slices of one linear of FLUX's own,
# and the last has scale and shift in the other order.
PEFT = {
    "transformer_blocks.0.attn.to_q": (WIDTH, WIDTH),
    "transformer_blocks.0.attn.to_v": (WIDTH, WIDTH),
    "single_transformer_blocks.1.proj_mlp": (4 * WIDTH, WIDTH),
    "transformer_blocks.1.ff.net.2": (WIDTH, 4 * WIDTH),
    "single_transformer_blocks.2.proj_out": (WIDTH, 5 * WIDTH),
    "norm_out.linear": (2 * WIDTH, WIDTH),
}


def _pair(generator, outputs: int, inputs: int):
    up = torch.randn(outputs, RANK, generator=generator)
    down = torch.randn(RANK, inputs, generator=generator) * 0.5 / inputs**0.5
    return up.to(torch.bfloat16), down.to(torch.bfloat16)


def write(folder: pathlib.Path):
    """kohya.safetensors and peft.safetensors."""
    g = torch.Generator().manual_seed(6)
    kohya, peft = {}, {}
    for name, shape in KOHYA.items():
        up, down = _pair(g, *shape)
        key = "lora_unet_" + name.replace(".", "_")
        kohya |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(RANK / 2)}
    for name, shape in PEFT.items():
        up, down = _pair(g, *shape)
        peft |= {f"transformer.{name}.lora_B.weight": up, f"transformer.{name}.lora_A.weight": down}
    save_file(kohya, folder / "kohya.safetensors")
    save_file(peft, folder / "peft.safetensors")
