# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can go wrong between this pack and a cluster.

ComfyUI shows the type of an exception that a node raises, and one that a pack
defines by its file's path; `shown` turns ours into a RuntimeError where they
leave the pack.
"""

from __future__ import annotations

import functools

NEW_LINE = "`distorch token create --client NAME` on the coordinator prints a connection line"


class ClusterError(Exception):
    """An answer of the cluster, or none; its text names the thing at fault and the way out."""

    def __init__(self, message: str, code: str = "", details: dict | None = None):
        super().__init__(message)
        self.code, self.details = code, details or {}


class Unreachable(ClusterError):
    """No coordinator of the connection line answers."""


class Cancelled(ClusterError):
    """The caller has given the call up."""


def shown(f):
    """f with a ClusterError as RuntimeError, without a chain of causes."""

    @functools.wraps(f)
    def wrapped(*args, **kwargs):
        try:
            return f(*args, **kwargs)
        except ClusterError as e:
            raise RuntimeError(str(e)) from None

    return wrapped
