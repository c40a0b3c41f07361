# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""A distorch cluster of processes on this machine, with state of its own."""

import json
import os
import pathlib
import subprocess

from processes import Process, wait_for

START_SECONDS = 60


class Cluster:
    def __init__(self, distorch: pathlib.Path, folder: pathlib.Path, models: list):
        self.distorch, self.folder, self.models = distorch, folder, ",".join(str(m) for m in models)
        self.agents: dict[str, Process] = {}
        # What the user has set for a distorch of theirs is of no concern here.
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("DISTORCH_")}
        folder.mkdir()
        self.coordinator, self.address = self._start("coordinator", [
            "up", "--no-agent", "--listen", "127.0.0.1:0", "--etcd-listen", "127.0.0.1:0"])

    def _start(self, name: str, args: list):
        ready = self.folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        p = Process(name, [self.distorch, *args, "--data-dir", self.folder / name, "--ready-file", ready], self.folder / f"{name}.log", self.env)
        try:
            p.wait_for(START_SECONDS, lambda: ready.exists() and ready.stat().st_size)
        except BaseException:
            p.stop()
            raise
        return p, json.loads(ready.read_text())["address"]

    def agent(self, name: str, memory: str):
        """An agent that computes on one thread of the CPU."""
        token = self.folder / f"{name}.token"
        self.command("token", "create", "--out", token)
        self.agents[name], _ = self._start(name, [
            "agent", "--name", name, "--listen", "127.0.0.1:0", "--join-file", token, "--models", self.models, "--memory", memory, "--threads", "1"])

    def command(self, *args) -> str:
        """What a command of an operator prints."""
        done = subprocess.run(
            [self.distorch, *args, "--data-dir", self.folder / "coordinator", "--coordinator", self.address],
            env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(f"distorch {' '.join(str(a) for a in args)}: code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def connection(self, client: str) -> str:
        """A connection line for a client of this name."""
        line = self.command("token", "create", "--client", client).strip()
        if not line.startswith("distorch1."):
            raise RuntimeError(f"token create --client printed no connection line but {line[:200]!r}")
        return line

    def deploy(self, name: str, workload: str, dtype: str, pins: dict):
        args = [x for node, blocks in pins.items() for x in ("--pin", f"{node}={blocks}")]
        self.command("deploy", name, "--model", "demo", "--workload", workload, "--dtype", dtype, "--wait", *args)

    def status(self, name: str) -> dict:
        return json.loads(self.command("status", name, "-o", "json"))[0]

    def undeploy_all(self):
        for d in json.loads(self.command("deployments", "-o", "json")):
            self.command("undeploy", d["name"])

    def ready_nodes(self) -> set:
        """Names of the nodes that are there."""
        return {n["name"] for n in json.loads(self.command("nodes", "-o", "json"))}

    def plan_nodes(self, deployment: str) -> list:
        """Names of the nodes of its stages, in order."""
        return [s["node"] for s in self.status(deployment)["plan"]["stages"]]

    def wait_until(self, what: str, condition, seconds: float = 60):
        return wait_for(what, seconds, condition, 0.2)

    def stop(self):
        for p in (*self.agents.values(), self.coordinator):
            p.stop()
