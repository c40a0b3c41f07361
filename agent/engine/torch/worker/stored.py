# Copyright The distorch authors.
# SPDX-License-Identifier: Apache-2.0
"""Stored weights to float32, on the device that holds them.

Every function takes rows of blocks as uint8 [n, bytes] and gives float32 [n, elements]. Products of a scale and a code
are exact, so that these are the values of model/tensor/block.go bit for bit; block layouts are those of ggml-common.h.
"""

import torch

CHUNK = {"cpu": 1 << 18}  # elements expanded at a time, by kind of device; the agent counts 24 bytes for each

PLAIN = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"}
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def f16(b, at, n=1):
    return b[:, at : at + 2 * n].contiguous().view(torch.float16).to(torch.float32)


def i8(b):
    return b.contiguous().view(torch.int8)


def nibbles(q, codes=True):
    """[..., k] bytes to [..., 2k]: low nibbles, then high ones."""
    q = torch.cat((q & 15, q >> 4), -1)
    return q.view(torch.int8) if codes else q


def bits(b, n):
    """Four bytes as a little-endian word: its n bits, one per element."""
    return (b.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=b.device) & 1).flatten(-2)[..., :n].view(torch.int8)


def q8_0(b):
    return f16(b, 0) * i8(b[:, 2:]).to(torch.float32)


def q4_0(b):
    return f16(b, 0) * (nibbles(b[:, 2:]) - 8)


def q4_1(b):
    return f16(b, 0) * nibbles(b[:, 4:]) + f16(b, 2)


def q5_0(b):
    return f16(b, 0) * ((nibbles(b[:, 6:]) | bits(b[:, 2:6], 32) << 4) - 16)


def q5_1(b):
    return f16(b, 0) * (nibbles(b[:, 8:]) | bits(b[:, 4:8], 32) << 4) + f16(b, 2)


def pairs(q):
    """[n, k, w] bytes to [n, k, 4, w]: their bit pairs, lowest first."""
    shift = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=q.device).view(1, 1, 4, 1)
    return q.unsqueeze(2) >> shift & 3


def q2_k(b):
    n = b.shape[0]
    scale = f16(b, 80) * (b[:, :16] & 15)
    least = f16(b, 82) * (b[:, :16] >> 4)
    q = pairs(b[:, 16:80].reshape(n, 2, 32)).reshape(n, 16, 16)
    return scale.unsqueeze(-1) * q - least.unsqueeze(-1)


def q3_k(b):
    n, s = b.shape[0], b[:, 96:108]
    low = torch.cat((s[:, :8] & 15, s[:, :8] >> 4), -1)
    high = pairs(s[:, 8:].reshape(n, 1, 4)).reshape(n, 16)
    scale = f16(b, 108) * ((low | high << 4).view(torch.int8) - 32)
    third = (b[:, :32].unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=b.device).view(1, 8, 1) & 1).view(n, 16, 16)
    q = pairs(b[:, 32:96].reshape(n, 2, 32)).reshape(n, 16, 16)
    return scale.unsqueeze(-1) * ((q | third << 2).view(torch.int8) - 4)


def k_scales(s):
    """Twelve bytes to eight scales and eight minimums of six bits."""
    a, b, c = s[:, :4], s[:, 4:8], s[:, 8:12]
    return torch.cat((a & 63, c & 15 | a >> 6 << 4), -1), torch.cat((b & 63, c >> 4 | b >> 6 << 4), -1)


def q4_k(b):
    n = b.shape[0]
    scale, least = k_scales(b[:, 4:16])
    q = nibbles(b[:, 16:].reshape(n, 4, 32)).reshape(n, 8, 32)
    return (f16(b, 0) * scale).unsqueeze(-1) * q - (f16(b, 2) * least).unsqueeze(-1)


def q5_k(b):
    n = b.shape[0]
    scale, least = k_scales(b[:, 4:16])
    fifth = b[:, 16:48].unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=b.device).view(1, 8, 1) & 1
    q = nibbles(b[:, 48:].reshape(n, 4, 32)).reshape(n, 8, 32) | (fifth << 4).view(torch.int8)
    return (f16(b, 0) * scale).unsqueeze(-1) * q - (f16(b, 2) * least).unsqueeze(-1)


def q6_k(b):
    n = b.shape[0]
    low = nibbles(b[:, :128].reshape(n, 2, 64), codes=False).reshape(n, 16, 16)
    high = pairs(b[:, 128:192].reshape(n, 2, 32)).reshape(n, 16, 16)
    scale = f16(b, 208) * i8(b[:, 192:208])
    return scale.unsqueeze(-1) * ((low | high << 4).view(torch.int8) - 32)


def levels(q):
    return torch.tensor(IQ4, dtype=torch.float32, device=q.device)[nibbles(q).to(torch.int32)]


def iq4_nl(b):
    return f16(b, 0) * levels(b[:, 2:])


def iq4_xs(b):
    n = b.shape[0]
    low = torch.stack((b[:, 4:8] & 15, b[:, 4:8] >> 4), -1).view(n, 8)
    high = pairs(b[:, 2:4].reshape(n, 2, 1)).reshape(n, 8)
    scale = f16(b, 0) * ((low | high << 4).view(torch.int8) - 32)
    return scale.unsqueeze(-1) * levels(b[:, 8:].reshape(n, 8, 16))


def float8(b, name):
    kind = getattr(torch, FLOAT8[name])
    if b.device.type in ("cpu", "cuda"):
        return b.contiguous().view(kind).to(torch.float32)
    table = torch.arange(256, dtype=torch.uint8).view(kind).to(torch.float32).to(b.device)
    return table[b.to(torch.int32)]


def e8m0(b):
    return torch.where(b == 255, float("nan"), torch.ldexp(torch.ones((), device=b.device), b.to(torch.int32) - 127))


def f8_b64(b):
    return b[:, :4].contiguous().view(torch.float32) * float8(b[:, 4:], "F8_E4M3")


# name: (elements, bytes, function)
BLOCKS = {
    "Q8_0": (32, 34, q8_0), "Q5_0": (32, 22, q5_0), "Q5_1": (32, 24, q5_1), "Q4_0": (32, 18, q4_0), "Q4_1": (32, 20, q4_1),
    "Q2_K": (256, 84, q2_k), "Q3_K": (256, 110, q3_k), "Q4_K": (256, 144, q4_k), "Q5_K": (256, 176, q5_k),
    "Q6_K": (256, 210, q6_k), "IQ4_NL": (32, 18, iq4_nl), "IQ4_XS": (256, 136, iq4_xs), "F8_E4M3_B64": (64, 68, f8_b64),
    "F8_E8M0": (1, 1, e8m0),
}  # fmt: skip


def size(dtype, elements):
    """Bytes of so many elements."""
    if dtype in PLAIN:
        return elements * PLAIN[dtype].itemsize
    if dtype in FLOAT8:
        return elements
    per, width, _ = BLOCKS[dtype]
    if elements % per:
        raise ValueError(f"{elements} elements are no whole number of {dtype} blocks")
    return elements // per * width


def expand(out, raw, dtype, scale):
    """raw (uint8) to out (flat, of the compute dtype): float32(stored)·scale, rounded once."""
    if dtype in PLAIN and scale == 1:
        out.copy_(raw.view(PLAIN[dtype]))
        return
    per, width, convert = BLOCKS.get(dtype, (1, 1, None))
    if dtype in PLAIN:
        width = PLAIN[dtype].itemsize
    step = CHUNK.get(out.device.type, 1 << 22) // per
    for at in range(0, raw.numel() // width, step):
        b = raw[at * width : (at + step) * width]
        if dtype in PLAIN:
            v = b.view(PLAIN[dtype]).to(torch.float32)
        elif dtype in FLOAT8:
            v = float8(b, dtype)
        else:
            v = convert(b.view(-1, width)).reshape(-1)
        if scale != 1:
            v = v * scale
        out[at * per : at * per + v.numel()].copy_(v)
