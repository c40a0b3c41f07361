# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later


import json
import os
import shutil
import time
import unittest
import unittest.mock

import torch

import case
import comfyui
import server
from comfyui import cluster, connection, gantt, nodes, sharing
from comfyui.demo import DemoPicture, DemoText
from comfyui.errors import ClusterError

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
USER = os.environ["DISTORCH_TEST_USER"]


class Connections(case.Connected):
    def says(self, *parts):
        with self.refused(*parts):
            self.load()

    def test_absent(self):
        del os.environ["DISTORCH_CONNECTION"]
        self.says("no cluster is set", "distorch.txt", "distorch token create")
        for name, node in comfyui.NODE_CLASS_MAPPINGS.items():
            inputs = node.INPUT_TYPES()
            if name in ("DistorchLoadDiffusionModel", "DistorchPlan"):
                self.assertEqual(inputs["required"]["model"][0], [cluster.NOTHING])
                self.assertIn("no cluster is set", inputs["required"]["model"][1]["tooltip"])

    def test_file_and_setting(self):
        line = os.environ.pop("DISTORCH_CONNECTION")
        self.addCleanup(shutil.rmtree, os.path.join(USER, "default"), True)
        path = os.path.join(USER, "distorch.txt")
        self.addCleanup(os.remove, path)
        with open(path, "w") as f:
            f.write(line + "\n")
        self.assertEqual(connection.find().source, path)
        self.load()
        os.makedirs(os.path.join(USER, "default"))
        for value, source in ((line, "setting"), (path, path)):
            with open(os.path.join(USER, "default", "comfy.settings.json"), "w") as f:
                json.dump({"distorch.connection": value}, f)
            self.assertIn(source, connection.find().source)
        self.connect("/no/such/file")
        self.says("/no/such/file", "cannot be read")

    def test_bad_lines(self):
        good = self.server.line()
        for line in (
            "distorch1.",
            "distorch1.!!!",
            good[:-9],
            "distorch1." + "eyJhIjpbXX0",
            good.replace("distorch1.", "distorch1.A"),
        ):
            self.connect(line)
            self.says("no connection line", "distorch token create")
        with self.assertRaises(ClusterError):
            connection.parse("distorch2.abc", "x")

    def test_wrong_token(self):
        self.connect(self.server.line(token="old"))
        self.says(
            "does not accept the connection line of the environment variable DISTORCH_CONNECTION",
            "unknown to this cluster",
        )

    def test_token_revoked_after_loading(self):
        model = self.load()
        self.sample(model)
        self.connect(self.server.line(token="old"))
        with self.refused("step 1", "does not accept the connection line", "unknown, revoked or expired", "distorch token create"):
            self.sample(model)

    def test_another_cluster(self):
        with open(os.path.join(os.path.dirname(__file__), "testdata", "other.pem"), encoding="ascii") as f:
            ca = f.read()
        c = connection.find()
        with unittest.mock.patch(
            "comfyui.connection.find", lambda: connection.Connection(c.addresses, ca, c.token, "x")
        ):
            self.says("not the cluster that its line names", "distorch token create")

    def test_unreachable(self):
        self.server.close()
        self.says("does not answer", "connection refused", "coordinator is running")

    def test_second_address(self):
        self.connect(self.server.line(addresses=["127.0.0.1:1", self.server.address]))
        self.sample(self.load(), steps=1)

    def test_menus_do_not_wait(self):
        with (
            unittest.mock.patch.object(cluster.Cluster, "_fetch", lambda self: time.sleep(5)),
            unittest.mock.patch("comfyui.cluster.FIRST_SECONDS", 0.05),
        ):
            begin = time.monotonic()
            comfyui.NODE_CLASS_MAPPINGS["DistorchLoadDiffusionModel"].INPUT_TYPES()
            self.assertLess(time.monotonic() - begin, 1)


class Loader(case.Connected):
    def test_menu(self):
        names, options = nodes.LoadDiffusionModel.INPUT_TYPES()["required"]["model"]
        self.assertEqual(names, ["there (deployment)", "tiny.safetensors"])
        self.assertIn("there (deployment): ready, 250 ms per step", options["tooltip"])
        self.assertNotIn("64c9", options["tooltip"], "a LoRA is no model to load")
        self.assertTrue(nodes.LoadDiffusionModel.VALIDATE_INPUTS("anything"))

    def test_deploys_on_the_first_forward(self):
        patcher = self.load("tiny.safetensors", "f32", 6.5)
        self.assertNotIn("studio-tiny", self.server.deployments)
        self.sample(patcher, 3.0, server.condition(9), server.condition(4, 2), steps=2)
        self.assertEqual(
            self.server.deployments["studio-tiny"],
            {
                "model": "m1",
                "workload": {"height": 64, "width": 64, "batch": 1, "text_tokens": 9, "in_flight": 2},
                "dtype": "f32",
                "virtual_vram": 13 << 29,
            },
        )
        puts = lambda: sum(r == ("PUT", "/v1/deployments/studio-tiny") for r in self.server.requests)  # noqa: E731
        self.assertEqual(puts(), 1)
        self.sample(patcher, side=6, steps=1)
        self.sample(self.load("tiny", "f32", 6.5), side=6, steps=1)
        self.assertEqual(puts(), 1, "a smaller picture was placed anew")
        self.sample(patcher, positive=server.condition(100), side=12, steps=1)
        self.assertEqual(
            self.server.deployments["studio-tiny"]["workload"],
            {"height": 96, "width": 96, "batch": 1, "text_tokens": 128, "in_flight": 2},
        )
        self.sample(self.load("m1", "bf16"), side=6, steps=1)
        self.assertEqual(self.server.deployments["studio-tiny"]["dtype"], "bf16")

    def test_the_usual_dtype_is_no_change(self):
        self.sample(self.load("tiny"), side=8, steps=1)
        self.sample(self.load("tiny"), side=6, steps=1)
        self.sample(self.load("tiny", "bf16"), side=6, steps=1)
        self.assertEqual(self.server.deployments["studio-tiny"]["workload"]["width"], 64)
        self.assertEqual(self.server.requests.count(("PUT", "/v1/deployments/studio-tiny")), 1)

    def test_deploys_at_once(self):
        (workload,) = nodes.Workload().make(512, 768, 1, 256, 1)
        self.load("tiny", allocation="a/cpu,*", workload=workload)
        self.assertEqual(
            self.server.deployments["studio-tiny"],
            {
                "model": "m1",
                "workload": {"width": 512, "height": 768, "text_tokens": 256, "batch": 1, "in_flight": 1},
                "allocation": "a/cpu,*",
            },
        )

    def test_two_loaders_of_one_model(self):
        wide, narrow = self.load("tiny", "f32"), self.load("tiny", "bf16")
        for patcher, want in ((wide, "f32"), (narrow, "bf16"), (wide, "f32")):
            self.sample(patcher, steps=1)
            self.assertEqual(self.server.deployments["studio-tiny"]["dtype"], want)

    def test_changes_are_seen(self):
        def now(name):
            self.cluster._listing = None
            return nodes.LoadDiffusionModel.IS_CHANGED(model=name, dtype="default")

        before = now("there (deployment)"), now("tiny.safetensors")
        self.assertEqual(before, (now("there (deployment)"), now("tiny.safetensors")))
        self.server.deployments["there"]["dtype"] = "f32"
        self.server.model = {**self.server.model, "id": "m2"}
        self.assertNotEqual(before[0], now("there (deployment)"))
        self.assertNotEqual(before[1], now("tiny.safetensors"))

    def test_interrupt_while_it_is_placed(self):
        import comfy.model_management as mm

        with unittest.mock.patch.object(
            server.Server,
            "deployment",
            lambda self, name: {"name": name, "state": "loading", "message": "a 12%", "spec": {}},
        ):
            mm.interrupted.set()
            with self.assertRaises(mm.InterruptProcessingException):
                self.load("tiny", workload={"width": 64})

    def test_comes_again(self):
        patcher = self.load("tiny")
        self.sample(patcher, steps=1)
        del self.server.deployments["studio-tiny"]
        self.sample(patcher, steps=1)
        self.assertIn("studio-tiny", self.server.deployments)

    def test_refused(self):
        for name, parts in (
            ("absent (deployment)", ("no deployment absent", "there")),
            ("absent", ("no model absent", "tiny.safetensors")),
            (cluster.NOTHING, ("no model",)),
        ):
            with self.refused(*parts):
                self.load(name)
        with self.refused("virtual VRAM or an allocation string, not both"):
            self.load("tiny", vram=1.0, allocation="a,1gb")
        with self.refused("deployment there is placed already"):
            self.load(vram=1.0)
        self.server.deployments["there"].update(state="infeasible", message="5.1 GB short")
        with self.refused("deployment there is infeasible: 5.1 GB short"):
            self.sample(self.load())

    def test_model(self):
        patcher = self.load()
        model = patcher.model
        self.assertEqual(list(model.parameters()), [])
        self.assertEqual({v.device.type for v in model.state_dict().values()}, {"meta"})
        self.assertIn("diffusion_model.double_blocks.0.img_attn.norm.query_norm.weight", model.state_dict())
        config = model.model_config.unet_config
        self.assertEqual(
            [
                config[k]
                for k in ("hidden_size", "num_heads", "in_channels", "out_channels", "context_in_dim", "vec_in_dim")
            ],
            [32, 2, 16, 16, server.TEXT, server.POOLED],
        )
        self.assertEqual(
            (
                model.diffusion_model.img_in.weight.shape[1],
                model.diffusion_model.patch_size,
                model.diffusion_model.dtype,
            ),
            (64, 2, torch.bfloat16),
        )
        self.assertEqual(
            (patcher.size, patcher.clone().size, model.memory_required([1]), model.diffusion_model.load_state_dict({})),
            (1, 1, 0, ([], [])),
        )
        self.assertEqual(self.load("tiny", "f32").model.diffusion_model.dtype, torch.float32)

    def test_unknown_architecture(self):
        self.server.model = {
            **server.model(),
            "architecture": "wan",
            "tensors": [{"name": "patch_embedding.weight", "shape": [8, 16, 1, 2, 2], "dtype": "F32"}],
        }
        with self.refused("does not know the architecture", "wan", "update ComfyUI"):
            self.load()

    def test_latent_of_other_channels(self):
        self.server.model = server.model(channels=12)
        latent = self.load().model.latent_format
        self.assertEqual((latent.latent_channels, latent.latent_rgb_factors), (12, None))


class Texts(case.Connected):
    def test_status(self):
        self.sample(self.load(), steps=2)
        out = nodes.ClusterStatus().show()
        for part in (
            "cluster c at 127.0.0.1",
            "client studio",
            "a: ready",
            "cpu: cpu, 8 GB, 4 GB free; native/1/bf16",
            "tiny.safetensors: flux dev",
            "there: ready, 250 ms per step",
            "last run: 2 forwards",
            "equals one device",
        ):
            self.assertIn(part, out["result"][0])
        self.assertEqual(out["ui"]["text"], out["result"])
        self.assertNotIn("ready; ready", out["result"][0])

    def test_plan(self):
        for name in ("there (deployment)", "tiny"):
            out = nodes.Plan().plan(name, "default", 0.0, "")
            self.assertIn("model tiny: 250 ms/it", out["result"][0])
            image = out["result"][1]
            self.assertEqual(
                (image.dim(), image.shape[0], image.shape[2:], image.dtype),
                (4, 1, torch.Size([1200, 3]), torch.float32),
            )
            self.assertGreater(image.std(), 0.05)

    def test_plan_that_fits_nowhere(self):
        for text, want in (
            ("no GPU here\n", "no GPU here"),
            ("", "no GPU here"),
            ("a: 3 GB short", "no GPU here\na: 3 GB short"),
        ):
            self.server.plan = {"feasible": False, "message": "no GPU here", "text": text}
            with self.assertRaises(RuntimeError) as raised:
                nodes.Plan().plan("tiny", "default", 0.0, "")
            self.assertEqual(str(raised.exception), want)

    def test_timeline(self):
        rows, end = gantt.timeline(server.REPORT, 1)
        self.assertEqual(
            [r.name for r in rows],
            ["a cuda:0", "  copies of weights", "  to b", "b cuda:0,cuda:1", "  to the endpoint"],
        )
        self.assertAlmostEqual(end, 0.25)
        _, pair = gantt.timeline(server.REPORT, 2)
        self.assertAlmostEqual(pair, 0.25 + 0.15, msg="the second forward waits for the busiest stage alone")
        for end in (0.0, 1e-6, 0.0083, 0.25, 3.7, 99, 12345):
            ticks = gantt.ticks(end)
            self.assertTrue(1 <= len(ticks) <= 10 and ticks[-1] <= end, (end, ticks))
        self.assertEqual(gantt.draw({}).shape[2:], torch.Size([1200, 3]))


class Memory(case.Connected):
    """GPUs that ComfyUI and an agent share; the device is made up."""

    def test_own_addresses(self):
        self.assertTrue(sharing.own_address("127.0.0.1"))
        self.assertFalse(sharing.own_address("192.0.2.1"))
        self.assertFalse(sharing.own_address("no.such.host.invalid"))

    def test_frees_and_borrows(self):
        target = self.load("tiny").model.diffusion_model.target
        node = {"name": "a", "address": "127.0.0.1:7800", "devices": [{"name": "cuda:0"}, {"name": "cpu"}]}
        sent = []
        client = self.cluster.client()
        with (
            unittest.mock.patch.object(
                client, "get", lambda *a: {"nodes": [node, {**node, "name": "b", "address": "192.0.2.1:7800"}]}
            ),
            unittest.mock.patch.object(client, "send", lambda m, p, body, t: sent.append(body)),
        ):
            import comfy.model_management as mm

            share = sharing.Sharing(target, torch.device("cuda", 0))
            share.before()
            self.assertEqual((len(mm.freed), sent), (1, [{"node": "a", "device": "cuda:0", "restore": True}]))
            sent.clear()
            share.after((1, 16, 128, 128))
            self.assertEqual(
                [(b["node"], b["device"], b["seconds"]) for b in sent], [("a", "cuda:0", sharing.LEND_SECONDS)]
            )
            self.assertTrue(4e9 < sent[0]["bytes"] < 6e9)
            sent.clear()
            with unittest.mock.patch.object(mm, "free_bytes", 10e9):
                share.after((1, 16, 128, 128))
            self.assertEqual(sent, [])
            with unittest.mock.patch.dict(os.environ, DISTORCH_LOCAL_NODES="none"):
                self.assertEqual(sharing.Sharing(target, torch.device("cuda", 0)).shared, [])
            self.assertEqual(sharing.Sharing(target, torch.device("cuda", 1)).shared, [])
            for plan, want in (
                ([], []),
                ([{"node": "a", "device": "cpu"}], []),
                ([{"node": "a", "device": "cuda:0"}], [("a", "cuda:0")]),
            ):
                with unittest.mock.patch.object(self.cluster, "deployment", lambda name, plan=plan: {"plan": plan}):
                    self.assertEqual(
                        sharing.Sharing(cluster.Target(self.cluster, "there"), torch.device("cuda", 0)).shared, want
                    )
        self.assertEqual(sharing.Sharing(target, torch.device("cpu")).shared, [])


class Demo(unittest.TestCase):
    def test_words_are_the_checkpoints(self):
        with (
            open(os.path.join(ROOT, "demo", "words.safetensors"), "rb") as a,
            open(os.path.join(ROOT, "comfyui", "words.safetensors"), "rb") as b,
        ):
            self.assertEqual(a.read(), b.read())

    def test_text(self):
        ((context, more),) = DemoText().encode("Large red  circle on blue")[0]
        self.assertEqual((context.shape, more["pooled_output"].shape), (torch.Size([1, 5, 64]), torch.Size([1, 64])))
        self.assertTrue(torch.allclose(more["pooled_output"], context.mean(1)))
        self.assertEqual(DemoText().encode("")[0][0][0].shape, (1, 5, 64))
        for prompt, part in (("large red circel on blue", "circel"), ("large red circle", "has 3")):
            with self.assertRaisesRegex(RuntimeError, part):
                DemoText().encode(prompt)

    def test_picture(self):
        latent = torch.zeros(1, 16, 2, 3)
        latent[0, 2 * 4 + 1 * 2 + 0, 1, 2] = 1.0  # blue of the pixel below left in the last place
        image = DemoPicture().decode({"samples": latent / 0.3611 + 0.1159}, 2)[0]
        self.assertEqual(image.shape, (1, 8, 12, 3))
        self.assertEqual((image[0, 6, 8] * 255).round().tolist(), [128, 128, 255])
        with self.assertRaisesRegex(RuntimeError, "16 channels"):
            DemoPicture().decode({"samples": torch.zeros(1, 4, 2, 2)}, 1)
