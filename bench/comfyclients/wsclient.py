# Copyright The distorch authors.
# SPDX-License-Identifier: Apache-2.0

"""websocket-client: a picture that comes over the socket, and an interrupt."""

import json
import sys
import urllib.request
import uuid

import websocket

URL = sys.argv[1]
CLIENT = str(uuid.uuid4())


def call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(URL + path, data, 20) as r:
        text = r.read()
    return json.loads(text) if text else None


def frames(ws, prompt):
    """Text frames of a prompt up to its end; binary ones as they are."""
    while True:
        f = ws.recv()
        if isinstance(f, bytes):
            yield "binary", f
            continue
        m = json.loads(f)
        if m["data"].get("prompt_id") != prompt:
            continue
        yield m["type"], m["data"]
        if m["type"] == "executing" and m["data"]["node"] is None:
            return


def check(name, what):
    try:
        what()
        print("ok", name)
    except Exception as e:
        print("FAIL", name, repr(e))
        sys.exitcode = 1
        raise


ws = websocket.create_connection(URL.replace("http", "ws", 1) + "/ws?clientId=" + CLIENT, timeout=20)


def picture():
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": 7}},
        "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}},
    }
    prompt = call("/prompt", {"prompt": graph, "client_id": CLIENT})["prompt_id"]
    pictures = [f for kind, f in frames(ws, prompt) if kind == "binary"]
    assert len(pictures) == 1 and pictures[0][:8] == b"\0\0\0\x01\0\0\0\x02" and pictures[0][8:12] == b"\x89PNG", pictures


def interrupt():
    graph = json.load(open(sys.argv[2]))
    graph["3"]["inputs"].update(steps=5000, seed=uuid.uuid4().int % 2**64)
    prompt = call("/prompt", {"prompt": graph, "client_id": CLIENT})["prompt_id"]
    kinds = []
    for kind, _ in frames(ws, prompt):
        if kind == "progress" and "progress" not in kinds:
            call("/interrupt", {"prompt_id": prompt})
        kinds.append(kind)
    assert kinds[-2:] == ["execution_interrupted", "executing"], kinds[-3:]


check("success", picture)
check("interrupt", interrupt)
ws.close()
