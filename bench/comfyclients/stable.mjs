// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// @stable-canvas/comfyui-client, over its socket and by polling.

import { createRequire } from "node:module";
import { assert, broken, check, graph, host, json, long, until } from "./shared.mjs";

const require = createRequire(import.meta.url);
const { Client } = require("@stable-canvas/comfyui-client");
const WebSocket = require("ws");

async function client() {
  const c = new Client({ api_host: host, WebSocket, clientId: crypto.randomUUID() });
  await c.connect();
  return c;
}

const failure = (p) => p.then((v) => { throw new Error("it gave " + JSON.stringify(v)); }, (e) => e);
// Its socket mode gives previews as pictures too; saved ones have a URL.
const saved = (out) => out.images.filter((i) => i.type === "url").length === 1;
const c = await client();

await check("success", async () => {
  let steps = 0;
  const out = await c.enqueue(graph({ steps: 20 }), { progress: () => steps++ });
  assert(saved(out) && out.images.length >= 3 && steps >= 3, JSON.stringify(out) + steps);
});

await check("cached", async () => {
  const g = graph();
  for (let i = 0; i < 3; i++) assert(saved(await c.enqueue(g)), "time " + i);
});

await check("polling", async () => {
  assert((await c.enqueue_polling(graph())).images.length === 1, "one picture");
});

await check("400", async () => {
  await failure(c.enqueue(broken()));
});

await check("execution_error", async () => {
  await failure(c.enqueue(graph({ text: "raise" })));
});

await check("interrupt", async () => {
  let steps = 0;
  c.enqueue(long(), { progress: () => steps++ }).catch(() => {}); // it waits on: nothing in it listens for the interrupt
  await until("it runs", () => steps > 2);
  const running = (await json("/queue")).body.queue_running[0][1];
  const heard = new Promise((r) => c.on("execution_interrupted", (d) => d.prompt_id === running && r()));
  await c.interrupt();
  await heard;
});

await check("queue delete", async () => {
  const running = [];
  for (let i = 0; i < 2; i++) running.push((await c._enqueue_prompt(long())).prompt_id);
  await until("both run", async () => (await c.getQueue()).Running.length === 2);
  const p = (await c._enqueue_prompt(graph())).prompt_id;
  await c.deleteItem("queue", p);
  assert((await c.getQueue()).Pending.length === 0, "still there");
  await c.interrupt();
  await until("both ended", async () => (await json("/queue")).body.queue_running.length === 0);
  for (const r of running) assert((await json("/history/" + r)).body[r].status.status_str === "error", r);
});

await check("reconnect in the middle", async () => {
  let steps = 0;
  const done = c.enqueue(graph({ steps: 60 }), { progress: () => steps++ });
  await until("it runs", () => steps > 2);
  c.socket.close();
  const out = await done;
  assert(saved(out), JSON.stringify(out));
});

await check("two clients in parallel", async () => {
  const two = await Promise.all([client(), client()]);
  const out = await Promise.all(two.map((x) => x.enqueue(graph({ steps: 8 }))));
  for (const o of out) assert(saved(o), JSON.stringify(o));
  two.forEach((x) => x.close());
});

c.close();
setTimeout(() => process.exit(), 100);
