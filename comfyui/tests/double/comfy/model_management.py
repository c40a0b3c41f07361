# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Double: one CPU device, and the flag of an interrupt."""

import threading

import torch


class InterruptProcessingException(BaseException):
    pass


interrupted = threading.Event()
freed = []  # calls of free_memory
free_bytes = 0


def get_torch_device():
    return torch.device("cpu")


def unet_offload_device():
    return torch.device("cpu")


def throw_exception_if_processing_interrupted():
    if interrupted.is_set():
        interrupted.clear()
        raise InterruptProcessingException()


def free_memory(memory_required, device, keep_loaded=()):
    freed.append((memory_required, device))
    return []


def get_free_memory(device=None):
    return free_bytes


def soft_empty_cache():
    pass
