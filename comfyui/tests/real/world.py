# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all checks share: a cluster of two agents, a ComfyUI with the node pack, and how to sample with both."""

import pathlib
import shutil
from dataclasses import dataclass, field

import loras
from cluster import Cluster
from graph import Graph
from report import distance
from server import ComfyUI

HERE = pathlib.Path(__file__).resolve().parent
PACK = HERE.parents[1]
DEMO = HERE.parents[2] / "demo"
LOADER = "Load Diffusion Model (distorch)"  # its display name
STEPS = 20

# Two deployments, each cut in the middle over both agents.
F32, BF16 = "test-f32", "test-bf16"
MODEL = "demo.safetensors"  # in place of a deployment: the node makes one, in f32
WORKLOAD = "1024x1024,tokens=16,batch=1"
PINS = {"a": 3, "b": 3}


@dataclass
class Sampling:
    """One way to sample; the same for both models."""

    cfg: float = 1.0
    custom: bool = False  # SamplerCustomAdvanced instead of KSampler
    sampler: str = "euler"
    scheduler: str = "simple"
    steps: int = STEPS
    seed: int = 42
    width: int = 128
    height: int = 128
    batch: int = 1
    denoise: float = 1.0
    guidance: float | None = 3.5
    text: str = "large red circle on blue"
    loras: list = field(default_factory=list)  # (loader, file, strength)
    shift: bool = False  # ModelSamplingFlux
    dtype: str = ""  # of ModelComputeDtype

    def add(self, g: Graph, model: list, latent: list | None = None) -> list:
        """The nodes that sample with a model; the link of the latent."""
        for loader, file, strength in self.loras:
            clip = {"clip": g.add("DistorchTestClip"), "strength_clip": 1.0} if loader == "LoraLoader" else {}
            model = g.add(loader, model=model, lora_name=file, strength_model=strength, **clip)
        if self.shift:
            model = g.add("ModelSamplingFlux", model=model, max_shift=1.15, base_shift=0.5, width=self.width, height=self.height)
        if self.dtype:
            model = g.add("ModelComputeDtype", model=model, dtype=self.dtype)
        positive = g.words(self.text, self.guidance)
        if latent is None:
            latent = g.add("EmptySD3LatentImage", width=self.width, height=self.height, batch_size=self.batch)
        if not self.custom:
            return g.add("KSampler", model=model, seed=self.seed, steps=self.steps, cfg=self.cfg, sampler_name=self.sampler,
                         scheduler=self.scheduler, positive=positive, negative=g.words("", self.guidance), latent_image=latent, denoise=self.denoise)
        if self.cfg == 1:
            guider = g.add("BasicGuider", model=model, conditioning=positive)
        else:
            guider = g.add("CFGGuider", model=model, positive=positive, negative=g.words("", self.guidance), cfg=self.cfg)
        return g.add("SamplerCustomAdvanced", noise=g.add("RandomNoise", noise_seed=self.seed), guider=guider,
                     sampler=g.add("KSamplerSelect", sampler_name=self.sampler), latent_image=latent,
                     sigmas=g.add("BasicScheduler", model=model, scheduler=self.scheduler, steps=self.steps, denoise=self.denoise))


class World:
    def __init__(self, python: pathlib.Path, checkout: pathlib.Path, distorch: pathlib.Path, folder: pathlib.Path):
        self.python, self.checkout, self.folder = python, checkout, folder
        self.cluster, self.comfy = None, None
        models = folder / "models"
        models.mkdir()
        shutil.copyfile(DEMO / "demo.safetensors", models / "demo.safetensors")
        try:
            self.cluster = Cluster(distorch, folder / "cluster", [models])
            for name in PINS:
                self.cluster.agent(name, "1GB")
            self.cluster.deploy(F32, WORKLOAD, "f32", PINS)
            self.cluster.deploy(BF16, WORKLOAD, "bf16", PINS)
            self.line = self.cluster.connection("comfyui")
            self.comfy = self.boot("comfyui", ["--use-pytorch-cross-attention"])
            self.loader = next((c for c, info in self.comfy.get("/object_info").items() if info["display_name"] == LOADER), None)
            if self.loader is None:
                raise RuntimeError(f"ComfyUI has no node {LOADER!r}; its log ends with\n{self.comfy.process.tail()}")
            info = self.comfy.get("/object_info/DistorchTestLocal")
            self.stock = info["DistorchTestLocal"]["input"]["required"]["way"][0][0] == "stock"
        except BaseException:
            self.stop()
            raise

    def boot(self, name: str, flags: list) -> ComfyUI:
        """A ComfyUI with the node pack, the tests' own nodes, the demo checkpoint and two LoRAs."""
        server = ComfyUI(
            self.python, self.checkout, self.folder / name, {"distorch": PACK, "distorch-test": HERE / "nodes"},
            {"DISTORCH_TEST_DEMO": str(DEMO)}, flags)
        try:
            shutil.copyfile(DEMO / "demo.safetensors", server.base / "models" / "diffusion_models" / "demo.safetensors")
            loras.write(server.base / "models" / "loras")
            self.connect(server, self.line)
            return server.wait()
        except BaseException:
            server.stop()
            raise

    def connect(self, server: ComfyUI, line: str):
        (server.base / "user" / "distorch.txt").write_text(line + "\n", encoding="utf-8")

    def local(self, g: Graph) -> list:
        if self.stock:
            return g.add("UNETLoader", unet_name="demo.safetensors", weight_dtype="default")
        return g.add("DistorchTestLocal", way="explicit")

    def remote(self, g: Graph, deployment: str = F32) -> list:
        known = deployment == MODEL
        return g.add(self.loader, model=MODEL if known else f"{deployment} (deployment)", dtype="f32" if known else "default", virtual_vram_gb=0.0, allocation="")

    def compare(self, how: Sampling, remote: str = F32) -> float:
        """Samples with the local and the remote model in one prompt; their distance."""
        g = Graph()
        a, b = g.save(how.add(g, self.remote(g, remote)), "remote"), g.save(how.add(g, self.local(g)), "local")
        run = self.comfy.run(g)
        return distance(run.latent(self.comfy, a), run.latent(self.comfy, b))

    def stop(self):
        if self.comfy:
            self.comfy.stop()
        if self.cluster:
            self.cluster.stop()
