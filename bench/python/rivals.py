# Copyright The distorch authors.
# SPDX-License-Identifier: Apache-2.0
"""FLUX.1 under a cap of device memory, offloaded by diffusers and by accelerate.

usage: rivals.py accelerate|diffusers-blocks|diffusers-leaves CAP_GB STEPS BASE [small]

The model is diffusers' FluxTransformer2DModel with FLUX.1-dev's shapes, bf16; its weights are stretches of the base
file, as forward.py takes them. Prints one line of JSON: {"seconds": [s, ...], "peak": bytes, "versions": {...}} or
{"error": text}.
"""

import json
import sys
import time

import torch

import forward


def make(base, small):
    from diffusers import FluxTransformer2DModel

    config = dict(patch_size=1, in_channels=64, num_layers=19, num_single_layers=38, attention_head_dim=128, num_attention_heads=24,
                  joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=True, axes_dims_rope=(16, 56, 56))  # fmt: skip
    if small:
        config.update(num_layers=1, num_single_layers=2, num_attention_heads=2)
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config)
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval()
    for name, p in model.state_dict().items():
        forward.stretch(base, name, tuple(p.shape), p)
    return model


def offload(model, how, device):
    if how == "accelerate":
        from accelerate import cpu_offload

        return cpu_offload(model, execution_device=device, offload_buffers=True)
    more = {"offload_type": "block_level", "num_blocks_per_group": 1} if how == "diffusers-blocks" else {"offload_type": "leaf_level"}
    model.enable_group_offload(onload_device=device, offload_device=torch.device("cpu"), use_stream=True, **more)
    return model


def main():
    how, cap, steps, path = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    small = len(sys.argv) > 5
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    begin = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(cap * 1e9 / torch.cuda.get_device_properties(0).total_memory)
    base = forward.read(path, torch.bfloat16)
    model = offload(make(base, small), how, device)
    rows, text = (4, 8) if small else (64, 512)
    g = torch.Generator().manual_seed(1)
    draw = lambda *s: torch.randn(*s, generator=g).to(device, torch.bfloat16)  # noqa: E731
    ids = torch.zeros(rows * rows, 3)
    ids[:, 1], ids[:, 2] = torch.arange(rows).repeat_interleave(rows), torch.arange(rows).repeat(rows)
    given = dict(
        hidden_states=draw(1, rows * rows, 64), encoder_hidden_states=draw(1, text, 4096), pooled_projections=draw(1, 768),
        timestep=torch.tensor([0.75], device=device, dtype=torch.bfloat16), img_ids=ids.to(device), txt_ids=torch.zeros(text, 3, device=device),
        guidance=torch.tensor([3.5], device=device), return_dict=False,
    )  # fmt: skip
    ready, seconds = time.perf_counter() - begin, []
    with torch.inference_mode():
        for i in range(steps + 1):
            begin = time.perf_counter()
            model(**given)[0].float().cpu()
            if i:
                seconds.append(time.perf_counter() - begin)
    import accelerate
    import diffusers

    print(json.dumps({
        "seconds": seconds, "load": ready, "peak": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__, "accelerate": accelerate.__version__},
    }))  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except Exception as e:  # the bench goes on without this one
        print(json.dumps({"error": f"{type(e).__name__}: {e}"}))
