# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""safetensors, the form of every body between this pack and a cluster.

The writer is deterministic: equal tensors and metadata give equal bytes, so a
digest of a file names its content. The reader checks names, dtypes and sizes
against the bytes before it makes a tensor.
"""

from __future__ import annotations

import json
import math

import torch

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {v: k for k, v in DTYPES.items()}

HEADER_LIMIT = 16 << 20  # bytes of the JSON header
DIMENSIONS_LIMIT = 16


class Malformed(ValueError):
    """Bytes that are no safetensors file."""


def pack(tensors: dict, metadata: dict | None = None) -> bytearray:
    """The file with these tensors (any device) and metadata (strings), keys sorted."""
    header, blocks, at = {}, [], 0
    if metadata:
        header["__metadata__"] = {k: metadata[k] for k in sorted(metadata)}
    for name in sorted(tensors):
        t = tensors[name].detach().to("cpu").contiguous()
        if t.dtype not in NAMES:
            raise Malformed(f"tensor {name} is {t.dtype}, which safetensors bodies do not carry")
        size = t.numel() * t.element_size()
        header[name] = {"dtype": NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + size]}
        blocks.append(t)
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    out = bytearray(8 + len(text) + at)
    out[:8] = len(text).to_bytes(8, "little")
    out[8 : 8 + len(text)] = text
    view, at = memoryview(out), 8 + len(text)
    for t in blocks:
        size = t.numel() * t.element_size()
        if size:
            view[at : at + size] = memoryview(t.reshape(-1).view(torch.uint8).numpy())
        at += size
    return out


def unpack(body) -> tuple[dict, dict]:
    """Tensors (on the CPU, copied) and metadata of a file, or Malformed."""
    if len(body) < 8:
        raise Malformed(f"{len(body)} bytes are no safetensors file")
    n = int.from_bytes(body[:8], "little")
    if n > HEADER_LIMIT or 8 + n > len(body):
        raise Malformed(f"a header of {n} bytes in a file of {len(body)}")
    try:
        header = json.loads(bytes(body[8 : 8 + n]))
    except ValueError as e:
        raise Malformed(f"the header is no JSON: {e}") from None
    if not isinstance(header, dict):
        raise Malformed("the header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise Malformed("__metadata__ is no JSON object")
    return {name: _tensor(name, entry, body, 8 + n) for name, entry in header.items()}, metadata


def _tensor(name, entry, body, start):
    try:
        dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        sound = all(type(v) is int and v >= 0 for v in [*shape, begin, end])
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound or len(shape) > DIMENSIONS_LIMIT:
        raise Malformed(f"tensor {name}: entry {str(entry)[:200]}")
    count = math.prod(shape)
    if end - begin != count * dtype.itemsize or start + end > len(body):
        raise Malformed(f"tensor {name}: {dtype} {shape} in bytes {begin} to {end} of {len(body) - start}")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    raw = torch.frombuffer(body, dtype=torch.uint8, count=end - begin, offset=start + begin)
    return raw.clone().view(dtype).reshape(shape)
