// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// ws: every frame as it is on the socket.

import { randomUUID } from "node:crypto";
import WebSocket from "ws";
import { assert, broken, check, graph, host, json, limited, long, png, until, url } from "./shared.mjs";

function connect(id, flags) {
  const ws = new WebSocket("ws://" + host + "/ws?clientId=" + id);
  const frames = [];
  const waiting = [];
  ws.on("message", (data, binary) => {
    if (!binary && data.subarray(0, 8).toString() !== '{"type":') throw new Error("a text frame begins with " + data.subarray(0, 20));
    const f = binary ? { binary: data.readUInt32BE(0), data } : JSON.parse(data.toString());
    frames.push(f);
    for (const w of waiting.splice(0)) w();
  });
  ws.on("open", () => flags && ws.send(JSON.stringify({ type: "feature_flags", data: { supports_preview_metadata: true } })));
  const got = async (what, ok) => {
    for (let i = 0; ; ) {
      for (; i < frames.length; i++) if (ok(frames[i])) return frames[i];
      await limited(new Promise((r) => waiting.push(r)));
    }
  };
  const end = (id) => got("the end", (f) => f.type === "executing" && f.data.node === null && f.data.prompt_id === id);
  return { ws, frames, got, end, ready: got("status", (f) => f.type === "status" && f.data.sid === id) };
}

const post = (g, id, more = {}) => json("/prompt", { prompt: g, client_id: id, ...more });
const of = (frames, id) => frames.filter((f) => f.data?.prompt_id === id).map((f) => f.type);

await check("success", async () => {
  const id = randomUUID(), c = connect(id);
  await c.ready;
  const p = (await post(graph(), id)).body.prompt_id;
  await c.end(p);
  const types = of(c.frames, p).filter((t) => t !== "progress_state");
  assert(types[0] === "execution_start" && types[1] === "execution_cached", "begin: " + types);
  assert(types.at(-3) === "executed" && types.at(-2) === "execution_success" && types.at(-1) === "executing", "end: " + types);
  assert(types.filter((t) => t === "progress").length === 3, "3 steps: " + types);
  const previews = c.frames.filter((f) => f.binary !== undefined);
  assert(previews.length === 3 && previews.every((f) => f.binary === 1 && f.data.readUInt32BE(4) === 1), "3 plain previews");
  const image = c.frames.find((f) => f.type === "executed").data.output.images[0];
  const r = await fetch(url + "/view?" + new URLSearchParams(image));
  assert(png(await r.arrayBuffer()), "the picture");
  c.ws.close();
});

await check("previews with metadata", async () => {
  const id = randomUUID(), c = connect(id, true);
  await c.got("flags", (f) => f.type === "feature_flags");
  const p = (await post(graph(), id)).body.prompt_id;
  await c.end(p);
  const previews = c.frames.filter((f) => f.binary !== undefined);
  assert(previews.length === 3, previews.length + " previews");
  for (const f of previews) {
    assert(f.binary === 4, "event " + f.binary);
    const meta = JSON.parse(f.data.subarray(8, 8 + f.data.readUInt32BE(4)).toString());
    assert(meta.prompt_id === p && meta.node_id === "3", JSON.stringify(meta));
  }
  c.ws.close();
});

await check("cached", async () => {
  const id = randomUUID(), c = connect(id), g = graph();
  await c.ready;
  const first = (await post(g, id)).body.prompt_id;
  await c.end(first);
  // Two workers: the third time one of them has it.
  for (let i = 0; i < 2; i++) {
    const p = (await post(g, id)).body.prompt_id;
    await c.end(p);
    const cached = c.frames.find((f) => f.type === "execution_cached" && f.data.prompt_id === p).data.nodes;
    if (cached.length === 8) {
      assert(of(c.frames, p).includes("executed"), "its output comes again");
      c.ws.close();
      return;
    }
  }
  throw new Error("never cached");
});

await check("400", async () => {
  const r = await post(broken(), "x");
  assert(r.status === 400 && r.body.error.type === "prompt_outputs_failed_validation", JSON.stringify(r));
  assert(r.body.node_errors["4"].errors[0].type === "value_not_in_list", JSON.stringify(r.body.node_errors));
});

await check("execution_error", async () => {
  const id = randomUUID(), c = connect(id);
  await c.ready;
  const p = (await post(graph({ text: "raise" }), id)).body.prompt_id;
  const e = await c.got("error", (f) => f.type === "execution_error" && f.data.prompt_id === p);
  await c.end(p);
  assert(e.data.node_id === "6" && e.data.node_type === "CLIPTextEncode" && e.data.exception_message.startsWith("raised"), JSON.stringify(e));
  assert((await json("/history/" + p)).body[p].status.status_str === "error", "history");
  c.ws.close();
});

await check("interrupt", async () => {
  const id = randomUUID(), c = connect(id);
  await c.ready;
  const p = (await post(long(), id)).body.prompt_id;
  await c.got("a step", (f) => f.type === "progress" && f.data.prompt_id === p);
  await json("/interrupt", { prompt_id: p });
  await c.got("interrupted", (f) => f.type === "execution_interrupted" && f.data.prompt_id === p);
  await c.end(p);
  c.ws.close();
});

await check("queue delete", async () => {
  const id = randomUUID(), c = connect(id);
  await c.ready;
  const running = [];
  for (let i = 0; i < 2; i++) running.push((await post(long(), id)).body.prompt_id);
  await until("both workers are busy", async () => (await json("/queue")).body.queue_running.length === 2);
  const p = (await post(graph(), id)).body.prompt_id;
  const item = (await json("/queue")).body.queue_pending[0];
  assert(item[1] === p && item.length === 5, JSON.stringify(item));
  await json("/queue", { delete: [p] });
  assert((await json("/queue")).body.queue_pending.length === 0, "it is still there");
  await json("/interrupt", {});
  for (const r of running) await c.end(r);
  assert(Object.keys((await json("/history/" + p)).body).length === 0, "it has a history");
  c.ws.close();
});

await check("reconnect in the middle", async () => {
  const id = randomUUID(), c = connect(id);
  await c.ready;
  const p = (await post(graph({ steps: 40 }), id)).body.prompt_id;
  await c.got("a step", (f) => f.type === "progress" && f.data.value >= 3);
  c.ws.terminate();
  const again = connect(id);
  await again.ready;
  const node = await again.got("where it is", (f) => f.type === "executing");
  assert(node.data.node === "3" && node.data.prompt_id === undefined, JSON.stringify(node));
  await again.end(p);
  assert(of(again.frames, p).includes("execution_success"), "success");
  again.ws.close();
});

await check("two clients in parallel", async () => {
  const ids = [randomUUID(), randomUUID()], c = ids.map((id) => connect(id));
  await Promise.all(c.map((x) => x.ready));
  const p = await Promise.all(ids.map(async (id) => (await post(graph({ steps: 10 }), id)).body.prompt_id));
  await Promise.all(c.map((x, i) => x.end(p[i])));
  for (let i = 0; i < 2; i++) {
    const foreign = c[i].frames.filter((f) => f.data?.prompt_id === p[1 - i]);
    assert(foreign.length === 0, "client " + i + " heard " + JSON.stringify(foreign[0]));
    c[i].ws.close();
  }
});
