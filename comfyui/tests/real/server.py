# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real ComfyUI as a process, and a client of its API."""

import json
import os
import pathlib
import struct
import threading
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field

from frames import Closed, WebSocket
from processes import Process, free_port, wait_for
from safetensors.torch import load_file

BOOT_SECONDS = 180
RUN_SECONDS = 300


@dataclass
class Run:
    """What was seen of one prompt."""

    id: str
    posted: float  # time.monotonic of POST /prompt
    events: list = field(default_factory=list)  # (time.monotonic, type, data)
    previews: list = field(default_factory=list)  # (time.monotonic, JPEG)
    outputs: dict = field(default_factory=dict)
    status: str = ""

    def first(self, kind: str):
        return next((e for e in self.events if e[1] == kind), None)

    def all(self, kind: str) -> list:
        return [e for e in self.events if e[1] == kind]

    @property
    def error(self) -> dict:
        """The data of execution_error, or nothing."""
        e = self.first("execution_error")
        return e[2] if e else {}

    def latent(self, server: "ComfyUI", node: str):
        """The tensor that SaveLatent node wrote, in float32."""
        if self.status != "success":
            raise AssertionError(f"the prompt ended with {self.status}: {self.error.get('exception_message', '')}")
        f = self.outputs[node]["latents"][0]
        return load_file(server.base / "output" / f["subfolder"] / f["filename"])["latent_tensor"].float()


class Rejected(Exception):
    """POST /prompt answered 400."""


class ComfyUI:
    """One server; base is its own directory of models, outputs and settings."""

    def __init__(self, python: pathlib.Path, checkout: pathlib.Path, base: pathlib.Path, packs: dict, env: dict, flags: list):
        self.base, self.port, self.client = base, free_port(), uuid.uuid4().hex
        for d in ("front", "user", "models/diffusion_models", "models/loras", "custom_nodes", "input", "output", "temp"):
            (base / d).mkdir(parents=True, exist_ok=True)
        (base / "front" / "index.html").write_text("<html></html>", encoding="utf-8")
        for name, folder in packs.items():
            (base / "custom_nodes" / name).symlink_to(folder)
        command = [
            python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", self.port, "--base-directory", base,
            "--database-url", f"sqlite:///{base}/user/comfyui.db", "--disable-api-nodes", "--preview-method", "latent2rgb",
            "--front-end-root", base / "front", *flags,
        ]
        # Nothing is written into the checkout, which may be the user's own. One
        # thread: the demo model is too small for more, and agents compute as well.
        settings = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        self.process = Process("ComfyUI", command, base / "log.txt", {**os.environ, **settings, **env}, checkout)
        self.runs: dict[str, Run] = {}
        self.lock = threading.Lock()

    def wait(self):
        def ready():
            try:
                return self.get("/system_stats")
            except OSError:
                return None

        self.stats = self.process.wait_for(BOOT_SECONDS, ready)
        self.version = self.stats["system"]["comfyui_version"]
        self.socket = WebSocket("127.0.0.1", self.port, f"/ws?clientId={self.client}")
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        return self

    def stop(self):
        if hasattr(self, "socket"):
            self.socket.close()
            self.listener.join()
        self.process.stop()

    def get(self, path: str):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as r:
            return json.load(r)

    def post(self, path: str, body: dict):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as r:
            text = r.read()
        return json.loads(text) if text else None

    def queue(self, prompt: dict, **extra) -> Run:
        run = Run(str(uuid.uuid4()), time.monotonic())
        with self.lock:
            self.runs[run.id] = run
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client, "prompt_id": run.id, **extra})
        except urllib.error.HTTPError as e:
            raise Rejected(f"{e.code} {e.read().decode(errors='replace')}") from None
        if answer["node_errors"]:
            raise Rejected(json.dumps(answer["node_errors"]))
        return run

    def finish(self, run: Run, seconds: float = RUN_SECONDS) -> Run:
        """Waits for the end of a run and reads its history."""

        def over():
            if not self.process.alive():
                raise RuntimeError(f"ComfyUI ended:\n{self.process.tail()}")
            return any(e[1] == "executing" and e[2]["node"] is None for e in list(run.events))

        wait_for(f"prompt {run.id}", seconds, over, 0.01)
        entry = wait_for("the history", 10, lambda: self.get(f"/history/{run.id}").get(run.id))
        run.outputs, run.status = entry["outputs"], entry["status"]["status_str"]
        if run.first("execution_interrupted"):
            run.status = "interrupted"
        return run

    def run(self, prompt: dict, seconds: float = RUN_SECONDS) -> Run:
        return self.finish(self.queue(prompt), seconds)

    def delete(self, run: Run):
        self.post("/queue", {"delete": [run.id]})

    def interrupt(self) -> float:
        """Asks for the end of what runs; the time of asking."""
        at = time.monotonic()
        self.post("/interrupt", {})
        return at

    def _listen(self):
        running = None  # a binary frame without metadata belongs to it
        while True:
            try:
                message = self.socket.receive()
            except Closed:
                return
            now = time.monotonic()
            with self.lock:
                if isinstance(message, bytes):
                    if running is not None and struct.unpack(">II", message[:8]) == (1, 1):
                        running.previews.append((now, message[8:]))
                    continue
                event = json.loads(message)
                run = self.runs.get(event["data"].get("prompt_id"))
                if run is None:
                    continue
                if event["type"] == "execution_start":
                    running = run
                run.events.append((now, event["type"], event["data"]))
