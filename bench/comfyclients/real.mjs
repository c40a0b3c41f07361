// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// A real ComfyUI behind the API: what core nodes do without a model.

import { randomUUID } from "node:crypto";
import WebSocket from "ws";
import { assert, check, host, json, limited, png, url } from "./shared.mjs";

const id = randomUUID();
const ws = new WebSocket("ws://" + host + "/ws?clientId=" + id);
const frames = [];
let wake = () => {};
ws.on("message", (data, binary) => {
  frames.push(binary ? { binary: data.readUInt32BE(0), data } : JSON.parse(data.toString()));
  wake();
});
await limited(new Promise((r) => ws.on("open", r)));

const image = { class_type: "EmptyImage", inputs: { width: 16, height: 8, batch_size: 1, color: Math.floor(Math.random() * 0xffffff) } };
const save = { class_type: "SaveImage", inputs: { images: ["1", 0], filename_prefix: "distorch-test/a" } };

async function run(prompt) {
  frames.length = 0;
  const r = await json("/prompt", { prompt, client_id: id });
  assert(r.status === 200, JSON.stringify(r));
  const p = r.body.prompt_id;
  const ended = () => frames.some((f) => f.type === "executing" && f.data.node === null && f.data.prompt_id === p);
  while (!ended()) await limited(new Promise((r) => (wake = r)), 60000);
  const of = frames.filter((f) => f.data?.prompt_id === p && f.type !== "progress_state");
  return { types: of.map((f) => f.type), of, history: (await json("/history/" + p)).body[p], binary: frames.filter((f) => f.binary !== undefined) };
}

const viewed = async (i, more = {}) => new Uint8Array(await (await fetch(url + "/view?" + new URLSearchParams({ ...i, ...more }))).arrayBuffer());

await check("success", async () => {
  const r = await run({ 1: image, 2: { class_type: "PreviewImage", inputs: { images: ["1", 0] } }, 9: save });
  assert(r.types[0] === "execution_start" && r.types[1] === "execution_cached" && r.types.at(-2) === "execution_success", r.types);
  assert(r.types.filter((t) => t === "executed").length === 2, r.types);
  assert(r.history.status.completed, JSON.stringify(r.history.status));
  for (const n of ["2", "9"]) assert(png(await viewed(r.history.outputs[n].images[0])), "picture of " + n);
});

await check("cached", async () => {
  const first = await run({ 1: image, 9: save });
  const again = await run({ 1: image, 9: save });
  const cached = again.of.find((f) => f.type === "execution_cached").data.nodes;
  assert(cached.length === 2 && again.types.includes("executed"), again.types + cached);
  assert(again.history.outputs["9"].images[0].filename === first.history.outputs["9"].images[0].filename, "another name");
});

await check("upload", async () => {
  const picture = await viewed((await run({ 1: image, 9: save })).history.outputs["9"].images[0]);
  const form = new FormData();
  form.append("image", new Blob([picture], { type: "image/png" }), "distorch-test.png");
  const up = await (await fetch(url + "/upload/image", { method: "POST", body: form })).json();
  for (const value of [up.name, up.name + " [input]"]) {
    const r = await run({ 1: { class_type: "LoadImage", inputs: { image: value } }, 9: { ...save, inputs: { ...save.inputs, filename_prefix: "distorch-test/up" } } });
    assert(r.history.status.completed && png(await viewed(r.history.outputs["9"].images[0])), JSON.stringify(r.history.status));
  }
  const webp = await viewed({ filename: up.name, type: "input" }, { preview: "webp;90" });
  assert(new TextDecoder().decode(webp.slice(8, 12)) === "WEBP", "preview");
});

await check("pictures over the socket", async () => {
  // The node is in ComfyUI's own folder of custom nodes, which a base directory hides.
  if (!(await json("/object_info/SaveImageWebsocket")).body.SaveImageWebsocket) return;
  const r = await run({ 1: { ...image, inputs: { ...image.inputs, color: 1 } }, 2: { class_type: "SaveImageWebsocket", inputs: { images: ["1", 0] } } });
  assert(r.binary.length === 1 && r.binary[0].data.readUInt32BE(4) === 2 && png(r.binary[0].data.subarray(8)), r.binary.length + " frames");
});

await check("execution_error", async () => {
  const form = new FormData();
  form.append("image", new Blob(["no picture"]), "distorch-broken.png");
  const up = await (await fetch(url + "/upload/image", { method: "POST", body: form })).json();
  const r = await run({ 1: { class_type: "LoadImage", inputs: { image: up.name } }, 9: save });
  const e = r.of.find((f) => f.type === "execution_error");
  assert(e?.data.node_id === "1" && e.data.node_type === "LoadImage" && r.history.status.status_str === "error", JSON.stringify(e));
});

await check("400", async () => {
  const r = await json("/prompt", { prompt: { 1: image, 9: { class_type: "SaveNothing", inputs: {} } } });
  assert(r.status === 400 && r.body.error.details.includes("distorch comfy add"), JSON.stringify(r));
});

await check("lists", async () => {
  assert((await json("/models")).body.includes("vae"), "models");
  assert((await json("/system_stats")).body.devices.length > 0, "devices");
  assert((await json("/object_info/SaveImage")).body.SaveImage, "object_info");
  assert((await fetch(url + "/free", { method: "POST", body: JSON.stringify({ unload_models: true }) })).status === 200, "free");
});

ws.close();
setTimeout(() => process.exit(), 100);
