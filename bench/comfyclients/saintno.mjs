// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// @saintno/comfyui-sdk.

import { CallWrapper, ComfyApi, PromptBuilder } from "@saintno/comfyui-sdk";
import WebSocket from "ws";
import { assert, broken, check, graph, json, limited, long, png, until, url } from "./shared.mjs";

async function client() {
  const api = new ComfyApi(url, ComfyApi.generateId(), { customWebSocketImpl: WebSocket, forceWs: true });
  api.init();
  await limited(api.waitForReady());
  return api;
}

function run(api, g) {
  const builder = new PromptBuilder(g, [], ["images"]).setOutputNode("images", "9");
  const seen = { progress: 0, previews: 0, started: 0, output: null, failed: [] };
  const call = new CallWrapper(api, builder)
    .onStart(() => seen.started++)
    .onProgress(() => seen.progress++)
    .onPreview(() => seen.previews++)
    .onFailed((e) => seen.failed.push(e));
  return { seen, done: call.run().then((v) => ((seen.output = v), seen)) };
}

const api = await client();

await check("success", async () => {
  const seen = await run(api, graph({ steps: 20 })).done;
  assert(seen.output && seen.failed.length === 0, "failed: " + seen.failed);
  assert(seen.progress >= 3 && seen.previews >= 3, JSON.stringify(seen));
  const blob = await (await fetch(api.getPathImage(seen.output.images.images[0]))).arrayBuffer();
  assert(png(blob), "the picture");
});

await check("cached", async () => {
  const g = graph();
  for (let i = 0; i < 3; i++) {
    const seen = await run(api, g).done;
    assert(seen.output?.images?.images?.length === 1, "time " + i + ": " + JSON.stringify(seen) + seen.failed);
  }
});

await check("400", async () => {
  const seen = await run(api, broken()).done;
  const cause = seen.failed[0]?.cause;
  assert(seen.output === false && cause?.error?.type === "prompt_outputs_failed_validation", JSON.stringify(cause));
});

await check("execution_error", async () => {
  const seen = await run(api, graph({ text: "raise" })).done;
  assert(seen.output === false && seen.failed.length === 1, JSON.stringify(seen));
});

await check("interrupt", async () => {
  const r = run(api, long());
  await until("it runs", () => r.seen.progress > 2);
  await api.interrupt();
  const seen = await r.done;
  assert(seen.output === false && seen.failed.length === 1, JSON.stringify(seen));
});

await check("queue delete", async () => {
  const busy = [run(api, long()), run(api, long())];
  await until("both run", () => busy.every((r) => r.seen.started));
  const p = (await api.appendPrompt(graph())).prompt_id;
  await json("/queue", { delete: [p] });
  assert(!(await api.getQueue()).queue_pending.some((i) => i[1] === p), "still there");
  await api.interrupt();
  for (const r of busy) await r.done;
});

await check("reconnect in the middle", async () => {
  const r = run(api, graph({ steps: 60 }));
  await until("it runs", () => r.seen.progress > 2);
  api.reconnectWs(true);
  const seen = await r.done;
  assert(seen.output || seen.failed[0]?.message?.match(/isconnect/), JSON.stringify(seen) + seen.failed);
  await limited(until("it is in history", async () => Object.values((await json("/history?max_items=1&offset=-1")).body)[0]?.status?.completed));
});

await check("two clients in parallel", async () => {
  const [a, b] = await Promise.all([client(), client()]);
  const both = await Promise.all([run(a, graph({ steps: 20 })).done, run(b, graph({ steps: 20 })).done]);
  for (const seen of both) assert(seen.output && seen.previews >= 3, JSON.stringify(seen) + seen.failed);
  a.destroy();
  b.destroy();
});

api.destroy();
setTimeout(() => process.exit(), 100);
