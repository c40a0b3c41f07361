# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cluster that this ComfyUI is connected to: what is on it, and deployments.

The lists behind the nodes' menus come from a background thread, so that an
absent cluster delays neither ComfyUI's start nor its /object_info.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import urllib.parse

from . import connection
from .client import Call, Client
from .errors import ClusterError

FRESH_SECONDS = 10.0
FIRST_SECONDS = 1.5  # how long a menu waits for its first list
LIST_TIMEOUT = 4.0
PLANNED_MODELS = 8  # models whose forecast is asked for
DEPLOYMENT = " (deployment)"
NOTHING = "(no cluster)"
USUAL = {"width": 1024, "height": 1024, "text_tokens": 512, "batch": 1, "in_flight": 2}

log = logging.getLogger("distorch")


class Listing:
    """What menus show."""

    def __init__(self, models=(), deployments=(), problem="", forecasts=None):
        self.models = [m for m in models if m.get("architecture") != "lora"]  # those come from ComfyUI's own loaders
        self.deployments, self.problem = list(deployments), problem
        self.forecasts = forecasts or {}  # model id to a sentence
        self.at = time.monotonic()

    def names(self) -> list[str]:
        found = [d["name"] + DEPLOYMENT for d in self.deployments] + [
            m["name"] for m in self.models if not m.get("problem")
        ]
        return found or [NOTHING]

    def tooltip(self) -> str:
        if self.problem:
            return self.problem
        lines = []
        for d in self.deployments:
            f = d.get("forecast") or {}
            speed = f", {seconds(f['step_s'])} per step" if f.get("step_s") else ""
            lines.append(f"{d['name']} (deployment): {d.get('state', '')}{speed}")
        for m in self.models:
            said = m.get("problem") or self.forecasts.get(m["id"]) or ""
            lines.append(
                f"{m['name']}: {m.get('architecture', '')}, {size(m.get('bytes', 0))}" + (f"; {said}" if said else "")
            )
        return "\n".join(lines) or "the cluster has no models: start an agent with --models DIR"


class Cluster:
    """The connected cluster. A changed connection line makes a new client."""

    def __init__(self):
        self._lock = threading.Lock()
        self._client = None
        self._listing = None
        self._refresh = None
        self._informed = {}
        self.last = {}  # deployment to a sentence on its last run
        self.placed = {}  # deployment to the Target that placed it last: two loaders may want one in two ways

    def client(self) -> Client:
        found = connection.find()
        with self._lock:
            if self._client is None or self._client.connection != found:
                if self._client is not None:
                    self._client.close()
                self._client, self._listing, self._informed = Client(found), None, {}
            return self._client

    def listing(self) -> Listing:
        """The newest list there is; an older one while a new one is fetched."""
        with self._lock:
            known = self._listing
            if known is not None and time.monotonic() - known.at < FRESH_SECONDS:
                return known
            if self._refresh is None or not self._refresh.is_alive():
                self._refresh = threading.Thread(target=self._fetch, name="distorch-lists", daemon=True)
                self._refresh.start()
            refresh = self._refresh
        if known is None:
            refresh.join(FIRST_SECONDS)
        with self._lock:
            return self._listing or Listing(problem="the cluster has not answered yet; press R to read the lists again")

    def _fetch(self):
        try:
            client = self.client()
            models = _items(client.get("/v1/models", LIST_TIMEOUT), "models")
            deployments = _items(client.get("/v1/deployments", LIST_TIMEOUT), "deployments")
            known = Listing(models, deployments, forecasts=self._listing.forecasts if self._listing else {})
        except ClusterError as e:
            known = Listing(problem=str(e))
        except Exception as e:  # a menu is not worth a traceback at ComfyUI's start
            known = Listing(problem=f"the cluster's lists could not be read: {e}")
        with self._lock:
            self._listing = known
        if not known.problem:
            known.forecasts = self._forecasts(client, known)

    def _forecasts(self, client, known):
        told = {}
        for m in [m for m in known.models if not m.get("problem")][:PLANNED_MODELS]:
            if m["id"] in known.forecasts:
                told[m["id"]] = known.forecasts[m["id"]]
                continue
            try:
                plan = client.send("POST", "/v1/plan", {"model": m["id"], "workload": USUAL}, LIST_TIMEOUT)
                step = (plan.get("forecast") or {}).get("step_s")
                told[m["id"]] = (
                    f"{seconds(step)} per step at 1024x1024"
                    if plan.get("feasible") and step
                    else plan.get("message", "")
                )
            except ClusterError:
                continue
        return told

    def find(self, choice: str) -> tuple[str | None, dict | None]:
        """The deployment's name or the model's list entry that a menu's entry means.
        A bare name is a deployment's first, then a model's name (with or without the
        file's ending) or id.
        """
        client = self.client()
        deployments = _items(client.get("/v1/deployments"), "deployments")
        name = choice.removesuffix(DEPLOYMENT)
        if any(d["name"] == name for d in deployments):
            return name, None
        if choice.endswith(DEPLOYMENT):
            names = ", ".join(d["name"] for d in deployments) or "there is none"
            raise ClusterError(
                f"the cluster has no deployment {name} ({names}); choose one in the loader, or a model", "not_found"
            )
        models = [m for m in _items(client.get("/v1/models"), "models") if m.get("architecture") != "lora"]
        bare = _bare(name)
        for m in models:
            if name in (m["id"], m["name"]):
                return None, m
        for m in models:
            if _bare(m["name"]) == bare:
                return None, m
        names = ", ".join(m["name"] for m in models) or "it has none; start an agent with --models DIR"
        raise ClusterError(f"the cluster has no model {name} ({names}); choose one in the loader", "not_found")

    def model(self, which: str) -> dict:
        """Everything about a model, by id or name."""
        client = self.client()
        with self._lock:
            known = self._informed.get(which)
        if known is None:
            known = client.get("/v1/models/" + urllib.parse.quote(which, safe=""))
            with self._lock:
                self._informed[known.get("id")] = known  # by id alone: a name may come to mean another file
        return known

    def deployment(self, name: str, call: Call | None = None, wait: str = "") -> dict:
        path = "/v1/deployments/" + urllib.parse.quote(name, safe="")
        return self.client().get(path + (f"?wait={wait}" if wait else ""), 60, 20, call)


class Target:
    """What a MODEL computes on: a deployment that is there, or one of a model that is
    made when the first forward says how large it has to be.
    """

    WAIT = "5s"

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        model: dict | None = None,
        wanted: dict | None = None,
        workload: dict | None = None,
    ):
        self.cluster, self.name, self.model = cluster, name, model
        self.wanted, self.workload = wanted or {}, workload or {}
        self._lock = threading.Lock()
        self._have = None  # workload of the deployment when it was last seen ready

    @property
    def owned(self) -> bool:
        return self.model is not None

    @property
    def placed(self) -> bool:
        return self._have is not None

    def forget(self):
        """The deployment went or changed: look again before the next forward."""
        self._have = None

    def ready(self, need: dict, call: Call) -> str:
        """The name of the deployment, once it is ready for the workload."""
        with self._lock:
            if not self.owned:
                self._have = self._have or self._await(call)
            elif self._have is None or not covers(self._have, need) or self.cluster.placed.get(self.name) is not self:
                self._have = self._place(need, call)
                self.cluster.placed[self.name] = self
        return self.name

    def _place(self, need, call):
        try:
            there = self.cluster.deployment(self.name, call)["spec"]
        except ClusterError as e:
            if e.code != "not_found":
                raise
            there = None
        usual = self.model.get("dtype")  # the coordinator writes it into a spec that says none
        same = (
            there is not None
            and there.get("model") in (self.model["id"], self.model["name"])
            and all(_same(there.get(k), self.wanted.get(k)) for k in ("virtual_vram", "allocation"))
            and _same(there.get("dtype") or usual, self.wanted.get("dtype") or usual)
        )
        workload = grown(
            {} if "in_flight" in self.workload else {"in_flight": 2},
            self.workload,
            need,
            (there.get("workload") or {}) if same else {},
        )
        if not same or not covers(there.get("workload") or {}, workload):
            spec = {
                "model": self.model["id"],
                "workload": workload,
                **self.wanted,
            }  # LoRAs come again with the forwards that use them
            log.info(
                "distorch: placing %s as deployment %s for %s", self.model["name"], self.name, json.dumps(workload)
            )
            self.cluster.client().send(
                "PUT", "/v1/deployments/" + urllib.parse.quote(self.name, safe=""), spec, 120, call
            )
        return self._await(call)

    def _await(self, call):
        said = None
        while True:
            d = self.cluster.deployment(self.name, call, self.WAIT)
            state, message = d.get("state", ""), d.get("message", "")
            if state == "ready":
                return (d.get("spec") or {}).get("workload") or {}
            if state in ("failed", "infeasible"):
                raise ClusterError(
                    f"deployment {self.name} is {state}: {message or 'the coordinator gives no reason'}", "conflict"
                )
            if message != said:
                said = message
                log.info("distorch: deployment %s is %s%s", self.name, state, f": {message}" if message else "")
            if call.cancelled.wait(0.2):
                call.check()


def covers(have: dict, need: dict) -> bool:
    """Whether a deployment placed for one workload takes another."""
    return all(have.get(k, 0) >= v for k, v in need.items())


def grown(*workloads: dict) -> dict:
    """The smallest workload that takes all of them."""
    out = {}
    for w in workloads:
        for k, v in w.items():
            if isinstance(v, int) and v > out.get(k, 0):
                out[k] = v
    return out


def deployment_name(client_name: str, model_name: str) -> str:
    """A name for what this ComfyUI deploys: its token's name and the model's."""
    return re.sub(r"[^a-z0-9]+", "-", f"{client_name}-{_bare(model_name)}".lower()).strip("-")[:60].strip("-")


def seconds(v: float) -> str:
    return f"{v:.3g} s" if v >= 1 else f"{v * 1e3:.3g} ms"


def size(v: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if v >= scale:
            return f"{v / scale:.3g} {unit}"
    return f"{v:.0f} B"


def _bare(name: str) -> str:
    return re.sub(r"\.(safetensors|sft|gguf)$", "", name.replace("\\", "/").rsplit("/", 1)[-1])


def _same(a, b) -> bool:
    return (a or None) == (b or None)


def _items(answer, key: str) -> list[dict]:
    found = answer.get(key) if isinstance(answer, dict) else answer
    if not isinstance(found, list) or not all(isinstance(v, dict) and isinstance(v.get("name"), str) for v in found):
        raise ClusterError(
            f"the cluster's list of {key} has an unknown form; are this pack and the coordinator of one version?",
            "internal",
        )
    return found
