# Copyright The distorch authors.
# SPDX-License-Identifier: Apache-2.0
"""One FLUX.1 block on PyTorch's CPU kernels, as the other side of `make bench`.

The Go bench starts this program and talks to it in lines of JSON on stdin and stdout, so that rounds of both sides
alternate in one run and outputs are compared. It needs torch and numpy alone (`make bench-venv`).

Requests, each answered by one line ({"error": text} if it failed):

  {"op": "load", "block": "double"|"single", "dtype": "f32"|"bf16",
   "hidden": 3072, "heads": 24, "text": 256, "rows": 16, "cols": 16,
   "weights": FILE.safetensors | "seed": N}              -> {"ok": true, "weight_bytes": n, "tokens": 512}
  {"op": "inputs", "dir": DIR}                            -> {"ok": true}
  {"op": "run", "times": 1}                               -> {"seconds": [s, ...]}
  {"op": "outputs", "dir": DIR}                           -> {"ok": true}
  {"op": "quit"}

Weights have FLUX.1's names below double_blocks.0. or single_blocks.0.; with "seed" they follow `recipe` below.
Inputs and outputs are raw little-endian f32, row-major, one file NAME.bin each: img [rows*cols, hidden],
txt [text, hidden] and vec [hidden] into a double block, img and txt out of it; x [text + rows*cols, hidden] and vec
into a single block, x out of it. In bf16, inputs are rounded to bf16 on reading and outputs widened on writing.
The sequence is text, then image; with the defaults 256 + 256 = 512 tokens for both kinds of block.

Arithmetic is that of ComfyUI's comfy/ldm/flux (layers.py, math.py): rope angles in f64 and its table in f32, made once
and outside the measured time, as a forward makes it once for all blocks.
"""

import argparse
import json
import math
import os
import struct
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

AXES = (16, 56, 56)  # rope dimensions per axis at a head of 128
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
MAX_HEADER = 100 << 20


def shapes(block, d, head):
    """Names and shapes of one block's weights."""
    out = {}

    def linear(name, rows, columns):
        out[name + ".weight"], out[name + ".bias"] = (rows, columns), (rows,)

    if block == "double":
        for s in ("img", "txt"):
            linear(f"{s}_mod.lin", 6 * d, d)
            linear(f"{s}_attn.qkv", 3 * d, d)
            linear(f"{s}_attn.proj", d, d)
            linear(f"{s}_mlp.0", 4 * d, d)
            linear(f"{s}_mlp.2", d, 4 * d)
            out[f"{s}_attn.norm.query_norm.scale"] = out[f"{s}_attn.norm.key_norm.scale"] = (head,)
        return {"double_blocks.0." + k: v for k, v in out.items()}
    linear("modulation.lin", 3 * d, d)
    linear("linear1", 7 * d, d)
    linear("linear2", d, 5 * d)
    out["norm.query_norm.scale"] = out["norm.key_norm.scale"] = (head,)
    return {"single_blocks.0." + k: v for k, v in out.items()}


def recipe(name, shape, seed):
    """Weights that another program makes alike: u = splitmix64(fnv1a64(name) ^ seed, i) >> 40, v = u / 2^23 - 1.

    Matrices are v/32, v/64 where they have more than 4096 columns; biases v/16; norm scales 1 + v/8. All are exact in
    f32.
    """
    key = 0xCBF29CE484222325
    for b in name.encode():
        key = (key ^ b) * 0x100000001B3 & (2**64 - 1)
    key ^= seed
    count = math.prod(shape)
    out = np.empty(count, np.float32)
    for at in range(0, count, 1 << 22):  # in pieces, to stay in cache and memory
        i = np.arange(at + 1, min(at + (1 << 22), count) + 1, dtype=np.uint64)
        z = np.uint64(key) + i * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) >> np.uint64(40)
        out[at : at + len(i)] = z.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    if name.endswith(".scale"):
        out = 1 + out / 8
    elif len(shape) == 1:
        out /= 16
    else:
        out /= 64 if shape[1] > 4096 else 32
    return torch.from_numpy(out.reshape(shape))


def read_safetensors(path, want):
    """The wanted tensors of a file, checked against its header."""
    with open(path, "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        if length > MAX_HEADER:
            raise ValueError(f"{path}: header of {length} bytes")
        header = json.loads(f.read(length))
        out = {}
        for name, shape in want.items():
            entry = header.get(name)
            if entry is None or tuple(entry["shape"]) != shape or entry["dtype"] not in STORED:
                raise ValueError(f"{path}: {name} is missing or is not {shape} in {'/'.join(STORED)}: {entry}")
            begin, end = entry["data_offsets"]
            f.seek(8 + length + begin)
            out[name] = torch.frombuffer(bytearray(f.read(end - begin)), dtype=STORED[entry["dtype"]]).view(shape)
        return out


def rope_table(text, rows, cols, head):
    """cos and sin [tokens, head/2]: text at the origin, image tokens at (0, row, column)."""
    axes = AXES if head == sum(AXES) else (head - 2 * (head * 7 // 16), head * 7 // 16, head * 7 // 16)
    ids = torch.zeros(text + rows * cols, 3, dtype=torch.float64)
    ids[text:, 1] = torch.arange(rows).repeat_interleave(cols)
    ids[text:, 2] = torch.arange(cols).repeat(rows)
    angles = [ids[:, i, None] / 10000.0 ** (torch.arange(0, n, 2, dtype=torch.float64) / n) for i, n in enumerate(axes)]
    angle = torch.cat(angles, -1)
    return angle.cos().float(), angle.sin().float()


class Block:
    """One block with its weights, in one dtype."""

    def __init__(self, r):
        self.kind, self.dtype = r["block"], DTYPES[r["dtype"]]
        self.hidden, self.heads = r.get("hidden", 3072), r.get("heads", 24)
        self.text, rows, cols = r.get("text", 256), r.get("rows", 16), r.get("cols", 16)
        self.image = rows * cols
        head = self.hidden // self.heads
        want = shapes(self.kind, self.hidden, head)
        made = read_safetensors(r["weights"], want) if r.get("weights") else {k: recipe(k, s, r.get("seed", 1)) for k, s in want.items()}
        self.w = {k.split(".", 2)[2]: made.pop(k).to(self.dtype) for k in list(made)}
        self.cos, self.sin = rope_table(self.text, rows, cols, head)
        self.forward = self.double if self.kind == "double" else self.single
        self.given, self.made = {}, {}

    def names(self):
        if self.kind == "double":
            return {"img": (1, self.image, self.hidden), "txt": (1, self.text, self.hidden), "vec": (1, self.hidden)}
        return {"x": (1, self.text + self.image, self.hidden), "vec": (1, self.hidden)}

    def linear(self, name, x):
        return F.linear(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def modulation(self, name, vec, n):
        return self.linear(name, F.silu(vec))[:, None, :].chunk(n, -1)

    def norm(self, x, shift, scale):
        return torch.addcmul(shift, F.layer_norm(x, (self.hidden,), eps=1e-6), 1 + scale)

    def split_heads(self, qkv, norm):
        b, s, _ = qkv.shape
        q, k, v = qkv.view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = F.rms_norm(q, q.shape[-1:], self.w[norm + ".query_norm.scale"], 1e-6)
        k = F.rms_norm(k, k.shape[-1:], self.w[norm + ".key_norm.scale"], 1e-6)
        return q, k, v

    def rope(self, x):
        pairs = x.float().unflatten(-1, (-1, 2))
        a, b = pairs[..., 0], pairs[..., 1]
        turned = torch.stack((self.cos * a - self.sin * b, self.sin * a + self.cos * b), -1)
        return turned.flatten(-2).to(x.dtype)

    def attention(self, q, k, v):
        return F.scaled_dot_product_attention(self.rope(q), self.rope(k), v).transpose(1, 2).flatten(2)

    def mlp(self, name, x):
        return self.linear(name + ".2", F.gelu(self.linear(name + ".0", x), approximate="tanh"))

    def double(self, img, txt, vec):
        im, tm = self.modulation("img_mod.lin", vec, 6), self.modulation("txt_mod.lin", vec, 6)
        iq, ik, iv = self.split_heads(self.linear("img_attn.qkv", self.norm(img, im[0], im[1])), "img_attn.norm")
        tq, tk, tv = self.split_heads(self.linear("txt_attn.qkv", self.norm(txt, tm[0], tm[1])), "txt_attn.norm")
        a = self.attention(torch.cat((tq, iq), 2), torch.cat((tk, ik), 2), torch.cat((tv, iv), 2))
        img = img + im[2] * self.linear("img_attn.proj", a[:, self.text :])
        img = img + im[5] * self.mlp("img_mlp", self.norm(img, im[3], im[4]))
        txt = txt + tm[2] * self.linear("txt_attn.proj", a[:, : self.text])
        txt = txt + tm[5] * self.mlp("txt_mlp", self.norm(txt, tm[3], tm[4]))
        return {"img": img, "txt": txt}

    def single(self, x, vec):
        shift, scale, gate = self.modulation("modulation.lin", vec, 3)
        u = self.linear("linear1", self.norm(x, shift, scale))
        qkv, wide = u.split((3 * self.hidden, 4 * self.hidden), -1)
        a = self.attention(*self.split_heads(qkv, "norm"))
        return {"x": x + gate * self.linear("linear2", torch.cat((a, F.gelu(wide, approximate="tanh")), -1))}

    def read(self, folder):
        for name, shape in self.names().items():
            flat = np.fromfile(os.path.join(folder, name + ".bin"), dtype="<f4")
            if flat.size != math.prod(shape):
                raise ValueError(f"{folder}/{name}.bin holds {flat.size} numbers, want {shape}")
            self.given[name] = torch.from_numpy(flat.reshape(shape)).to(self.dtype)

    def run(self, times):
        if not self.given:
            raise ValueError("run before inputs")
        seconds = []
        for _ in range(times):
            begin = time.perf_counter()
            self.made = self.forward(**self.given)
            seconds.append(time.perf_counter() - begin)
        return seconds

    def write(self, folder):
        for name, value in self.made.items():
            value.float().numpy().astype("<f4").tofile(os.path.join(folder, name + ".bin"))


def answer(request, blocks):
    op = request["op"]
    if op == "load":
        blocks[:] = []  # frees the previous one first
        blocks.append(Block(request))
        block = blocks[0]
        size = sum(w.numel() * w.element_size() for w in block.w.values())
        return {"ok": True, "weight_bytes": size, "tokens": block.text + block.image}
    if op not in ("inputs", "run", "outputs"):
        raise ValueError(f"there is no op {op!r}")
    if not blocks:
        raise ValueError(f"{op} before load")
    if op == "run":
        return {"seconds": blocks[0].run(request.get("times", 1))}
    if op == "inputs":
        blocks[0].read(request["dir"])
    else:
        blocks[0].write(request["dir"])
    return {"ok": True}


def main():
    args = argparse.ArgumentParser(description="One FLUX.1 block on PyTorch's CPU kernels.")
    args.add_argument("--threads", type=int, default=2)
    threads = args.parse_args().threads
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    say = {"ready": True, "torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()}
    print(json.dumps(say), flush=True)
    blocks = []
    with torch.inference_mode():
        for line in sys.stdin:
            try:
                request = json.loads(line)
                if request.get("op") == "quit":
                    break
                reply = answer(request, blocks)
            except Exception as e:  # whatever it is, the other side must hear it
                reply = {"error": f"{type(e).__name__}: {e}"}
            print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
