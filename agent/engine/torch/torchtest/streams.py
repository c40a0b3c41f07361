# Copyright The distorch authors.
# SPDX-License-Identifier: Apache-2.0
"""A device with streams and memory of its own for tests: the CPU behind the calls that the worker makes of torch.cuda.

Work is done when it is issued; an event passes a moment later, so that the worker really runs ahead.
"""

import time

import torch

import program
import worker


class Event:
    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self, stream=None):
        self.at = time.perf_counter() + 0.0005

    def synchronize(self):
        time.sleep(max(0.0, self.at - time.perf_counter()))

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


class Stream:
    def __init__(self, device=None):
        pass

    def wait_event(self, event):
        event.synchronize()

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


class Streams:
    Event, Stream = Event, Stream
    set_device = set_stream = empty_cache = synchronize = reset_peak_memory_stats = staticmethod(lambda *a: None)
    set_per_process_memory_fraction = staticmethod(lambda *a: None)
    memory_allocated = max_memory_allocated = memory_reserved = staticmethod(lambda d: 0)

    @staticmethod
    def mem_get_info(d):
        return 0, 0

    @staticmethod
    def stream(s):
        return s

    @staticmethod
    def get_device_properties(d):
        return type("Properties", (), {"name": "Streams", "total_memory": 1 << 40, "major": 9, "minor": 0, "uuid": "0"})


def find_devices(threads, wanted, real=worker.find_devices):
    found = real(threads, wanted)
    d = worker.Device("cpu", "cpu", threads, "flash")
    d.id, d.kind, d.streams = "streams:0", "streams", Streams
    d.attention = lambda dtype: "flash"
    found[d.id] = d
    return found


worker.find_devices = find_devices
main = worker.main
