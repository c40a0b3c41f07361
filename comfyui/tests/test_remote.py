# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later


import json
import threading
import time
import unittest
import unittest.mock

import torch

import case
import comfy.model_management as mm
import server


class Sampling(case.Connected):
    def test_equals_local(self):
        for name, cfg, positive, negative, batch in (
            ("cfg 1", 1.0, server.condition(), None, 1),
            ("cfg 3, one batch of both", 3.0, server.condition(), server.condition(seed=2), 1),
            ("cfg 3, texts of unlike lengths", 3.0, server.condition(9), server.condition(4, 2), 1),
            ("batch of 3, cfg 2", 2.0, server.condition(), server.condition(seed=2), 3),
            ("batch of 2, unlike lengths", 2.0, server.condition(9), server.condition(4, 2), 2),
            ("guidance 2", 1.0, server.condition(guidance=2.0), None, 1),
            (
                "references",
                1.0,
                server.condition(reference_latents=[torch.ones(1, 16, 4, 6), torch.zeros(1, 16, 8, 8)]),
                None,
                1,
            ),
        ):
            with self.subTest(name):
                got = self.sample(self.load(), cfg, positive, negative, batch=batch)
                want = case.local(positive, negative, cfg, batch=batch, dtype=torch.bfloat16)
                self.assertEqual(got.dtype, torch.float32)
                self.assertLess((got - want).abs().max() / want.abs().max(), 1e-6)

    def test_rows_are_single_forwards(self):
        self.sample(self.load(), 3.0, batch=2, steps=2)
        places = [(m["run"], m["step"], m["branch"]) for m, _ in self.server.forwards]
        self.assertEqual(len(places), 8)
        self.assertEqual(len(set(places)), 8, "a forward's place was used twice")
        self.assertEqual({p[1] for p in places}, {"0", "1"})
        self.assertEqual({tuple(t["x"].shape) for _, t in self.server.forwards}, {(1, 16, 8, 8)})
        self.assertEqual({t["timestep"].dtype for _, t in self.server.forwards}, {torch.float32})

    def test_branches(self):
        self.sample(self.load(), 3.0, server.condition(9), server.condition(4, 2), steps=1)
        self.assertEqual(
            sorted((m["branch"], t["context"].shape[1]) for m, t in self.server.forwards), [("0", 9), ("1", 4)]
        )

    def test_both_branches_in_flight(self):
        for name, negative in (("one batch", server.condition(seed=2)), ("unlike lengths", server.condition(4, 2))):
            with self.subTest(name):
                self.server.gate.clear()
                self.server.most = 0
                done = threading.Thread(
                    target=self.sample, args=(self.load(), 3.0, server.condition(), negative), kwargs={"steps": 1}
                )
                done.start()
                for _ in range(2):
                    self.assertTrue(self.server.entered.acquire(timeout=10), "only one forward came")
                self.server.gate.set()
                done.join(10)
                self.assertEqual(self.server.most, 2)

    def test_conditioning_goes_once(self):
        self.sample(self.load(), 3.0, steps=4)
        self.assertEqual(len(self.server.blobs), 2)
        self.assertEqual(sum(m == "PUT" for m, _ in self.server.requests), 2)
        self.assertFalse(any("context" in m for m, _ in self.server.forwards))

    def test_rows_wait_for_one_blob(self):
        patcher = self.load().clone()
        self.sample(patcher, batch=6, steps=1)
        self.assertEqual(sum(m == "PUT" for m, _ in self.server.requests), 1)

    def test_dropped_blobs_go_again(self):
        patcher = self.load()
        self.sample(patcher, 1.0)
        self.server.blobs.clear()
        self.assertLess(
            (self.sample(patcher, 1.0) - case.local(server.condition(), dtype=torch.bfloat16)).abs().max(), 1e-5
        )

    def test_dtypes(self):
        patcher = self.load().clone()
        self.sample(patcher, steps=1)
        patcher.set_model_compute_dtype(torch.float32)
        got = self.sample(patcher)
        self.assertEqual([t["x"].dtype for _, t in self.server.forwards], [torch.bfloat16] + 3 * [torch.float32])
        self.assertLess((got - case.local(server.condition())).abs().max(), 1e-5)

    def test_reference_method(self):
        for name, want in (("offset", 0), ("index", 1), ("uxo", 2), ("uso", 2)):
            self.server.forwards.clear()
            self.sample(
                self.load(),
                positive=server.condition(reference_latents=[torch.ones(1, 16, 4, 6)], reference_latents_method=name),
                steps=1,
            )
            self.assertEqual(json.loads(self.server.forwards[0][0]["dims"]), {"ref_method": want})
        with self.refused("reference method upside"):
            self.sample(
                self.load(),
                positive=server.condition(
                    reference_latents=[torch.ones(1, 16, 4, 6)], reference_latents_method="upside"
                ),
                steps=1,
            )

    def test_run_is_ended(self):
        self.sample(self.load(), steps=1)
        run = self.server.forwards[0][0]["run"]
        self.assertTrue(until(lambda: f"/v1/runs/{run}" in self.server.cancelled))
        self.assertIn("1 forwards", self.cluster.last["there"])


class WithoutGuidance(case.Connected):
    model = server.model(guidance=False)

    def test_guidance_is_left_out(self):
        self.sample(self.load(), steps=1)
        self.assertNotIn("guidance", self.server.forwards[0][1])


class Interrupt(case.Connected):
    def interrupt(self, negative):
        patcher, caught = self.load(), []

        def run():
            try:
                self.sample(patcher, 3.0, server.condition(), negative)
            except BaseException as e:  # ComfyUI's interrupt is no Exception in newer versions
                caught.append((e, time.monotonic()))

        self.server.gate.clear()
        sampler = threading.Thread(target=run)
        sampler.start()
        for _ in range(2):
            self.assertTrue(self.server.entered.acquire(timeout=10))
        begin = time.monotonic()
        mm.interrupted.set()
        sampler.join(10)
        self.assertFalse(sampler.is_alive())
        self.assertIsInstance(caught[0][0], mm.InterruptProcessingException)
        self.assertLess(caught[0][1] - begin, 0.5)
        self.server.gate.set()
        self.assertTrue(until(lambda: self.server.flying == 0))
        self.assertLess(
            (self.sample(patcher, 1.0) - case.local(server.condition(), dtype=torch.bfloat16)).abs().max(),
            1e-5,
            "the run after an interrupt",
        )

    def test_in_the_middle_of_a_step(self):
        self.interrupt(server.condition(seed=2))

    def test_unlike_lengths(self):
        self.interrupt(server.condition(4, 2))


class Faults(case.Connected):
    """Answers that are none."""

    def fails(self, fault, *parts):
        self.server.fault = fault
        with self.refused("deployment there, step 1", *parts):
            self.sample(self.load())
        self.server.fault = None
        self.assertLess(
            (self.sample(self.load()) - case.local(server.condition(), dtype=torch.bfloat16)).abs().max(),
            1e-5,
            "the run after a fault",
        )

    def test_truncated(self):
        def cut(h, m):
            h.reply(200, b"\x10\0\0", "application/octet-stream", length=5000)
            h.close_connection = True

        with unittest.mock.patch("comfyui.remote.PATIENCE_SECONDS", 0.2):
            self.fails(cut, "broke off", "queue the prompt again")

    def test_no_safetensors(self):
        self.fails(lambda h, m: h.reply(200, b"<html>proxy</html>"), "no safetensors")

    def test_wrong_shape(self):
        from comfyui import wire

        for out in ({"out": torch.zeros(1, 16, 4, 4)}, {"out": torch.zeros(1, 16, 8, 8)}, {"other": torch.zeros(1)}):
            self.fails(lambda h, m, out=out: h.reply(200, bytes(wire.pack(out))), "the answer's out is")

    def test_500_without_explanation(self):
        self.fails(lambda h, m: h.reply(500, b"oops"), "status 500")

    def test_error_with_words(self):
        self.fails(
            lambda h, m: h.fail(409, "conflict", "node b was lost and nothing else fits: 5.1 GB short"),
            "node b was lost",
            "5.1 GB short",
        )

    def test_once_busy(self):
        self.server.fault = lambda h, m: (h.fail(429, "busy", "64 forwards are under way"), True)[1]
        self.assertLess(
            (self.sample(self.load()) - case.local(server.condition(), dtype=torch.bfloat16)).abs().max(), 1e-5
        )

    def test_once_away(self):
        self.server.fault = lambda h, m: (h.fail(503, "unavailable", "the coordinator stops"), True)[1]
        self.assertLess(
            (self.sample(self.load()) - case.local(server.condition(), dtype=torch.bfloat16)).abs().max(), 1e-5
        )

    def test_lost_in_the_middle(self):
        patcher = self.load()
        with (
            unittest.mock.patch("comfyui.remote.PATIENCE_SECONDS", 0.3),
            self.refused("deployment there, step 3", "does not answer", "queue the prompt again"),
        ):
            self.sample(patcher, callback=lambda i, x: self.server.close() if i == 1 else None)

    def test_slow(self):
        def stall(h, m):
            h.reply(200, b"\x10", "application/octet-stream", length=5000)
            h.wfile.flush()
            threading.Event().wait(2)
            h.close_connection = True

        patcher = self.load()
        self.server.fault = stall
        with (
            unittest.mock.patch("comfyui.remote.SILENCE_SECONDS", 0.0),
            unittest.mock.patch("comfyui.remote.DEADLINE_SECONDS", 0.5),
            unittest.mock.patch("comfyui.remote.PATIENCE_SECONDS", 0.0),
        ):
            with self.refused("deployment there, step 1", "(no answer|deadline)"):
                self.sample(patcher)


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
