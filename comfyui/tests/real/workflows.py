# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""The example workflows: NAME.json as the editor opens it, api/NAME.json as a prompt.

A prompt says what the nodes are and how they are linked; the editor's form adds
where they stand, and has the values of widgets without their names, in the order
of /object_info. Each form is checked against the other.
"""

import json
import pathlib

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "example_workflows"

# Widgets that the editor adds behind one of the node's own, and their values.
SEEDS = ("seed", "noise_seed")
AFTER_SEED = "randomize"
UPLOAD = "image"
PRIMITIVES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")

COLUMN, GAP, ROW, SLOT, HEAD = 340, 60, 60, 22, 40  # pixels


def names() -> list[str]:
    return sorted(p.stem for p in FOLDER.glob("*.json"))


def read(name: str) -> tuple[dict, dict]:
    """The editor's form and the prompt."""
    return tuple(json.loads((FOLDER / folder / f"{name}.json").read_text(encoding="utf-8")) for folder in ("", "api"))


def inputs(info: dict) -> list[tuple[str, object, dict, bool]]:
    """Inputs of a node class in order: name, type, options, whether it is a widget."""
    found = []
    for part in ("required", "optional"):
        given = info["input"].get(part) or {}
        for name in (info.get("input_order") or {}).get(part) or given:
            kind, options = given[name][0], given[name][1] if len(given[name]) > 1 else {}
            widget = (isinstance(kind, list) or kind in PRIMITIVES) and not options.get("forceInput")
            found.append((name, kind, options, widget))
    return found


def added(name: str, options: dict) -> list:
    """Values of the widgets that the editor adds behind this one."""
    if name in SEEDS or options.get("control_after_generate"):
        return [AFTER_SEED]
    return [UPLOAD] if options.get("image_upload") else []


def link(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def to_prompt(editor: dict, classes: dict) -> dict:
    """What the editor would queue."""
    links = {entry[0]: entry for entry in editor["links"]}
    prompt = {}
    for node in editor["nodes"]:
        if node["type"] == "Note":
            continue
        values, slots = list(node["widgets_values"]), {s["name"]: s for s in node["inputs"]}
        given = {}
        for name, _, options, widget in inputs(classes[node["type"]]):
            if widget:
                value = values.pop(0)
                for _ in added(name, options):
                    values.pop(0)
                given[name] = value
            if name in slots and slots[name]["link"] is not None:
                _, source, slot, target, place, kind = links[slots[name]["link"]]
                assert target == node["id"] and node["inputs"][place]["name"] == name, f"link {slots[name]['link']} does not end at {name} of node {node['id']}"
                assert kind == slots[name]["type"], f"link {slots[name]['link']} is {kind}"
                given[name] = [str(source), slot]
        assert not values, f"node {node['id']} has {len(values)} values too many"
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": given}
    for number, source, slot, *_ in editor["links"]:
        output = next(n for n in editor["nodes"] if n["id"] == source)["outputs"][slot]
        assert number in output["links"], f"node {source} does not know of its link {number}"
    return prompt


def to_editor(prompt: dict, classes: dict) -> dict:
    """A prompt laid out in columns, as far from its sources as it must be."""
    depth = {}

    def far(key):
        if key not in depth:
            depth[key] = max((far(v[0]) + 1 for v in prompt[key]["inputs"].values() if link(v)), default=0)
        return depth[key]

    order = sorted(prompt, key=lambda k: (far(k), int(k)))
    # A node without sources stands beside what it is for, not at the far left.
    for key in reversed(order):
        users = [depth[k] for k in prompt for v in prompt[k]["inputs"].values() if link(v) and v[0] == key]
        if users:
            depth[key] = max(depth[key], min(users) - 1)
    nodes, links, heights = {}, [], {}
    for place, key in enumerate(order):
        given = prompt[key]
        info = classes[given["class_type"]]
        slots, values = [], []
        for name, kind, options, widget in inputs(info):
            if widget:
                values += [given["inputs"][name], *added(name, options)]
            elif name in given["inputs"] or not widget:
                slots.append({"name": name, "type": kind, "link": None})
        outputs = [{"name": n, "type": t, "links": [], "slot_index": i} for i, (t, n) in enumerate(zip(info["output"], info["output_name"]))]
        height = HEAD + SLOT * (max(len(slots), len(outputs)) + len(values)) + sum(90 for _, _, o, w in inputs(info) if w and o.get("multiline"))
        if given["class_type"] in ("SaveImage", "PreviewImage", "LoadImage"):
            height += 260
        column = depth[key]
        top = heights.get(column, 0)
        heights[column] = top + height + ROW
        nodes[key] = {
            "id": int(key), "type": given["class_type"], "pos": [column * (COLUMN + GAP), top], "size": [COLUMN, height], "flags": {}, "order": place,
            "mode": 0, "inputs": slots, "outputs": outputs, "properties": {"Node name for S&R": given["class_type"]}, "widgets_values": values,
        }
        if title := given.get("_meta", {}).get("title"):
            nodes[key]["title"] = title
    for key in order:
        for place, slot in enumerate(nodes[key]["inputs"]):
            value = prompt[key]["inputs"].get(slot["name"])
            if link(value):
                number = len(links) + 1
                slot["link"] = number
                nodes[value[0]]["outputs"][value[1]]["links"].append(number)
                links.append([number, int(value[0]), value[1], int(key), place, slot["type"]])
    return {
        "last_node_id": max(int(k) for k in prompt), "last_link_id": len(links), "nodes": [nodes[k] for k in order], "links": links, "groups": [],
        "config": {}, "extra": {}, "version": 0.4,
    }


def write(classes: dict):
    """Makes the editor's forms anew from the prompts."""
    for path in sorted((FOLDER / "api").glob("*.json")):
        editor = to_editor(json.loads(path.read_text(encoding="utf-8")), classes)
        (FOLDER / path.name).write_text(json.dumps(editor, indent=1) + "\n", encoding="utf-8")
