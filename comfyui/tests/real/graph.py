# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prompts in the form of ComfyUI's API."""


class Graph(dict):
    """Node ids to nodes; add gives the new node's first output as a link."""

    def add(self, class_type: str, **inputs) -> list:
        key = str(len(self) + 1)
        self[key] = {"class_type": class_type, "inputs": {k: v for k, v in inputs.items() if v is not None}}
        return [key, 0]

    def words(self, text: str, guidance: float | None = None) -> list:
        c = self.add("DistorchTestWords", text=text)
        return c if guidance is None else self.add("FluxGuidance", conditioning=c, guidance=guidance)

    def save(self, latent: list, name: str) -> str:
        """Saves a latent; the id of the node that does."""
        return self.add("SaveLatent", samples=latent, filename_prefix=f"test/{name}")[0]
