# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Processes that the tests start, and end by their own id."""

import pathlib
import signal
import socket
import subprocess
import time


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what: str, seconds: float, condition, every: float = 0.05):
    """The first true value of condition(), which is asked until the time is over."""
    end = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not in {seconds:g} s")
        time.sleep(every)


class Process:
    def __init__(self, name: str, command: list, log: pathlib.Path, env: dict, cwd=None):
        self.name, self.log = name, log
        with open(log, "wb") as out:
            self.popen = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=cwd)

    def alive(self) -> bool:
        return self.popen.poll() is None

    def wait_for(self, seconds: float, condition):
        """condition()'s value, or an error with the end of the log when the process ends before."""

        def ask():
            if not self.alive():
                raise RuntimeError(f"{self.name} ended with code {self.popen.returncode}:\n{self.tail()}")
            return condition()

        try:
            return wait_for(f"{self.name} to be ready", seconds, ask)
        except TimeoutError as e:
            raise TimeoutError(f"{e}\n{self.tail()}") from None

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def kill(self):
        """Ends it as a power cut does."""
        self.popen.kill()
        self.popen.wait()

    def stop(self):
        if self.alive():
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
