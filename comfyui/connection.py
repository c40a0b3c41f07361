# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the connection line to the cluster is found, and what it says.

The first of these that is there counts: the environment variable
DISTORCH_CONNECTION, the setting "distorch.connection" of ComfyUI, the file
distorch.txt in ComfyUI's user directory. The variable and the setting may hold
the line itself or the path of a file with it. The line holds a secret: it is
never an input of a node, so no workflow or picture carries it.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import dataclass

import folder_paths

from .errors import NEW_LINE, ClusterError

PREFIX = "distorch1."
VARIABLE = "DISTORCH_CONNECTION"
SETTING = "distorch.connection"
FILE = "distorch.txt"
LIMIT = 64 << 10  # bytes of a line


@dataclass(frozen=True)
class Connection:
    addresses: tuple[tuple[str, int], ...]
    ca: str  # PEM
    token: str
    source: str  # where the line was found, for errors


def find() -> Connection:
    """The connection, or a ClusterError that says where a line belongs."""
    user = folder_paths.get_user_directory()
    for source, text in (
        (f"the environment variable {VARIABLE}", os.environ.get(VARIABLE, "")),
        ("ComfyUI's setting distorch › Connection", _setting(user)),
    ):
        text = text.strip()
        if text.startswith(PREFIX):
            return parse(text, source)
        if text:
            return _read(text, f"the file {text} that {source} names")
    path = os.path.join(user, FILE)
    if not os.path.exists(path):
        raise ClusterError(
            f"no cluster is set: put a connection line into {path} or into ComfyUI's settings under distorch; {NEW_LINE}",
            "no_connection",
        )
    return _read(path, path)


def _read(path: str, source: str) -> Connection:
    try:
        with open(path, encoding="utf-8") as f:
            text = f.read(LIMIT + 1)
    except (OSError, ValueError) as e:
        raise ClusterError(
            f"{source} cannot be read ({getattr(e, 'strerror', None) or e}); {NEW_LINE}", "bad_connection"
        ) from None
    return parse(text.strip(), source)


def _setting(user: str) -> str:
    try:
        with open(os.path.join(user, "default", "comfy.settings.json"), encoding="utf-8") as f:
            value = json.load(f).get(SETTING, "")
    except (OSError, ValueError, AttributeError):
        return ""
    return value if isinstance(value, str) else ""


def parse(line: str, source: str) -> Connection:
    """Reads distorch1. and base64url of {"a": [host:port], "ca": PEM, "t": secret}."""
    bad = ClusterError(
        f"what {source} holds is no connection line ({PREFIX} and one long word); {NEW_LINE}", "bad_connection"
    )
    if len(line) > LIMIT or not line.startswith(PREFIX):
        raise bad
    word = line[len(PREFIX) :]
    try:
        d = json.loads(base64.b64decode(word + "=" * (-len(word) % 4), altchars=b"-_", validate=True))
        addresses = tuple(_address(a) for a in d["a"])
        ca, token = d["ca"], d["t"]
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError):
        raise bad from None
    if not (
        addresses
        and isinstance(ca, str)
        and isinstance(token, str)
        and ca.isascii()
        and token.isascii()
        and token.isprintable()
    ):
        raise bad
    return Connection(addresses, ca, token, source)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and 0 < int(port) < 1 << 16):
        raise ValueError(text)
    return host.strip("[]"), int(port)
