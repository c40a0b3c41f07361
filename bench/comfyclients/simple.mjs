// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// comfy-ui-client.

import { ComfyUIClient } from "comfy-ui-client";
import { assert, broken, check, graph, host, long, png, until } from "./shared.mjs";

async function client() {
  const c = new ComfyUIClient(host, crypto.randomUUID());
  await c.connect();
  return c;
}

const c = await client();

async function picture(c, g) {
  const out = await c.getImages(g);
  assert(out["9"].length === 1 && png(await out["9"][0].blob.arrayBuffer()), JSON.stringify(out));
}

await check("success", () => picture(c, graph()));

await check("cached", async () => {
  const g = graph();
  for (let i = 0; i < 3; i++) await picture(c, g);
});

await check("400", async () => {
  const e = await c.queuePrompt(broken()).then(() => null, (e) => e);
  assert(e, "no error");
});

await check("interrupt", async () => {
  const { prompt_id: p } = await c.queuePrompt(long());
  await until("it runs", async () => (await c.getQueue()).queue_running.some((i) => i[1] === p));
  await c.interrupt().catch(() => {}); // it reads JSON from an empty body, against a real ComfyUI too
  await until("it ended", async () => (await c.getHistory(p))[p]?.status?.status_str === "error");
});

await check("files", async () => {
  const up = await c.uploadImage(Buffer.from("cat"), "cat.png", true);
  assert(up.name === "cat.png", JSON.stringify(up));
  assert((await (await c.getImage("cat.png", "", "input")).text()) === "cat", "what was uploaded");
  assert((await c.getObjectInfo("KSampler")).KSampler, "object_info");
  assert((await c.getSystemStats()).devices.length === 2, "system_stats");
});

await check("two clients in parallel", async () => {
  const two = await Promise.all([client(), client()]);
  await Promise.all(two.map((x) => picture(x, graph({ steps: 8 }))));
  await Promise.all(two.map((x) => x.disconnect()));
});

await c.disconnect();
setTimeout(() => process.exit(), 100);
