// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// What the scripts of all clients share: the graph, checks, and waiting.

export const url = process.argv[2];
export const host = url.replace("http://", "");

let seed = Math.floor(Math.random() * 1e9);

// graph is a picture; its text says what the worker does: "raise" fails.
export function graph({ text = "a red circle", steps = 3, prefix = "client", seed: fixed } = {}) {
  return {
    4: { class_type: "UNETLoader", inputs: { unet_name: "flux.safetensors", weight_dtype: "default" } },
    5: { class_type: "CLIPLoader", inputs: { clip_name: "clip.safetensors", type: "sd3" } },
    6: { class_type: "CLIPTextEncode", inputs: { text, clip: ["5", 0] }, _meta: { title: "Positive" } },
    8: { class_type: "EmptySD3LatentImage", inputs: { width: 64, height: 64, batch_size: 1 } },
    3: {
      class_type: "KSampler",
      inputs: {
        seed: fixed ?? seed++, steps, cfg: 4.0, sampler_name: "euler", scheduler: "simple", denoise: 1.0,
        model: ["4", 0], positive: ["6", 0], negative: ["6", 0], latent_image: ["8", 0],
      },
    },
    10: { class_type: "VAELoader", inputs: { vae_name: "vae.safetensors" } },
    11: { class_type: "VAEDecode", inputs: { samples: ["3", 0], vae: ["10", 0] } },
    9: { class_type: "SaveImage", inputs: { images: ["11", 0], filename_prefix: prefix } },
  };
}

export function broken() {
  const g = graph();
  g[4].inputs.unet_name = "nothing.safetensors";
  return g;
}

// long runs until it is interrupted.
export const long = () => graph({ steps: 5000 });

export async function check(name, what) {
  try {
    await limited(what());
    console.log("ok " + name);
  } catch (e) {
    console.log("FAIL " + name + ": " + (e?.stack ?? JSON.stringify(e) ?? e));
    process.exitCode = 1;
  }
}

export function limited(promise, ms = 20000) {
  let timer;
  const late = new Promise((_, no) => (timer = setTimeout(() => no(new Error("not within " + ms + " ms")), ms)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

export function assert(ok, what) {
  if (!ok) throw new Error("not so: " + what);
}

export async function json(path, body) {
  const r = await fetch(url + path, body && { method: "POST", body: JSON.stringify(body) });
  const text = await r.text();
  return { status: r.status, body: text ? JSON.parse(text) : null };
}

// until asks again and again.
export async function until(what, ok) {
  for (let i = 0; i < 400; i++) {
    const v = await ok();
    if (v) return v;
    await new Promise((r) => setTimeout(r, 25));
  }
  throw new Error("never: " + what);
}

export function png(bytes) {
  const b = new Uint8Array(bytes);
  return b[0] === 0x89 && b[1] === 0x50 && b[2] === 0x4e && b[3] === 0x47;
}
