# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""The Python that runs the ComfyUI under test: a virtual environment beside the one with PyTorch.

Standard library only, as it runs before anything is installed.
"""

import hashlib
import pathlib
import re
import subprocess
import sys

# torch is taken from the other environment. The web frontend, templates and
# documents are of no use here, an OpenGL without a display neither. torchaudio
# refuses a torch of another CUDA build, so it has a stand-in.
LEFT_OUT = {
    "torch", "torchaudio", "comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs", "comfyui-manager",
    "comfy-angle", "pyopengl", "pyopengl-accelerate",
}

TORCHAUDIO = '''"""Stands in for torchaudio: no test makes a sound."""
import sys
import types


class Missing:
    def __init__(self, *args, **kwargs):
        raise RuntimeError("torchaudio is not installed here")


def _attribute(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Missing


def _module(name):
    m = types.ModuleType(name)
    m.__getattr__ = _attribute
    sys.modules[name] = m
    return m


functional = _module("torchaudio.functional")
transforms = _module("torchaudio.transforms")
'''


def requirements(comfyui: pathlib.Path) -> list[str]:
    """The lines of the checkout's requirements.txt that its tests need."""
    lines = []
    for line in (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line and re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-") not in LEFT_OUT:
            lines.append(line)
    return lines


def prepare(venv: pathlib.Path, torch: pathlib.Path, comfyui: pathlib.Path) -> pathlib.Path:
    """Makes the environment what the checkout needs, and gives its Python."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    site = next((venv / "lib").glob("python3*")) / "site-packages"
    theirs = next((torch / "lib").glob("python3*")) / "site-packages"
    if theirs.parent.name != site.parent.name:
        raise SystemExit(f"{torch} has {theirs.parent.name} and {venv} {site.parent.name}: remove the older one and try again")
    (site / "distorch-torch.pth").write_text(f"{theirs.resolve()}\n", encoding="utf-8")
    # A fork installs these by itself at its start; another ComfyUI then trips over them.
    foreign = [p.name.split("-")[0] for name in LEFT_OUT if name.startswith("comfyui-") for p in site.glob(f"{name.replace('-', '_')}-*.dist-info")]
    if foreign:
        subprocess.run([str(python), "-m", "pip", "uninstall", "--disable-pip-version-check", "--quiet", "--yes", *foreign], check=True)
    wanted = requirements(comfyui)
    mark = venv / f".done-{hashlib.sha256(chr(10).join(wanted).encode()).hexdigest()[:16]}"
    if not mark.exists():
        print(f"installing what {comfyui}/requirements.txt asks for into {venv}", flush=True)
        subprocess.run([str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *wanted], check=True)
        stand_in = site / "torchaudio"
        stand_in.mkdir(exist_ok=True)
        (stand_in / "__init__.py").write_text(TORCHAUDIO, encoding="utf-8")
        for other in venv.glob(".done-*"):  # its versions may just have been replaced
            other.unlink()
        mark.touch()
    return python
