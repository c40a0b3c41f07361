# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pack with a real coordinator and two agents behind it: the binary of DISTORCH_BIN,
on the demo checkpoint. Only ComfyUI is a double.
"""

import math
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import unittest.mock

import torch

import comfy.model_management as mm
from comfy.samplers import Guider
from comfyui import nodes, wire
from comfyui.demo import DemoText

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("DISTORCH_BIN", os.path.join(ROOT, "bin", "distorch"))


class Cluster:
    """Processes, stopped by close."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="distorch-pack-")
        self.agents = {}
        self.processes = []
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self):
        models = self.models = os.path.join(self.dir, "models")
        os.mkdir(models)
        shutil.copy(os.path.join(ROOT, "demo", "demo.safetensors"), models)
        with open(os.path.join(models, "style.safetensors"), "wb") as f:
            f.write(wire.pack(kohya()))
        self.address = f"127.0.0.1:{port()}"
        self.data = os.path.join(self.dir, "coordinator")
        self.run(
            "coordinator",
            "coordinator",
            "--data-dir",
            self.data,
            "--listen",
            self.address,
            "--etcd-listen",
            f"127.0.0.1:{port()}",
        )
        for name in ("a", "b"):
            token = self.tell("token", "create")
            path = os.path.join(self.dir, name + ".token")
            with open(path, "w") as f:
                f.write(token)
            self.agents[name] = self.run(
                name,
                "agent",
                "--data-dir",
                os.path.join(self.dir, name),
                "--listen",
                f"127.0.0.1:{port()}",
                "--name",
                name,
                "--join-file",
                path,
                "--models",
                models,
                "--threads",
                "1",
                "--memory",
                "1GB",
            )
        self.line = self.tell("token", "create", "--client", "tests").strip()

    def run(self, name, *args):
        ready = os.path.join(self.dir, name + ".ready")
        with open(os.path.join(self.dir, name + ".log"), "wb") as log:
            p = subprocess.Popen([BIN, *args, "--ready-file", ready], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.processes.append(p)
        end = time.monotonic() + 90
        while not os.path.exists(ready):
            if p.poll() is not None or time.monotonic() > end:
                with open(os.path.join(self.dir, name + ".log"), errors="replace") as f:
                    raise RuntimeError(f"{name} did not start: {f.read()[-2000:]}")
            time.sleep(0.05)
        return p

    def tell(self, *args):
        return subprocess.run(
            [BIN, *args, "--data-dir", self.data, "--coordinator", self.address],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout

    def close(self):
        for p in reversed(self.processes):
            p.terminate()
        for p in self.processes:
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def setUpModule():
    global cluster
    cluster = Cluster()
    os.environ["DISTORCH_CONNECTION"] = cluster.line


def tearDownModule():
    os.environ.pop("DISTORCH_CONNECTION", None)
    if nodes.CLUSTER._client is not None:
        nodes.CLUSTER._client.close()
    cluster.close()


def sigmas(steps, shift=1.15):
    """ComfyUI's schedule simple of a FLUX model."""
    table = [math.exp(shift) / (math.exp(shift) + 10000 / t - 1) for t in range(1, 10001)]
    return torch.tensor([table[-(1 + int(i * 10000 / steps))] for i in range(steps)] + [0.0])


def text(prompt):
    return DemoText().encode(prompt)[0]


def load(name="demo", dtype="f32", allocation="", vram=0.0):
    return nodes.LoadDiffusionModel().load(name, dtype, vram, allocation)[0]


def sample(patcher, noise, prompt="large red circle on blue", cfg=1.0, steps=20, negative="", **kwargs):
    """The final latent in the model's space."""
    got = Guider(patcher, text(prompt), text(negative), cfg).sample(noise, sigmas(steps), **kwargs)
    return (got - 0.1159) * 0.3611


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


def kohya(rank=4, seed=5):
    """A LoRA file for the demo checkpoint, in the names that agents read too."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, rows, columns in LAYERS:
        key = "lora_unet_" + name.replace(".", "_")
        out[key + ".lora_up.weight"] = torch.randn(rows, rank, generator=g) * 0.05
        out[key + ".lora_down.weight"] = torch.randn(rank, columns, generator=g) * 0.05
        out[key + ".alpha"] = torch.tensor(2.0 * rank)
    return out


LAYERS = (
    ("double_blocks.0.img_attn.qkv", 768, 256),
    ("double_blocks.1.txt_mlp.0", 1024, 256),
    ("single_blocks.2.linear1", 1792, 256),
    ("single_blocks.3.modulation.lin", 768, 256),
)


class Adapter:
    name = "lora"

    def __init__(self, up, down, alpha):
        self.weights = (up, down, alpha, None, None, None)


def patches(file, slices=False):
    """What ComfyUI's loader makes of the file; slices: of a fused weight by its rows, as
    files of diffusers' names have it.
    """
    out = {}
    for name, rows, columns in LAYERS:
        key = "lora_unet_" + name.replace(".", "_")
        up, down, alpha = (file[f"{key}.{k}"] for k in ("lora_up.weight", "lora_down.weight", "alpha"))
        target = f"diffusion_model.{name}.weight"
        if slices and name.endswith("qkv"):
            for i in range(3):
                out[(target, (0, i * 256, 256))] = Adapter(up[i * 256 : (i + 1) * 256].contiguous(), down, alpha.item())
        else:
            out[target] = Adapter(up, down, alpha.item())
    return out


class Golden(unittest.TestCase):
    """Against latents that ComfyUI's own class made (demo/reference.safetensors)."""

    @classmethod
    def setUpClass(cls):
        with open(os.path.join(ROOT, "demo", "reference.safetensors"), "rb") as f:
            cls.want, _ = wire.unpack(bytearray(f.read()))

    def test_float32(self):
        for key, prompt, cfg in (
            ("a", "large red circle on blue", 1.0),
            ("b", "large purple diamond on yellow", 1.0),
            ("c", "small white cross on red", 3.0),
        ):
            with self.subTest(key):
                first = []
                got = sample(load(), self.want[key + ".noise"], prompt, cfg, callback=lambda i, x0: first.append(x0))
                self.assertLess(distance(got, self.want[key + ".latent"]), 2e-5)
                if cfg == 1:
                    self.assertLess(
                        distance(self.want[key + ".noise"] - first[0], self.want[key + ".first_prediction"]), 1e-5
                    )

    def test_bfloat16(self):
        patcher = load(dtype="bf16")
        self.assertEqual(patcher.model.diffusion_model.dtype, torch.bfloat16)
        self.assertLess(distance(sample(patcher, self.want["a.noise"]), self.want["a.latent"]), 6e-2)


class Picture(unittest.TestCase):
    def setUp(self):
        self.noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(11))
        mm.interrupted.clear()

    def test_batches_and_cuts_keep_the_bits(self):
        patcher = load()
        noise = torch.randn(3, 16, 16, 16, generator=torch.Generator().manual_seed(12))
        together = sample(patcher, noise, cfg=3.0, steps=4, negative="small blue square on white")
        for i in range(3):
            alone = sample(patcher, noise[i : i + 1], cfg=3.0, steps=4, negative="small blue square on white")
            self.assertTrue(torch.equal(alone, together[i : i + 1]))
        cluster.tell(
            "deploy",
            "cut",
            "--model",
            "demo",
            "--dtype",
            "f32",
            "--workload",
            "128x128,tokens=5",
            "--pin",
            "a=0-2",
            "--pin",
            "b=3-5",
            "--wait",
        )
        cut = sample(
            load("cut (deployment)", "default"), noise[:1], cfg=3.0, steps=4, negative="small blue square on white"
        )
        self.assertEqual([s["node"] for s in nodes.CLUSTER.deployment("cut")["plan"]], ["a", "b"])
        cluster.tell("undeploy", "cut")
        self.assertTrue(torch.equal(cut, together[:1]))
        self.assertIn("equals one device", nodes.CLUSTER.last["cut"])

    def test_odd_sizes_and_lengths(self):
        patcher = load()
        for side in ((15, 13), (8, 24)):
            got = Guider(
                patcher, [[torch.zeros(1, 3, 64), {"pooled_output": torch.zeros(1, 64)}]], text(""), 2.0
            ).sample(torch.ones(1, 16, *side), sigmas(2))
            self.assertEqual(got.shape[2:], torch.Size(side))
            self.assertTrue(torch.isfinite(got).all())

    def test_mask_and_references(self):
        patcher = load()
        plain = sample(patcher, self.noise, steps=2)
        ((context, more),) = text("large red circle on blue")

        def with_(**extra):
            cond = [[context, {**more, **extra}]]
            return (Guider(patcher, cond, text(""), 1.0).sample(self.noise, sigmas(2)) - 0.1159) * 0.3611

        tokens = 5 + 64
        self.assertLess(distance(with_(extra={"attention_mask": torch.zeros(1, tokens, tokens)}), plain), 1e-5)
        mask = torch.zeros(1, tokens, tokens)
        mask[:, :, :5] = -5.0
        self.assertGreater(distance(with_(extra={"attention_mask": mask}), plain), 1e-3)
        reference = torch.ones(1, 16, 8, 12)
        offset, index = (
            with_(reference_latents=[reference, reference]),
            with_(reference_latents=[reference, reference], reference_latents_method="index"),
        )
        self.assertGreater(distance(offset, plain), 1e-3)
        self.assertGreater(distance(offset, index), 1e-6)

    def test_lora_equals_the_agents(self):
        """A LoRA that ComfyUI loads and sends, against the file that agents read."""
        cluster.tell(
            "deploy",
            "styled",
            "--model",
            "demo",
            "--dtype",
            "f32",
            "--workload",
            "128x128,tokens=5",
            "--lora",
            "style.safetensors:0.7",
            "--wait",
        )
        path = os.path.join(cluster.dir, "styled.safetensors")
        cluster.tell(
            "run",
            "styled",
            "--prompt",
            "large red circle on blue",
            "--seed",
            "11",
            "--steps",
            "6",
            "--save-latent",
            path,
        )
        with open(path, "rb") as f:
            want = wire.unpack(bytearray(f.read()))[0]["latent"].reshape(1, 16, 16, 16)
        cluster.tell("undeploy", "styled")
        plain = load()
        base = sample(plain, self.noise, steps=6)
        for name, parts in (
            ("whole", [(0.7, False)]),
            ("slices", [(0.7, True)]),
            ("two of half", [(0.35, False), (0.35, True)]),
            ("negative", [(1.0, False), (-0.3, False)]),
        ):
            with self.subTest(name):
                patcher = plain.clone()
                for strength, slices in parts:
                    patcher.add_patches(patches(kohya(), slices), strength)
                got = sample(patcher, self.noise, steps=6)
                self.assertLess(distance(got, want), 2e-5)
                self.assertGreater(distance(got, base), 1e-3)
        self.assertTrue(torch.equal(sample(plain, self.noise, steps=6), base), "a LoRA stayed on the model without it")

    def test_interrupt_in_the_middle_of_a_step(self):
        patcher = load()
        large = torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(1))
        sample(patcher, large, steps=1)  # placed for it
        caught, begun = [], threading.Event()

        def run():
            try:
                sample(
                    patcher,
                    large,
                    cfg=3.0,
                    steps=50,
                    negative="small blue square on white",
                    callback=lambda i, x: begun.set(),
                )
            except BaseException as e:
                caught.append((e, time.monotonic()))

        sampler = threading.Thread(target=run)
        sampler.start()
        self.assertTrue(begun.wait(60))
        begin = time.monotonic()
        mm.interrupted.set()
        sampler.join(30)
        self.assertIsInstance(caught[0][0], mm.InterruptProcessingException)
        self.assertLess(caught[0][1] - begin, 1.0)
        self.assertTrue(torch.isfinite(sample(patcher, self.noise, steps=2)).all())

    def test_plan_and_status(self):
        out = nodes.Plan().plan(
            "demo",
            "f32",
            0.0,
            "a/cpu,5mb;b/cpu,*",
            {"width": 256, "height": 256, "text_tokens": 5, "batch": 1, "in_flight": 2},
        )
        self.assertIn("a", out["result"][0])
        self.assertGreater(out["result"][1].std(), 0.05)
        status = nodes.ClusterStatus().show()["result"][0]
        for part in ("as client tests", "a: ready", "b: ready", "demo.safetensors: flux"):
            self.assertIn(part, status)

    def test_too_large_for_a_deployment(self):
        cluster.tell("deploy", "small", "--model", "demo", "--workload", "128x128,tokens=5", "--wait")
        patcher = load("small (deployment)", "default")
        with self.assertRaisesRegex(RuntimeError, "deployment small, step 1: .*placed for"):
            sample(patcher, torch.ones(1, 16, 32, 32), steps=1)
        self.assertTrue(torch.isfinite(sample(patcher, self.noise, steps=1)).all())
        cluster.tell("undeploy", "small")

    def test_revoked_token(self):
        line = cluster.tell("token", "create", "--client", "gone").strip()
        cluster.tell("token", "revoke", "gone")
        with (
            unittest.mock.patch.dict(os.environ, DISTORCH_CONNECTION=line),
            self.assertRaisesRegex(RuntimeError, "revoked.*distorch token create"),
        ):
            load()

    def test_z_lost_nodes(self):
        """Last, as it ends agents: the picture goes on on what is left; with nothing left
        the error names deployment, step and way out.
        """
        patcher = load()
        want = sample(patcher, self.noise, steps=6)
        where = nodes.CLUSTER.deployment("tests-demo")["plan"][0]["node"]

        def lose(names, at):
            def callback(i, x0):
                if i == at:
                    for name in names:
                        cluster.agents.pop(name).kill()

            return callback

        self.assertTrue(
            torch.equal(sample(patcher, self.noise, steps=6, callback=lose([where], 2)), want),
            "losing a node changed the picture",
        )
        with (
            unittest.mock.patch("comfyui.remote.DEADLINE_SECONDS", 4.0),
            self.assertRaisesRegex(RuntimeError, "deployment tests-demo, step 3: .*queue the prompt again"),
        ):
            sample(patcher, self.noise, steps=6, callback=lose(list(cluster.agents), 1))
