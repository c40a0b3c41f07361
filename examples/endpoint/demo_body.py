# Copyright The distorch authors.
# SPDX-License-Identifier: Apache-2.0

"""Writes the bodies of a forward of the demo model: conditioning.safetensors (a
blob, whose name it prints) and forward.safetensors. The text is five times the
same made-up word, the latent all 0.5.

    python3 demo_body.py
"""

import hashlib
import json
import struct


def safetensors(tensors, metadata=None):
    """The file: tensors are (name, shape, values), all of them F32."""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, shape, values in tensors:
        raw = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


blob = safetensors([
    ("context", [1, 5, 64], [i % 7 / 7 for i in range(5 * 64)]),
    ("guidance", [1], [4.0]),
    ("y", [1, 64], [i % 5 / 5 for i in range(64)]),
])
digest = hashlib.sha256(blob).hexdigest()
with open("conditioning.safetensors", "wb") as f:
    f.write(blob)
with open("forward.safetensors", "wb") as f:
    f.write(safetensors(
        [("timestep", [1], [0.75]), ("x", [1, 16, 16, 16], [0.5] * (16 * 16 * 16))],
        {"run": "picture-1", "id": "picture-1-step-0", "step": "0", "branch": "0", "conditioning": digest}))
print(digest)
