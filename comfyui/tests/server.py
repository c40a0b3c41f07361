# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""A cluster that is none: the HTTPS endpoint's routes with a forward of a few
multiplications, for answers that a real one does not give on purpose.
"""

import base64
import hashlib
import json
import os
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from comfyui import wire

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "testdata")
TOKEN = "secret-of-a-test"
HIDDEN, TEXT, POOLED = 32, 8, 4


def tensors(guidance=True):
    """Names and shapes of a FLUX checkpoint of one double and one single block."""
    shapes = {
        "img_in.weight": [HIDDEN, 64],
        "img_in.bias": [HIDDEN],
        "txt_in.weight": [HIDDEN, TEXT],
        "txt_in.bias": [HIDDEN],
        "vector_in.in_layer.weight": [HIDDEN, POOLED],
        "final_layer.linear.weight": [64, HIDDEN],
        "final_layer.adaLN_modulation.1.weight": [2 * HIDDEN, HIDDEN],
        "double_blocks.0.img_attn.qkv.weight": [3 * HIDDEN, HIDDEN],
        "double_blocks.0.img_attn.qkv.bias": [3 * HIDDEN],
        "double_blocks.0.img_attn.norm.key_norm.scale": [16],
        "double_blocks.0.img_attn.norm.query_norm.scale": [16],
        "single_blocks.0.linear1.weight": [7 * HIDDEN, HIDDEN],
    }
    if guidance:
        shapes["guidance_in.in_layer.weight"] = [HIDDEN, 256]
    return [{"name": k, "shape": v, "dtype": "BF16"} for k, v in shapes.items()]


def model(guidance=True, channels=16):
    names = ["x", "timestep", "context", "y", "attention_mask", "ref_latents.0", "ref_latents.1"] + (
        ["guidance"] if guidance else []
    )
    return {
        "id": "m1",
        "name": "tiny.safetensors",
        "architecture": "flux",
        "variant": "dev",
        "bytes": 1000,
        "blocks": 2,
        "dtype": "bf16",
        "problem": "",
        "latent": {"channels": channels, "scale": 0.3611, "shift": 0.1159},
        "inputs": [{"name": n, "dims": [], "dtype": "F32"} for n in names],
        "tensors": tensors(guidance),
    }


# What a client's patches are in the list of models.
LORA = {
    "id": "64c9",
    "name": "64c9",
    "architecture": "lora",
    "variant": "a client's patches, rank 4",
    "bytes": 41576,
    "blocks": 0,
    "dtype": "",
    "problem": "",
}


def predict(t):
    """Not a model: something that every input has a part in."""
    x = t["x"].float()
    out = x * (0.5 + t["timestep"].float()) + t["context"].float().mean() + 2 * t["y"].float().sum()
    if "guidance" in t:
        out = out + 0.125 * t["guidance"].float()
    for k in sorted(k for k in t if k.startswith("ref_latents.")):
        out = out + t[k].float().mean()
    return out.to(t["x"].dtype)


class Server:
    """State that tests look at and change. A fault is a function of a handler and a
    request's body that answers in the forward's place; it is dropped when it returns True.
    """

    def __init__(self, model=None):
        self.model = model or globals()["model"]()
        self.blobs, self.deployments, self.forwards, self.requests, self.cancelled = {}, {}, [], [], []
        self.fault = None
        self.plan = None  # an answer to every plan instead of the usual one
        self.flying, self.most = 0, 0
        self.connections, self.closed = [], False
        self.gate = threading.Event()  # forwards wait for it
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.lock = threading.Lock()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.path.join(HERE, "server.pem"))
        self.http = Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"state": self}))
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def address(self):
        return "127.0.0.1:%d" % self.http.server_address[1]

    def line(self, token=TOKEN, addresses=None):
        with open(os.path.join(HERE, "ca.pem"), encoding="ascii") as f:
            ca = f.read()
        text = json.dumps({"a": addresses or [self.address], "ca": ca, "t": token})
        return "distorch1." + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def close(self):
        if self.closed:
            return
        self.closed = True
        self.gate.set()
        self.http.shutdown()
        self.http.server_close()
        for c in self.connections:
            try:
                socket.socket.shutdown(c, socket.SHUT_RDWR)
            except OSError:
                pass

    def deployment(self, name):
        spec = self.deployments[name]
        return {
            "name": name,
            "state": spec.get("state", "ready"),
            "message": spec.get("message", ""),
            "spec": {"dtype": self.model["dtype"], **{k: v for k, v in spec.items() if k not in ("state", "message")}},
            "plan": [],
            "forecast": {"step_s": 0.25},
            "numerics": "equals one device (native/1/bf16)",
            "loras": [],
        }


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # handshakes that tests make fail


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state = None

    def log_message(self, *args):
        pass

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.state.connections.append(self.connection)

    def reply(self, status, body=b"", content="application/json", length=None):
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status, code, message, details=None):
        self.reply(status, {"error": {"code": code, "message": message, "details": details or {}}})

    def handle_request(self):
        s = self.state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, _ = self.path.partition("?")
        with s.lock:
            s.requests.append((self.command, path))
        if self.headers.get("Authorization") != "Bearer " + TOKEN:
            return self.fail(401, "unauthenticated", "the token is unknown to this cluster")
        parts = path.strip("/").split("/")
        if path == "/v1":
            return self.reply(
                200,
                {
                    "version": "test",
                    "protocol": 1,
                    "cluster": "c",
                    "client": {"name": "studio", "scopes": ["run", "deploy", "lend"]},
                },
            )
        if parts[1] == "nodes":
            return self.reply(
                200,
                {
                    "nodes": [
                        {
                            "name": "a",
                            "id": "n1",
                            "address": "127.0.0.1:7800",
                            "state": "ready",
                            "devices": [
                                {"name": "cpu", "kind": "cpu", "memory": 8e9, "free": 4e9, "class": ["native/1/bf16"]}
                            ],
                        }
                    ]
                },
            )
        if parts[1] == "models":
            return self.reply(
                200,
                s.model
                if len(parts) > 2
                else {"models": [LORA, {k: v for k, v in s.model.items() if k not in ("inputs", "tensors")}]},
            )
        if parts[1] == "plan":
            return self.reply(
                200,
                s.plan
                or {
                    "feasible": True,
                    "message": "it fits",
                    "text": "model tiny: 250 ms/it",
                    "forecast": {"step_s": 0.25},
                    "numerics": "equals one device (native/1/bf16)",
                    "report": REPORT,
                },
            )
        if parts[1] == "blobs":
            return self.blob(parts[2], body)
        if parts[1] in ("runs", "forwards", "lend"):
            with s.lock:
                s.cancelled.append(path)
            return self.reply(200, {})
        if parts[1] == "deployments":
            return self.deployment(parts, body)
        return self.fail(404, "not_found", "no route " + path)

    def handle(self):
        try:
            super().handle()
        except OSError:  # the client went, as some tests have it
            pass

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request

    def blob(self, name, body):
        if self.command == "HEAD":
            return self.reply(200 if name in self.state.blobs else 404)
        if hashlib.sha256(body).hexdigest() != name:
            return self.fail(400, "bad_request", "the body's SHA-256 is another")
        self.state.blobs[name] = body
        return self.reply(201, {"sha256": name})

    def deployment(self, parts, body):
        s = self.state
        if len(parts) == 2:
            return self.reply(200, {"deployments": [s.deployment(n) for n in s.deployments]})
        if self.command == "PUT":
            with s.lock:
                s.deployments[parts[2]] = json.loads(body)
            return self.reply(200, s.deployment(parts[2]))
        if parts[2] not in s.deployments:
            return self.fail(404, "not_found", f"no deployment {parts[2]} here")
        if len(parts) == 3:
            return self.reply(200, s.deployment(parts[2]))
        return self.forward(body)

    def forward(self, body):
        s = self.state
        t, m = wire.unpack(bytearray(body))
        with s.lock:
            s.flying += 1
            s.most = max(s.most, s.flying)
        s.entered.release()
        try:
            s.gate.wait(30)
            fault = s.fault
            if fault is not None:
                if fault(self, m):
                    s.fault = None
                return None
            needed = [
                d
                for d in [m.get("conditioning", ""), *(u["digest"] for u in json.loads(m.get("loras", "[]")))]
                if d and d not in s.blobs
            ]
            if needed:
                return self.fail(409, "missing_blobs", "the store has not " + ", ".join(needed), {"missing": needed})
            if m.get("conditioning"):
                more, _ = wire.unpack(bytearray(s.blobs[m["conditioning"]]))
                t = {**more, **t}
            with s.lock:
                s.forwards.append((m, {k: v for k, v in t.items()}))
            out = wire.pack(
                {"out": predict(t)},
                {
                    "numerics": "equals one device (native/1/bf16)",
                    "forecast": json.dumps({"step_s": 0.25}),
                    "timing": "{}",
                    "epoch": "1",
                    "attempt": "1",
                },
            )
            return self.reply(200, bytes(out), "application/octet-stream")
        finally:
            with s.lock:
                s.flying -= 1


REPORT = {
    "schema": "distorch.plan/1",
    "model": "tiny",
    "workload": "1024x1024,tokens=512,in_flight=2",
    "step_seconds": 0.25,
    "weight_bytes": 24e9,
    "parts": {"compute": 0.2, "streaming": 0.03, "hops": 0.02, "waiting": 0},
    "numerics": "equals one device (native/1/bf16)",
    "objective": "latency",
    "stages": [
        {
            "pipeline": 0,
            "name": "a",
            "devices": ["cuda:0"],
            "device": "cuda:0",
            "first_block": 0,
            "blocks": 20,
            "compute_seconds": 0.12,
            "streaming_seconds": 0.03,
            "stream_seconds": 0.15,
            "hop_seconds": 0.01,
        },
        {
            "pipeline": 0,
            "name": "b",
            "devices": ["cuda:0", "cuda:1"],
            "device": "cuda:0",
            "first_block": 20,
            "blocks": 37,
            "compute_seconds": 0.08,
            "streaming_seconds": 0,
            "stream_seconds": 0,
            "hop_seconds": 0.01,
        },
    ],
}


def condition(tokens=6, seed=1, **more):
    """A CONDITIONING for the model above."""
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, tokens, TEXT, generator=g), {"pooled_output": torch.randn(1, POOLED, generator=g), **more}]]
