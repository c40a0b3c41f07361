# Copyright The distorch authors.
# SPDX-License-Identifier: Apache-2.0
"""A whole FLUX.1 forward in eager PyTorch, the other side of the torch engine's figures.

The Go bench starts this program and talks to it in lines of JSON on stdin and stdout, so that rounds of both sides
alternate. It needs torch alone. Requests, each answered by one line ({"error": text} if it failed):

  {"op": "load", "device": "cpu", "dtype": "f32"|"bf16", "hidden": n, "heads": n, "double": n, "single": n,
   "text": n, "rows": n, "cols": n, "base": FILE}   -> {"ok": true, "attention": NAME}
  {"op": "inputs", "dir": DIR}                       -> {"ok": true}; NAME.bin, raw little-endian f32
  {"op": "run", "times": n}                          -> {"seconds": [s, ...]}, each from inputs to output on the host
  {"op": "output", "file": FILE}                     -> {"ok": true}; raw little-endian f32
  {"op": "quit"}

Weights have FLUX.1's names and are stretches of the base file (raw bf16, 2^25 numbers, taken round and round): a
weight begins at fnv1a64(name) mod 2^25. Arithmetic is that of ComfyUI's comfy/ldm/flux.
"""

import ctypes
import json
import math
import os
import sys
import time

import torch
import torch.nn.functional as F

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
AXES = (16, 56, 56)
PATCH = 2


def begin_of(name, count):
    key = 0xCBF29CE484222325
    for b in name.encode():
        key = ((key ^ b) * 0x100000001B3) & (2**64 - 1)
    return key % count


def stretch(base, name, shape, into=None):
    n, at = math.prod(shape), begin_of(name, base.numel())
    out = torch.empty(n, dtype=base.dtype, device=base.device) if into is None else into.view(n)
    done = 0
    while done < n:
        m = min(n - done, base.numel() - at)
        out[done : done + m] = base[at : at + m]
        done, at = done + m, 0
    return out.view(shape)


def read(path, dtype):
    return torch.frombuffer(bytearray(open(path, "rb").read()), dtype=dtype)


class Flux:
    def __init__(self, r):
        self.device, self.dtype = torch.device(r["device"]), DTYPES[r["dtype"]]
        self.d, self.heads, self.n_double, self.n_single = r["hidden"], r["heads"], r["double"], r["single"]
        self.text, self.rows, self.cols = r["text"], r["rows"], r["cols"]
        base = read(r["base"], torch.bfloat16).to(self.device)
        self.w = {}
        for name, shape in self.shapes():
            self.w[name] = stretch(base, name, shape).to(self.dtype)
        self.frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128).to(self.device)
        ids = torch.zeros(self.text + self.rows * self.cols, 3, dtype=torch.float64)
        ids[self.text :, 1] = torch.arange(self.rows).repeat_interleave(self.cols)
        ids[self.text :, 2] = torch.arange(self.cols).repeat(self.rows)
        angle = [ids[:, i, None] / 10000.0 ** (torch.arange(0, n, 2, dtype=torch.float64) / n) for i, n in enumerate(AXES)]
        angle = torch.cat(angle, -1)
        self.cos, self.sin = angle.cos().float().to(self.device), angle.sin().float().to(self.device)
        self.given, self.made = {}, None

    def shapes(self):
        d, out = self.d, []

        def linear(name, rows, columns):
            out.extend([(name + ".weight", (rows, columns)), (name + ".bias", (rows,))])

        linear("img_in", d, 16 * PATCH * PATCH)
        linear("txt_in", d, 4096)
        for name, width in (("time_in", 256), ("guidance_in", 256), ("vector_in", 768)):
            linear(name + ".in_layer", d, width)
            linear(name + ".out_layer", d, d)
        for i in range(self.n_double):
            for s in ("img", "txt"):
                p = f"double_blocks.{i}.{s}"
                linear(p + "_mod.lin", 6 * d, d)
                linear(p + "_attn.qkv", 3 * d, d)
                linear(p + "_attn.proj", d, d)
                linear(p + "_mlp.0", 4 * d, d)
                linear(p + "_mlp.2", d, 4 * d)
                out.extend((f"{p}_attn.norm.{n}_norm.scale", (d // self.heads,)) for n in ("query", "key"))
        for i in range(self.n_single):
            p = f"single_blocks.{i}"
            linear(p + ".modulation.lin", 3 * d, d)
            linear(p + ".linear1", 7 * d, d)
            linear(p + ".linear2", d, 5 * d)
            out.extend((f"{p}.norm.{n}_norm.scale", (d // self.heads,)) for n in ("query", "key"))
        linear("final_layer.adaLN_modulation.1", 2 * d, d)
        linear("final_layer.linear", 16 * PATCH * PATCH, d)
        return out

    def linear(self, name, x):
        return F.linear(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def embed(self, name, t):
        angle = t.float()[:, None] * self.frequencies
        return self.two(name, torch.cat((angle.cos(), angle.sin()), -1).to(self.dtype))

    def two(self, name, x):
        return self.linear(name + ".out_layer", F.silu(self.linear(name + ".in_layer", x)))

    def modulation(self, name, silu, n):
        return self.linear(name, silu)[:, None, :].chunk(n, -1)

    def norm(self, x, shift, scale):
        return torch.addcmul(shift, F.layer_norm(x, (self.d,), eps=1e-6), 1 + scale)

    def split(self, qkv, norm):
        b, s, _ = qkv.shape
        q, k, v = qkv.view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = F.rms_norm(q, q.shape[-1:], self.w[norm + ".query_norm.scale"], 1e-6)
        k = F.rms_norm(k, k.shape[-1:], self.w[norm + ".key_norm.scale"], 1e-6)
        return q, k, v

    def rope(self, x):
        pairs = x.float().unflatten(-1, (-1, 2))
        a, b = pairs[..., 0], pairs[..., 1]
        return torch.stack((self.cos * a - self.sin * b, self.sin * a + self.cos * b), -1).flatten(-2).to(x.dtype)

    def attention(self, q, k, v):
        return F.scaled_dot_product_attention(self.rope(q), self.rope(k), v).transpose(1, 2).flatten(2)

    def mlp(self, name, x):
        return self.linear(name + ".2", F.gelu(self.linear(name + ".0", x), approximate="tanh"))

    def double(self, i, img, txt, vec):
        p, s = f"double_blocks.{i}.", F.silu(vec)
        im, tm = self.modulation(p + "img_mod.lin", s, 6), self.modulation(p + "txt_mod.lin", s, 6)
        iq, ik, iv = self.split(self.linear(p + "img_attn.qkv", self.norm(img, im[0], im[1])), p + "img_attn.norm")
        tq, tk, tv = self.split(self.linear(p + "txt_attn.qkv", self.norm(txt, tm[0], tm[1])), p + "txt_attn.norm")
        a = self.attention(torch.cat((tq, iq), 2), torch.cat((tk, ik), 2), torch.cat((tv, iv), 2))
        img = img + im[2] * self.linear(p + "img_attn.proj", a[:, self.text :])
        img = img + im[5] * self.mlp(p + "img_mlp", self.norm(img, im[3], im[4]))
        txt = txt + tm[2] * self.linear(p + "txt_attn.proj", a[:, : self.text])
        txt = txt + tm[5] * self.mlp(p + "txt_mlp", self.norm(txt, tm[3], tm[4]))
        return img, txt

    def single(self, i, x, vec):
        p = f"single_blocks.{i}."
        shift, scale, gate = self.modulation(p + "modulation.lin", F.silu(vec), 3)
        qkv, wide = self.linear(p + "linear1", self.norm(x, shift, scale)).split((3 * self.d, 4 * self.d), -1)
        a = self.attention(*self.split(qkv, p + "norm"))
        return x + gate * self.linear(p + "linear2", torch.cat((a, F.gelu(wide, approximate="tanh")), -1))

    def forward(self, x, timestep, context, y, guidance):
        b, c, h, w = x.shape
        p = PATCH
        tokens = x.to(self.dtype).view(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)
        img, txt = self.linear("img_in", tokens), self.linear("txt_in", context.to(self.dtype))
        vec = self.embed("time_in", timestep * 1000)  # stays float32, as the graph has it
        vec = vec + self.embed("guidance_in", guidance.to(self.dtype) * 1000) + self.two("vector_in", y.to(self.dtype))
        for i in range(self.n_double):
            img, txt = self.double(i, img, txt, vec)
        both = torch.cat((txt, img), 1)
        for i in range(self.n_single):
            both = self.single(i, both, vec)
        shift, scale = self.modulation("final_layer.adaLN_modulation.1", F.silu(vec), 2)
        out = self.linear("final_layer.linear", self.norm(both[:, self.text :], shift, scale))
        return out.view(b, h // p, w // p, c, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w).float()

    def inputs(self, folder):
        shapes = {
            "x": (1, 16, PATCH * self.rows, PATCH * self.cols), "timestep": (1,), "context": (1, self.text, 4096),
            "y": (1, 768), "guidance": (1,),
        }  # fmt: skip
        self.given = {n: read(os.path.join(folder, n + ".bin"), torch.float32).view(s) for n, s in shapes.items()}

    def run(self, times):
        seconds = []
        for _ in range(times):
            begin = time.perf_counter()
            out = self.forward(**{n: v.to(self.device) for n, v in self.given.items()})
            self.made = out.cpu()
            seconds.append(time.perf_counter() - begin)
        return seconds


def attention_of(device, dtype):
    """What PyTorch chooses by itself."""
    q = torch.zeros(1, 2, 512, 128, dtype=dtype, device=device)
    return {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}.get(int(torch._fused_sdp_choice(q, q, q)), "another")


def answer(r, model):
    op = r["op"]
    if op == "load":
        model[:] = []
        model.append(Flux(r))
        return {"ok": True, "attention": attention_of(model[0].device, model[0].dtype)}
    if op == "inputs":
        model[0].inputs(r["dir"])
    elif op == "run":
        return {"seconds": model[0].run(r.get("times", 1))}
    elif op == "output":
        with open(r["file"], "wb") as f:
            out = model[0].made.contiguous()
            f.write(ctypes.string_at(out.data_ptr(), out.numel() * 4))
    else:
        raise ValueError(f"there is no op {op!r}")
    return {"ok": True}


def main():
    torch.set_num_threads(int(sys.argv[1]))
    say = {"ready": True, "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    print(json.dumps(say), flush=True)
    model = []
    with torch.inference_mode():
        for line in sys.stdin:
            try:
                r = json.loads(line)
                if r.get("op") == "quit":
                    break
                reply = answer(r, model)
            except Exception as e:  # whatever it is, the other side must hear it
                reply = {"error": f"{type(e).__name__}: {e}"}
            print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
