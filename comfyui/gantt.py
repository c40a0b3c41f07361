# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""A plan's step over time, drawn with Pillow: what each device computes, what is
copied to it beside that, and what travels between the stages.
"""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont

from .cluster import seconds, size

WIDTH, LEFT, RIGHT, TOP, ROW, BAR, BOTTOM = 1200, 300, 30, 84, 34, 20, 56
INK, FAINT, PAPER = (32, 33, 36), (218, 220, 224), (255, 255, 255)
FORWARDS = ((38, 103, 184), (214, 122, 32))  # a colour for each forward in flight
WAITS, COPIES, HOPS = (176, 58, 46), (120, 144, 72), (120, 120, 128)
MOST_STAGES = 200


class Row:
    def __init__(self, name: str):
        self.name, self.bars = name, []  # (begin, end, colour, label)


def timeline(report: dict, forwards: int = 1) -> tuple[list[Row], float]:
    """Rows of bars in seconds, and the end. A stage and a link take one forward at a
    time, in order, as soon as they are free and the activation has come.
    """
    rows, end = [], 0.0
    stages = [s for s in report.get("stages") or [] if isinstance(s, dict)][:MOST_STAGES]
    for pipeline in sorted({s.get("pipeline", 0) for s in stages}):
        part = [s for s in stages if s.get("pipeline", 0) == pipeline]
        free, taken = [0.0] * len(part), [0.0] * len(part)
        lines = [
            (
                Row(name(s)),
                Row("  copies of weights"),
                Row(f"  to {part[i + 1].get('name', '')}" if i + 1 < len(part) else "  to the endpoint"),
            )
            for i, s in enumerate(part)
        ]
        for m in range(forwards):
            at, colour = 0.0, FORWARDS[m % len(FORWARDS)]
            for i, s in enumerate(part):
                compute, hop = s.get("compute_seconds", 0.0), s.get("hop_seconds", 0.0)
                busy = compute + s.get("streaming_seconds", 0.0)
                begin = max(at, free[i])
                free[i] = begin + busy
                lines[i][0].bars.append((begin, begin + compute, colour, blocks(s)))
                lines[i][0].bars.append((begin + compute, begin + busy, WAITS, ""))
                lines[i][1].bars.append((begin, begin + min(s.get("stream_seconds", 0.0), busy), COPIES, ""))
                leave = max(free[i], taken[i])
                at = taken[i] = leave + hop
                lines[i][2].bars.append((leave, at, HOPS, ""))
                end = max(end, at)
        for device, copies, link in lines:
            rows.append(device)
            rows += [r for r in (copies, link) if any(b > a for a, b, *_ in r.bars)]
    return rows, end


def name(s: dict) -> str:
    return f"{s.get('name', '')} {','.join(s.get('devices') or [s.get('device', '')])}"


def blocks(s: dict) -> str:
    first, n = s.get("first_block", 0), s.get("blocks", 1)
    return f"{first}" if n == 1 else f"{first}-{first + n - 1}"


def draw(report: dict, forwards: int = 1) -> torch.Tensor:
    """IMAGE [1, height, 1200, 3], 0 to 1, of a report as docs/plan-json.md describes it,
    with so many forwards in flight.
    """
    rows, end = timeline(report, forwards)
    height = TOP + ROW * max(1, len(rows)) + BOTTOM
    image = Image.new("RGB", (WIDTH, height), PAPER)
    d = ImageDraw.Draw(image)
    d.text((16, 12), f"{report.get('model', '')}: {seconds(report.get('step_seconds', 0.0))} per step", INK, font(22))
    weights = f"{size(report.get('weight_bytes', 0))} of weights"
    parts = report.get("parts") or {}
    split = ", ".join(f"{k} {seconds(parts[k])}" for k in ("compute", "streaming", "hops", "waiting") if parts.get(k))
    d.text(
        (16, 46),
        " · ".join(t for t in (str(report.get("workload", "")), weights, split, str(report.get("numerics", ""))) if t),
        INK,
        font(14),
    )
    scale = (WIDTH - LEFT - RIGHT) / end if end > 0 else 0.0
    for tick in ticks(end):
        x = LEFT + tick * scale
        d.line((x, TOP - 4, x, height - BOTTOM + 4), FAINT)
        d.text((x, height - BOTTOM + 8), seconds(tick) if tick else "0", INK, font(13), anchor="ma")
    for i, r in enumerate(rows):
        y = TOP + i * ROW
        d.text((16, y + ROW / 2), shortened(d, r.name, LEFT - 32), INK, font(14), anchor="lm")
        for begin, stop, colour, label in r.bars:
            if stop <= begin:
                continue
            x0, x1 = LEFT + begin * scale, LEFT + max(stop * scale, begin * scale + 1)
            d.rectangle((x0, y + (ROW - BAR) / 2, x1, y + (ROW + BAR) / 2), fill=colour)
            if label and d.textlength(label, font(12)) < x1 - x0 - 4:
                d.text(((x0 + x1) / 2, y + ROW / 2), label, PAPER, font(12), anchor="mm")
    legend(d, height - 20)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(1, height, WIDTH, 3)
    return pixels.float() / 255


def legend(d, y: float):
    x = LEFT
    for colour, text in (
        (FORWARDS[0], "computes"),
        (FORWARDS[1], "the second forward"),
        (WAITS, "waits for weights"),
        (COPIES, "copies"),
        (HOPS, "activations travel"),
    ):
        d.rectangle((x, y - 6, x + 12, y + 6), fill=colour)
        d.text((x + 18, y), text, INK, font(13), anchor="lm")
        x += 36 + d.textlength(text, font(13))


def ticks(end: float) -> list[float]:
    """About eight round numbers from 0."""
    if end <= 0:
        return [0.0]
    step = 10.0 ** len(str(int(end)))
    while end / step < 4:
        step /= 10
    while end / step > 9:
        step *= 2 if end / step <= 18 else 2.5 if end / step <= 23 else 5
    return [i * step for i in range(int(end / step) + 1)]


def shortened(d, text: str, room: float) -> str:
    while len(text) > 1 and d.textlength(text, font(14)) > room:
        text = text[:-2] + "…"
    return text


def font(points: int):
    try:
        return ImageFont.load_default(points)
    except TypeError:  # Pillow before 10.1 has one size
        return ImageFont.load_default()
