# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""The checks, in the order in which they run; the last ones lose agents."""

import pathlib
import signal
import statistics
import sys
import tempfile
import time
import unittest

import report
import workflows
from graph import Graph
from PIL import Image, ImageChops, ImageStat
from report import distance, row
from server import Rejected
from world import BF16, DEMO, F32, MODEL, STEPS, Sampling, World

F32_LIMIT = 1e-4
BF16_LIMIT = 2e-2
SEEDS = 9
INTERRUPT = 0.35  # of a step's time, of which 0.7 is left when the interrupt comes

KOHYA = ("LoraLoaderModelOnly", "kohya.safetensors", 0.8)
PEFT = ("LoraLoader", "peft.safetensors", -0.5)


def changed(loader, strength):
    return (*loader[:2], strength)


class Check(unittest.TestCase):
    world: World

    def setUp(self):
        self.comfy = self.world.comfy

    def equal(self, what: str, how: Sampling, remote: str = F32):
        with self.subTest(what):
            try:
                d = self.world.compare(how, remote)
            except Exception as e:
                row(what, "-", f"{F32_LIMIT:g}", False)
                self.fail(f"{what}: {e}")
            row(what, f"{d:.1e}", f"{F32_LIMIT:g}", d <= F32_LIMIT)
            self.assertLessEqual(d, F32_LIMIT, what)

    def failed(self, g: Graph) -> str:
        """What a person reads when a prompt fails, at once or as it runs."""
        try:
            run = self.comfy.run(g)
        except Rejected as e:
            return str(e)
        self.assertEqual(run.status, "error", "the prompt ended well")
        self.assertEqual(len(run.previews), 0, "a step was sampled before it failed")
        self.assertNotIn("/", run.error["exception_type"])
        return run.error["exception_message"].strip()


class Equality(Check):
    """The final latent in f32: local and remote."""

    def test_samplers(self):
        for custom, name in ((False, "KSampler"), (True, "SamplerCustomAdvanced")):
            for cfg in (1.0, 3.0):
                for lora, said in (([], ""), ([KOHYA], ", LoRA (kohya)"), ([KOHYA, PEFT], ", two LoRAs (kohya, PEFT)")):
                    self.equal(f"{name}, CFG {cfg:g}{said}", Sampling(cfg=cfg, custom=custom, loras=lora))

    def test_lora_strengths(self):
        for strengths in ((0.3, -0.5), (0.3, 1.0), (-1.0, 0.0)):
            loras = [changed(loader, s) for loader, s in zip((KOHYA, PEFT), strengths)]
            self.equal(f"LoRA strengths {strengths[0]:g} and {strengths[1]:g}", Sampling(loras=loras))
        self.equal("the same LoRA twice", Sampling(loras=[KOHYA, changed(KOHYA, 0.4)]))

    def test_lora_changes_the_picture(self):
        g = Graph()
        a = g.save(Sampling(loras=[KOHYA, PEFT]).add(g, self.world.remote(g)), "with")
        b = g.save(Sampling().add(g, self.world.remote(g)), "without")
        run = self.comfy.run(g)
        d = distance(run.latent(self.comfy, a), run.latent(self.comfy, b))
        row("two LoRAs against none, remote", f"{d:.2f}", "> 0.05", d > 0.05)
        self.assertGreater(d, 0.05)

    def test_other_samplers(self):
        for sampler, scheduler in (("euler_ancestral", "normal"), ("heun", "simple"), ("dpmpp_2m", "beta"), ("dpmpp_2m_sde", "simple"), ("uni_pc", "simple"), ("res_multistep", "sgm_uniform")):
            self.equal(f"{sampler}, {scheduler}", Sampling(sampler=sampler, scheduler=scheduler, custom=sampler != "uni_pc", cfg=2.0))

    def test_sizes(self):
        self.equal("batch of 2, CFG 3", Sampling(batch=2, cfg=3.0))
        self.equal("batch of 3, CFG 1, SamplerCustomAdvanced", Sampling(batch=3, custom=True))
        self.equal("latent of 15 by 19", Sampling(width=152, height=120))
        self.equal("256x320", Sampling(width=256, height=320))

    def test_model_nodes(self):
        self.equal("ModelSamplingFlux", Sampling(shift=True))
        self.equal("ModelSamplingFlux, SamplerCustomAdvanced, CFG 3", Sampling(shift=True, custom=True, cfg=3.0))
        self.equal("no FluxGuidance", Sampling(guidance=None))
        self.equal("FluxGuidance 2.7", Sampling(guidance=2.7))

    def test_half_denoise(self):
        for custom in (False, True):
            g = Graph()
            start = Sampling(text="small yellow square on purple").add(g, self.world.local(g))
            half = Sampling(seed=7, denoise=0.5, custom=custom)
            a, b = (g.save(half.add(g, m, start), "half") for m in (self.world.remote(g), self.world.local(g)))
            run = self.comfy.run(g)
            d = distance(run.latent(self.comfy, a), run.latent(self.comfy, b))
            row(f"half denoise, {'SamplerCustomAdvanced' if custom else 'KSampler'}", f"{d:.1e}", f"{F32_LIMIT:g}", d <= F32_LIMIT)
            self.assertLessEqual(d, F32_LIMIT)

    def test_deployed_by_the_node(self):
        """A model instead of a deployment: placed by its first forward, and anew by a larger one."""
        self.equal("deployed by the node, f32", Sampling(seed=3), MODEL)
        self.equal("deployed by the node, CFG 3 and a LoRA", Sampling(seed=3, cfg=3.0, loras=[KOHYA]), MODEL)
        self.equal("placed anew for a larger picture", Sampling(seed=3, width=192, height=160), MODEL)

    def test_reference_latent(self):
        latents = []
        g = Graph()
        reference = Sampling(text="small yellow square on purple").add(g, self.world.local(g))
        for m in (self.world.remote(g, MODEL), self.world.local(g)):
            positive = g.add("ReferenceLatent", conditioning=g.words("large red circle on blue", 3.5), latent=reference)
            latents.append(g.save(g.add(
                "KSampler", model=m, seed=1, steps=STEPS, cfg=1.0, sampler_name="euler", scheduler="simple", positive=positive, negative=g.words(""),
                latent_image=g.add("EmptySD3LatentImage", width=128, height=128, batch_size=1), denoise=1.0), "reference"))
        run = self.comfy.run(g)
        d = distance(*(run.latent(self.comfy, n) for n in latents))
        row("a reference latent (Kontext)", f"{d:.1e}", f"{F32_LIMIT:g}", d <= F32_LIMIT)
        self.assertLessEqual(d, F32_LIMIT)


class HalfPrecision(Check):
    """bf16: many seeds, beside what ComfyUI's own attention modes differ by."""

    def local(self, server, seed: int, dtype: str = "bf16"):
        g = Graph()
        node = g.save(Sampling(seed=seed, dtype=dtype).add(g, self.world.local(g)), "bf16")
        return server.run(g).latent(server, node)

    def test_bf16(self):
        theirs, ours = [], []
        for seed in range(SEEDS):
            theirs.append(self.local(self.comfy, seed))
            g = Graph()
            node = g.save(Sampling(seed=seed).add(g, self.world.remote(g, BF16)), "bf16")
            ours.append(self.comfy.run(g).latent(self.comfy, node))
        other = self.world.boot("comfyui-split", ["--use-split-cross-attention"])
        try:
            split = [self.local(other, seed) for seed in range(SEEDS)]
        finally:
            other.stop()
        remote = [distance(a, b) for a, b in zip(ours, theirs)]
        modes = [distance(a, b) for a, b in zip(split, theirs)]
        f32 = [distance(b, self.local(self.comfy, seed, "default")) for seed, b in enumerate(theirs)]
        median = statistics.median(remote)
        row(f"bf16, {SEEDS} seeds: median", f"{median:.1e}", f"{BF16_LIMIT:g}", median <= BF16_LIMIT)
        row("bf16: worst", f"{max(remote):.1e}")
        row("ComfyUI's two attention modes in bf16: median, worst", f"{statistics.median(modes):.1e}, {max(modes):.1e}")
        row("ComfyUI's bf16 against its f32: median, worst", f"{statistics.median(f32):.1e}, {max(f32):.1e}")
        self.assertLessEqual(median, BF16_LIMIT)
        self.assertGreater(max(modes), 0, "the second ComfyUI did not use another attention")


class Queue(Check):
    """Previews, interrupts and what waits."""

    def test_previews(self):
        g = Graph()
        g.save(Sampling().add(g, self.world.remote(g)), "preview")
        run = self.comfy.run(g)
        jpeg = sum(p[1].startswith(b"\xff\xd8") for p in run.previews)
        progress = [e[2]["value"] for e in run.all("progress")]
        row(f"previews of {STEPS} steps", f"{jpeg} JPEG", f"{STEPS}", jpeg == STEPS)
        self.assertEqual(jpeg, STEPS)
        self.assertEqual(progress[-1], STEPS)

    def test_two_prompts(self):
        prompts = []
        for seed in (5, 6):
            g = Graph()
            how = Sampling(seed=seed, cfg=3.0, loras=[changed(KOHYA, seed / 10)])
            prompts.append((g, g.save(how.add(g, self.world.remote(g)), "queue"), g.save(how.add(g, self.world.local(g)), "queue")))
        runs = [self.comfy.queue(g) for g, _, _ in prompts]
        worst = 0.0
        for run, (_, a, b) in zip(runs, prompts):
            self.comfy.finish(run)
            worst = max(worst, distance(run.latent(self.comfy, a), run.latent(self.comfy, b)))
        row("two prompts queued, other strengths of a LoRA", f"{worst:.1e}", f"{F32_LIMIT:g}", worst <= F32_LIMIT)
        self.assertLessEqual(worst, F32_LIMIT)

    def test_interrupt(self):
        times, steps = [], []
        for seed in range(4):
            g = Graph()
            g.save(Sampling(seed=100 + seed, width=1024, height=1024, cfg=3.0 if seed % 2 else 1.0).add(g, self.world.remote(g)), "interrupt")
            run = self.comfy.queue(g)
            began = time.monotonic()
            while not (progress := run.all("progress")):
                self.assertLess(time.monotonic(), began + 120, "no step in two minutes")
                self.assertIsNone(run.first("execution_error"), run.error)
                time.sleep(0.01)
            step = progress[0][0] - run.first("execution_start")[0]
            time.sleep(0.3 * step)  # into the second step
            asked = self.comfy.interrupt()
            self.comfy.finish(run)
            self.assertEqual(run.status, "interrupted")
            times.append(run.first("execution_interrupted")[0] - asked)
            steps.append(step)
        limit = INTERRUPT * min(steps)
        row(f"interrupt in a step of {statistics.median(steps):.1f} s: median, worst", f"{statistics.median(times) * 1e3:.0f} ms, {max(times) * 1e3:.0f} ms", f"median {limit * 1e3:.0f} ms", statistics.median(times) < limit)
        self.assertLess(statistics.median(times), limit)  # one may meet a pause of ComfyUI's own
        self.equal("the run after an interrupt", Sampling(seed=77))


class Refusals(Check):
    """What cannot work is refused by name, before the first step."""

    def refuse(self, what: str, change, *words: str):
        with self.subTest(what):
            g = Graph()
            model, positive = self.world.remote(g), g.words("large red circle on blue")
            model, positive = change(g, model, positive)
            g.save(g.add("KSampler", model=model, seed=1, steps=4, cfg=3.0, sampler_name="euler", scheduler="simple", positive=positive, negative=g.words(""),
                         latent_image=g.add("EmptySD3LatentImage", width=128, height=128, batch_size=1), denoise=1.0), "refused")
            try:
                said = self.failed(g)
                for w in words:
                    self.assertIn(w.lower(), said.lower())
                self.assertNotIn("\n", said)
            except Exception:
                row(f"refused: {what}", "-", "by name", False)
                raise
            row(f"refused: {what}", "by name")
            print(f"  {what}: {said}")

    def test_refusals(self):
        self.refuse("ControlNet", lambda g, m, c: (m, g.add(
            "ControlNetApply", conditioning=c, control_net=g.add("DistorchTestControlNet"), image=g.add("EmptyImage", width=64, height=64, batch_size=1, color=0), strength=1.0)), "ControlNet")
        self.refuse("HyperTile", lambda g, m, c: (g.add("HyperTile", model=m, tile_size=256, swap_size=2, max_depth=0, scale_depth=False), c), "attn1")
        self.refuse("ToMe", lambda g, m, c: (g.add("TomePatchModel", model=m, ratio=0.3), c), "attn1")
        self.refuse("PerturbedAttentionGuidance", lambda g, m, c: (g.add("PerturbedAttentionGuidance", model=m, scale=3.0), c), "attn1")
        self.refuse("SkipLayerGuidanceDiT", lambda g, m, c: (g.add(
            "SkipLayerGuidanceDiT", model=m, double_layers="0", single_layers="1", scale=3.0, start_percent=0.0, end_percent=1.0, rescaling_scale=0.0), c), "dit")
        self.refuse("a LoRA hook", lambda g, m, c: (m, g.add(
            "ConditioningSetProperties", cond_NEW=c, strength=1.0, set_cond_area="default",
            hooks=g.add("CreateHookLoraModelOnly", lora_name="kohya.safetensors", strength_model=1.0))), "hook")

    def test_connection(self):
        world, comfy = self.world, self.comfy
        line = world.line
        revoked = world.cluster.connection("revoked")
        world.cluster.command("token", "revoke", "revoked")
        try:
            for what, text, word in (
                ("no connection line", "", "connection line"), ("a wrong connection line", "distorch1.bm8", "connection line"),
                ("half a connection line", line[: len(line) // 2], "connection line"), ("a revoked token", revoked, "token"),
            ):
                with self.subTest(what):
                    world.connect(comfy, text)
                    g = Graph()
                    g.save(Sampling(seed=900, steps=2).add(g, world.remote(g)), "connection")
                    said = self.failed(g)
                    good = word in said and "Traceback" not in said
                    row(f"{what}: a readable error", "yes" if good else "NO", "", good)
                    print(f"  {what}: {said}")
                    self.assertTrue(good, said)
        finally:
            world.connect(comfy, line)
        self.equal("the run after the right line is back", Sampling(seed=78))


class Workflows(Check):
    """The example workflows."""

    @classmethod
    def setUpClass(cls):
        base = cls.world.comfy.base
        for name in ("text_encoders/clip_l", "text_encoders/t5xxl_fp16", "vae/ae"):  # menus list what is there
            path = base / "models" / f"{name}.safetensors"
            path.parent.mkdir(exist_ok=True)
            path.touch()
        Image.new("RGB", (64, 64), (200, 80, 40)).save(base / "input" / "example.png")

    def test_accepted(self):
        """Every prompt passes ComfyUI's own validation, and is taken from the queue before it runs."""
        hold = self.comfy.queue({"1": {"class_type": "DistorchTestHold", "inputs": {"seed": 1}}})
        try:
            for name in workflows.names():
                with self.subTest(name):
                    self.comfy.delete(self.comfy.queue(workflows.read(name)[1]))
        finally:
            self.comfy.interrupt()
            self.comfy.finish(hold)
        offered = self.comfy.get("/workflow_templates").get("distorch")
        row("example workflows that ComfyUI accepts and offers", f"{len(workflows.names())}", "", sorted(offered or []) == workflows.names())
        self.assertEqual(sorted(offered or []), workflows.names())

    def test_both_forms(self):
        classes = self.comfy.get("/object_info")
        for name in workflows.names():
            with self.subTest(name):
                editor, prompt = workflows.read(name)
                bare = {k: {"class_type": n["class_type"], "inputs": n["inputs"]} for k, n in prompt.items()}
                self.assertEqual(workflows.to_prompt(editor, classes), bare)

    def test_demo(self):
        """The demo's picture is the one that the repository has."""
        run = self.comfy.run(workflows.read("distorch_demo")[1])
        self.assertEqual(run.status, "success", run.error.get("exception_message"))
        f = next(o["images"] for o in run.outputs.values() if "images" in o)[0]
        made = Image.open(self.comfy.base / "output" / f["subfolder"] / f["filename"]).convert("RGB")
        known = Image.open(DEMO / "a.png").convert("RGB").resize(made.size, Image.NEAREST)
        apart = statistics.mean(ImageStat.Stat(ImageChops.difference(made, known)).mean)
        row("distorch_demo in bf16: its picture and demo/a.png, mean", f"{apart:.2f} of 255", "5", apart <= 5)
        self.assertLessEqual(apart, 5)

    def test_cluster(self):
        prompt = workflows.read("distorch_cluster")[1]
        for node in prompt.values():
            if "model" in node["inputs"]:
                node["inputs"]["model"] = "demo.safetensors"
        run = self.comfy.run(prompt)
        self.assertEqual(run.status, "success", run.error.get("exception_message"))
        text = "\n".join(t for o in run.outputs.values() for t in o.get("text", []))
        for word in ("test-f32", "demo.safetensors", "COMPUTE"):
            self.assertIn(word, text)
        self.assertTrue(any(o.get("images") for o in run.outputs.values()), "no chart")


class Lost(Check):
    """An agent is killed in the middle of a run."""

    def test_agent_lost(self):
        cluster = self.world.cluster
        cluster.undeploy_all()
        # Any two of these three can hold the model, none alone.
        frail = ("c", "d", "e")
        for name in frail:
            cluster.agent(name, "128MB")
        for name in ("a", "b"):
            cluster.agents.pop(name).stop()
        cluster.wait_until("a and b to be gone", lambda: cluster.ready_nodes() == set(frail))
        cluster.deploy("frail", "128x128,tokens=16,batch=1", "f32", {})
        nodes = cluster.plan_nodes("frail")
        self.assertGreater(len(nodes), 1, f"the model is not cut: {nodes}")
        for lost, where in ((nodes[-1], "the last"),):
            g = Graph()
            how = Sampling(seed=11, steps=100)
            a = g.save(how.add(g, self.world.remote(g, "frail")), "lost")
            b = g.save(how.add(g, self.world.local(g)), "lost")
            run = self.comfy.queue(g)
            while len(run.all("progress")) < 30 and not run.first("execution_error"):
                time.sleep(0.005)
            killed = time.monotonic()
            cluster.agents.pop(lost).kill()
            self.comfy.finish(run)
            d = distance(run.latent(self.comfy, a), run.latent(self.comfy, b))
            gaps = [y[0] - x[0] for x, y in zip(run.all("progress"), run.all("progress")[1:]) if y[0] > killed]
            row(f"{where} stage's agent killed in a run of {how.steps} steps: latent", f"{d:.1e}", f"{F32_LIMIT:g}", d <= F32_LIMIT)
            row("its longest step", f"{max(gaps):.1f} s")
            self.assertLessEqual(d, F32_LIMIT)
            self.assertNotIn(lost, cluster.plan_nodes("frail"))


ORDER = (Equality, HalfPrecision, Queue, Refusals, Workflows, Lost)


def stopped(number, _):
    raise SystemExit(128 + number)


def run(a) -> int:
    signal.signal(signal.SIGTERM, stopped)  # so that what was started is ended
    suite = unittest.TestSuite()
    for case in ORDER:
        for name in unittest.defaultTestLoader.getTestCaseNames(case):
            if not a.only or any(part in f"{case.__name__}.{name}" for part in a.only):
                suite.addTest(case(name))
    if not suite.countTestCases():
        print(f"no check is called {' or '.join(a.only)}")
        return 2
    with tempfile.TemporaryDirectory(prefix="distorch-test-comfyui-") as temporary:
        folder = pathlib.Path(temporary)
        if a.keep:
            folder = a.keep.resolve()
            folder.mkdir(parents=True)
        began = time.monotonic()
        world = Check.world = World(pathlib.Path(sys.executable), a.comfyui, a.distorch, folder)
        try:
            if a.write_workflows:
                workflows.write(world.comfy.get("/object_info"))
            print(f"ComfyUI {world.comfy.version}, {'its own loader' if world.stock else 'an explicit unet_config'} for the local model; ready after {time.monotonic() - began:.0f} s", flush=True)
            result = unittest.TextTestRunner(verbosity=2).run(suite)
            if not result.wasSuccessful():
                print("ComfyUI's log ends with\n" + world.comfy.process.tail())
        finally:
            world.stop()
    print(f"\nComfyUI {world.comfy.version}: relative L2 of the final latent of {STEPS} steps, remote from local, unless another thing is named; {time.monotonic() - began:.0f} s")
    print(report.table())
    passed = result.testsRun - len({str(t) for t, _ in result.failures + result.errors})
    print(f"{passed} passed, {result.testsRun - passed} failed")
    return 0 if result.wasSuccessful() and not result.skipped else 1
