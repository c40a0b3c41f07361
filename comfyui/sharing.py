# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""One GPU for ComfyUI and an agent beside it.

A node of the cluster is on this machine when its address is one of this
machine's: a socket can be bound to it. Before a sampling ComfyUI's models leave
the GPUs that such a node has, and what was lent goes back to the agent; after
it, the agent lends ComfyUI what decoding the latent takes.
"""

from __future__ import annotations

import logging
import math
import os
import socket

import torch

import comfy.model_management

from .errors import ClusterError

log = logging.getLogger("distorch")

VARIABLE = "DISTORCH_LOCAL_NODES"  # names of nodes on this machine, where addresses cannot tell (containers); "none"
ALL = 1e30  # bytes: more than any device has
LEND_SECONDS = 120
# FLUX's autoencoder takes about this much for a latent pixel in 16 bits (ComfyUI's own
# estimate: 2178 x 64 x 2 bytes), and its weights.
DECODE_BYTES_PER_PIXEL = 2178 * 64 * 2
DECODER_BYTES = 400 << 20


class Sharing:
    """What one sampling on a MODEL does about the local GPUs."""

    def __init__(self, target, device: torch.device):
        self.target, self.device = target, device
        self.shared = self._shared() if device.type != "cpu" else []

    def _shared(self) -> list[tuple[str, str]]:
        """(node, device) of the cluster that are the device which ComfyUI uses."""
        try:
            nodes = self.target.cluster.client().get("/v1/nodes", 5)
            used = self._used()
        except ClusterError:
            return []
        own = f"{self.device.type}:{self.device.index or 0}"
        found = [
            (n["name"], own)
            for n in nodes.get("nodes") or []
            if is_local(n) and any(d.get("name") == own for d in n.get("devices") or [])
        ]
        return [f for f in found if used is None or f in used]

    def _used(self) -> set | None:
        """Devices that the deployment's plan names; None where it may be placed anew."""
        if self.target.owned and not self.target.placed:
            return None
        plan = self.target.cluster.deployment(self.target.name).get("plan") or []
        return {(s.get("node"), s.get("device")) for s in plan}

    def before(self):
        if not self.shared:
            return
        comfy.model_management.free_memory(ALL, self.device)
        comfy.model_management.soft_empty_cache()
        for node, device in self.shared:
            self._lend({"node": node, "device": device, "restore": True})

    def after(self, shape: tuple):
        if not self.shared:
            return
        want = decode_bytes(shape)
        if comfy.model_management.get_free_memory(self.device) >= want:
            return
        for node, device in self.shared:
            self._lend({"node": node, "device": device, "bytes": want, "seconds": LEND_SECONDS})

    def _lend(self, body: dict):
        """A refusal costs speed and nothing else: ComfyUI then decodes in tiles."""
        try:
            self.target.cluster.client().send("POST", "/v1/lend", body, 10)
        except ClusterError as e:
            log.warning("distorch: %s/%s: %s", body["node"], body["device"], e)


def is_local(node: dict) -> bool:
    named = os.environ.get(VARIABLE)
    if named is not None:
        return node.get("name") in [n.strip() for n in named.split(",")]
    host, _, _ = str(node.get("address") or "").rpartition(":")
    return bool(host) and own_address(host.strip("[]"))


def own_address(host: str) -> bool:
    """Whether an address is this machine's: only its own can be bound to."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as s:
            s.bind(where)
        return True
    except OSError:
        return False


def decode_bytes(shape: tuple) -> int:
    """Memory for decoding one latent of this shape; frames of a clip are decoded in parts."""
    if len(shape) < 4:
        return DECODER_BYTES
    return DECODER_BYTES + math.prod(shape[-2:]) * DECODE_BYTES_PER_PIXEL
