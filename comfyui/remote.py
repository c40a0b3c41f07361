# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""The diffusion model whose forward runs on the cluster.

It has no weights. Every row of a batch is a forward of its own, all of them in
flight together; the thread that samples waits for them and looks for ComfyUI's
interrupt meanwhile.
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
import math
import threading
import time
import uuid
import weakref
from types import SimpleNamespace

import torch

import comfy.model_management

from . import cluster as clusters
from . import lora, refuse, wire
from .client import Call, digest
from .errors import Cancelled, ClusterError, Unreachable, shown

log = logging.getLogger("distorch")

DEADLINE_SECONDS = (
    300.0  # of one forward, and ten times its forecast: a plan may change meanwhile, and weights be loaded
)
SILENCE_SECONDS = 60.0  # that the cluster may be late in keeping the deadline
PATIENCE_SECONDS = 20.0  # for a coordinator that starts again
POLL_SECONDS = 0.01
BUSY_SECONDS = 0.25  # until a forward that found no room asks again
REMEMBERED = 16  # conditionings of which the digest is kept
BRANCHES = 1 << 12  # conditions and rows that a run tells apart
BODY_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Inputs of models that ComfyUI passes by keyword; anything else is refused by name.
TENSORS = ("context", "y", "guidance", "attention_mask")
REFERENCE_METHODS = ("offset", "index", "uxo")
REFERENCE_ALIASES = {"uso": "uxo"}
TOKEN_STEP = 64  # text lengths above it are rounded up, so that the next text needs no other plan
PIXEL_STEP = 16

not_compiled = getattr(getattr(torch, "compiler", None), "disable", lambda f: f)


class Run:
    """One sampling: its id on the cluster, and what its forwards reported."""

    def __init__(self, least: dict | None = None):
        self.id = uuid.uuid4().hex
        self.least = least or {}  # workload that the whole of it needs, as far as its conditions tell
        self.forwards, self.seconds, self.forecast, self.numerics, self.where = 0, 0.0, 0.0, "", ""
        self.step = -1
        self._lock = threading.Lock()
        self._branches, self._steps = {}, {}

    def place(self, cond: int, condition, row: int) -> tuple[int, int]:
        """(step, branch) of a forward: a branch for each condition and row, which counts its
        own steps; 0 is the first positive's and 1 the first negative's.
        """
        with self._lock:
            key = (cond, condition, row)
            branch = self._branches.get(key)
            if branch is None:
                taken = set(self._branches.values())
                branch = (
                    cond
                    if row == 0 and cond in (0, 1) and cond not in taken
                    else next(i for i in range(2, 1 << 16) if i not in taken)
                )
                self._branches[key] = branch
            step = self._steps.get(branch, 0)
            self._steps[branch] = step + 1
            self.step = max(self.step, step)
            return step, branch

    @property
    def crowded(self) -> bool:
        return len(self._branches) > BRANCHES

    def take(self, metadata: dict, seconds: float):
        with self._lock:
            self.forwards += 1
            self.seconds += seconds
            self.numerics = metadata.get("numerics", self.numerics)
            try:
                self.forecast = float(json.loads(metadata.get("forecast", "{}")).get("step_s") or 0)
            except (ValueError, TypeError, AttributeError):
                pass

    def summary(self) -> str:
        if not self.forwards:
            return "no forward"
        text = f"{self.forwards} forwards, {clusters.seconds(self.seconds / self.forwards)} each"
        if self.forecast:
            text += f" (forecast {clusters.seconds(self.forecast)})"
        return text + (f"; {self.numerics}" if self.numerics else "")


class Interrupts(threading.local):
    """Who looks for ComfyUI's interrupt: the sampler's thread, since the first look
    clears it. A thread that helps it stops when the event is set.
    """

    stop: threading.Event | None = None


class RemoteModel(torch.nn.Module):
    """Stands where BaseModel expects its diffusion model."""

    def __init__(self, target, info: dict, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        # __dict__: nn.Module would look into what is set as an attribute.
        self.__dict__.update(
            target=target,
            info=info,
            names={},
            owner=None,
            run=None,
            interrupts=Interrupts(),
            digests=lora.Digests(),
            _conditionings=[],
            _lock=threading.Lock(),
        )

    def describe(self, model, keys: dict, shapes: dict, patch_size, scale: tuple[int, int]):
        """Sets what BaseModel and its LoRA loader read: keys are ComfyUI's names of the
        weights to the checkpoint's, shapes those of ComfyUI's; scale is pixels per latent in
        a picture's side and in time.
        """
        self.__dict__.update(owner=weakref.ref(model), names=keys, shapes=shapes, scale=scale)
        if patch_size is not None:
            self.patch_size = patch_size
        for name in ("img_in.weight", "img_in.proj.weight", "patch_embedding.weight", "x_embedder.weight"):
            if name in shapes:
                self._plain(name, shapes[name])

    def _plain(self, name: str, shape):
        """An attribute path with a shape at its end: no module and no parameter, so that
        moving and measuring the model pass it by.
        """
        first, *rest = name.split(".")
        value = SimpleNamespace(shape=torch.Size(shape))
        for part in reversed(rest):
            value = SimpleNamespace(**{part: value})
        self.__dict__[first] = value

    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        destination = {} if destination is None else destination
        for name, shape in self.shapes.items():
            destination[prefix + name] = torch.empty(shape, dtype=self.dtype, device="meta")
        return destination

    def load_state_dict(self, state_dict, strict=True, assign=False):
        return [], []

    @not_compiled
    @shown
    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **conditions):
        options = transformer_options or {}
        patcher = self.owner().current_patcher
        found = refuse.in_options(options) + (refuse.in_patcher(patcher) if patcher is not None else [])
        refuse.check(found + (["ControlNet"] if control is not None else []))
        if context is not None:
            conditions["context"] = context
        rows = self._rows(x, timestep, conditions, options)
        loras = [(self.digests.of(r), r) for r in getattr(patcher, "distorch_loras", ())]
        run = self.run
        if run is None or run.crowded:  # called by something that samples on its own
            run = self.__dict__["run"] = Run()
        parts = self._gather(rows, loras, run)
        return torch.cat(parts).to(x.device)

    def _rows(self, x, timestep, conditions, options) -> list["Row"]:
        """The batch as single forwards."""
        n = x.shape[0]
        tensors, dims = self._inputs(conditions)
        x = x.detach().to("cpu")
        if x.dtype not in BODY_DTYPES:
            x = x.float()
        timestep = timestep.detach().to("cpu", torch.float32)
        conds, names = options.get("cond_or_uncond") or [0], options.get("uuids") or []
        per = max(1, n // len(conds))
        rows = []
        for i in range(n):
            chunk = min(i // per, len(conds) - 1)
            rows.append(
                Row(
                    x[i : i + 1],
                    timestep[i : i + 1] if timestep.shape[0] == n else timestep[:1],
                    {k: t[i : i + 1] if t.shape[0] == n else t[:1] for k, t in tensors.items()},
                    dims,
                    conds[chunk],
                    names[chunk] if chunk < len(names) else chunk,
                    i - chunk * per,
                )
            )
        return rows

    def _inputs(self, conditions) -> tuple[dict, dict]:
        """Tensors by the endpoint's names, and the dimensions that no shape tells."""
        tensors, dims, unknown = {}, {}, []
        takes = {v["name"] for v in self.info.get("inputs") or [] if isinstance(v, dict) and "name" in v}
        for name, value in conditions.items():
            if value is None:
                continue
            if name == "ref_latents":
                tensors.update((f"ref_latents.{i}", t.detach().to("cpu")) for i, t in enumerate(value))
            elif name == "ref_latents_method":
                method = REFERENCE_ALIASES.get(value, value)
                if method not in REFERENCE_METHODS:
                    unknown.append(f"the reference method {value}")
                else:
                    dims["ref_method"] = REFERENCE_METHODS.index(method)
            elif name == "guidance" and takes and name not in takes:
                continue  # ComfyUI passes it to models without a guidance layer too
            elif torch.is_tensor(value) and (name in TENSORS or name in takes):
                tensors[name] = value.detach().to("cpu")
            else:
                unknown.append(f"the input {name}")
        refuse.check(unknown)
        return tensors, dims

    def need(self, row: "Row", least: dict) -> dict:
        """The workload that a deployment must be placed for, for this forward."""
        side, time_ = self.scale
        shape = row.x.shape
        words = {"height": up(shape[-2] * side, PIXEL_STEP), "width": up(shape[-1] * side, PIXEL_STEP), "batch": 1}
        if len(shape) == 5:
            words["frames"] = (shape[2] - 1) * time_ + 1
        for name, t in row.conditions.items():
            if name == "context":
                words["text_tokens"] = tokens(t.shape[1])
            elif name == "attention_mask":
                words["attention_mask"] = 1
            elif name.startswith("ref_latents."):
                i = name.partition(".")[2]
                words[f"ref{i}_height"], words[f"ref{i}_width"] = (
                    up(t.shape[-2] * side, PIXEL_STEP),
                    up(t.shape[-1] * side, PIXEL_STEP),
                )
        return clusters.grown(words, least)

    def _gather(self, rows, loras, run) -> list[torch.Tensor]:
        """Runs the forwards together; ends all of them when one fails or the user interrupts."""
        client = self.target.cluster.client()
        forwards = [Forward(self, client, row, loras, run) for row in rows]
        futures = [client.threads.submit(f.run) for f in forwards]
        stop = self.interrupts.stop
        try:
            while True:
                done, waiting = concurrent.futures.wait(futures, POLL_SECONDS, concurrent.futures.FIRST_EXCEPTION)
                for f in done:
                    f.result()
                if not waiting:
                    return [f.result() for f in futures]
                if stop is None:
                    comfy.model_management.throw_exception_if_processing_interrupted()
                elif stop.is_set():
                    raise Cancelled("given up", "canceled")
                late = [f for f in forwards if f.end is not None and time.monotonic() > f.end]
                if late:
                    raise late[0].named(ClusterError("no answer within the deadline", "deadline"))
        except BaseException:
            for f in forwards:
                f.call.cancel()
            raise

    def conditioning(self, row: "Row") -> tuple[str, dict]:
        """Digest of a row's conditioning. ComfyUI makes these tensors anew for each step
        from the same content, so they are compared before they are hashed.
        """
        with self._lock:
            for known, value in self._conditionings:
                if same_tensors(known, row.conditions):
                    return value, known
        held = {k: t.clone() for k, t in row.conditions.items()}
        value = digest(wire.pack(held))
        with self._lock:
            self._conditionings.append((held, value))
            del self._conditionings[:-REMEMBERED]
        return value, held


class Row:
    """One forward's inputs, on the CPU."""

    def __init__(self, x, timestep, conditions, dims, cond, condition, index):
        self.x, self.timestep, self.conditions, self.dims = x, timestep, conditions, dims
        self.cond, self.condition, self.index = cond, condition, index


class Forward:
    """One forward on its way."""

    def __init__(self, model: RemoteModel, client, row: Row, loras, run: Run):
        self.model, self.client, self.row, self.loras, self.of = model, client, row, loras, run
        self.step, self.branch = run.place(row.cond, row.condition, row.index)
        self.call = Call()
        self.end = None  # when its answer is overdue, once it was sent

    def run(self) -> torch.Tensor:
        try:
            return self._run()
        except Cancelled:
            raise
        except ClusterError as e:
            raise self.named(e) from None
        except wire.Malformed as e:
            raise self.named(ClusterError(f"the answer is no safetensors ({e})", "internal")) from None

    def named(self, e: ClusterError) -> ClusterError:
        """The error with the deployment and the step, and a way out where it has none."""
        out = (
            "; queue the prompt again"
            if isinstance(e, Unreachable) or e.code in ("unavailable", "deadline", "internal")
            else ""
        )
        return ClusterError(
            f"distorch, deployment {self.model.target.name}, step {self.step + 1}: {e}{out}", e.code, e.details
        )

    def _run(self) -> torch.Tensor:
        target, repeats, begin = self.model.target, 0, time.monotonic()
        while True:
            name = target.ready(self.model.need(self.row, self.of.least), self.call)
            digest_, held = self.model.conditioning(self.row) if self.row.conditions else ("", {})
            if digest_:
                self.client.blob(digest_, lambda: wire.pack(held), self.call)
            for d, r in self.loras:
                self.client.blob(d, r.bytes, self.call)
            try:
                return self._ask(name, digest_)
            except ClusterError as e:
                if e.code == "busy" and time.monotonic() < begin + DEADLINE_SECONDS:
                    if self.call.cancelled.wait(BUSY_SECONDS):
                        self.call.check()
                    continue
                repeats += 1
                if repeats > 3:
                    raise
                if e.code == "missing_blobs":
                    self.client.forget_blobs(e.details.get("missing") or [digest_, *(d for d, _ in self.loras)])
                elif e.code == "not_found" and target.owned:
                    target.forget()
                else:
                    raise

    def _ask(self, name: str, conditioning: str) -> torch.Tensor:
        row, begin = self.row, time.monotonic()
        deadline = DEADLINE_SECONDS + 10 * self.of.forecast
        self.end = begin + deadline + SILENCE_SECONDS
        metadata = {
            "run": self.of.id,
            "id": uuid.uuid4().hex,
            "step": str(self.step),
            "branch": str(self.branch),
            "deadline_ms": str(int(deadline * 1e3)),
        }
        if conditioning:
            metadata["conditioning"] = conditioning
        if self.loras:
            metadata["loras"] = json.dumps([{"digest": d, "strength": r.strength} for d, r in self.loras])
        if row.dims:
            metadata["dims"] = json.dumps(row.dims)
        body = wire.pack({"x": row.x, "timestep": row.timestep}, metadata)
        answer = self.client.call(
            "POST",
            f"/v1/deployments/{name}/forward",
            body,
            {"Content-Type": "application/octet-stream"},
            deadline + SILENCE_SECONDS,
            PATIENCE_SECONDS,
            self.call,
        )
        tensors, said = wire.unpack(answer)
        out = tensors.get("out")
        if (
            out is None
            or out.dim() != row.x.dim()
            or out.shape[0] != 1
            or out.shape[2:] != row.x.shape[2:]
            or out.dtype != row.x.dtype
        ):
            raise ClusterError(
                f"the answer's out is {None if out is None else (list(out.shape), out.dtype)} for x {list(row.x.shape)}",
                "internal",
            )
        self.of.take(said, time.monotonic() - begin)
        return out


def same_tensors(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(words(a[k]), words(b[k])) for k in a
    )


def words(t: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor in as wide integers as its size allows, which compare fastest."""
    raw = t.contiguous().reshape(-1).view(torch.uint8)
    return raw.view(torch.int64) if raw.numel() % 8 == 0 and raw.storage_offset() % 8 == 0 else raw


def tokens(n: int) -> int:
    return up(n, TOKEN_STEP) if n > TOKEN_STEP else n


def up(n: int, step: int) -> int:
    return math.ceil(n / step) * step
