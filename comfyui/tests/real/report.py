# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table at the end of a run."""

rows: list[tuple[str, str, str, str]] = []


def row(what: str, figure: str, limit: str = "", good: bool = True):
    rows.append((what, figure, limit, "ok" if good else "FAILED"))


def distance(a, b) -> float:
    """Relative L2 of a from b."""
    if a.shape != b.shape:
        raise AssertionError(f"shape {tuple(a.shape)} against {tuple(b.shape)}")
    return float((a.double() - b.double()).norm() / b.double().norm())


def table() -> str:
    head = ("WHAT", "FIGURE", "LIMIT", "")
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(3)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(r, widths)), r[3]]).rstrip() for r in (head, *rows))
