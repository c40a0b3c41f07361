# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the node pack in a real ComfyUI: `make test-comfyui COMFYUI_DIR=DIR`.

Prepares a Python for the checkout, runs the checks in it and prints what was
measured. Ends with 1 if a check failed or could not run.
"""

import argparse
import os
import pathlib
import subprocess
import sys


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--comfyui", type=pathlib.Path, required=True, help="a checkout of ComfyUI; it is only read")
    p.add_argument("--distorch", type=pathlib.Path, required=True, help="the binary")
    p.add_argument("--venv", type=pathlib.Path, required=True, help="where ComfyUI's packages are installed")
    p.add_argument("--torch", type=pathlib.Path, required=True, help="an environment with PyTorch")
    p.add_argument("--keep", type=pathlib.Path, help="folder for state and logs, which stay there (default: a temporary one)")
    p.add_argument("--write-workflows", action="store_true", help="make the editor's form of the example workflows anew from their prompts")
    p.add_argument("--prepared", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("only", nargs="*", help="names of checks, or parts of them; all otherwise")
    return p.parse_args()


def main() -> int:
    a = arguments()
    a.comfyui, a.distorch = a.comfyui.resolve(), a.distorch.resolve()
    for need in (a.comfyui / "main.py", a.comfyui / "requirements.txt", a.distorch):
        if not need.exists():
            print(f"there is no {need}", file=sys.stderr)
            return 2
    if a.prepared:
        import checks  # which needs what the environment has

        return checks.run(a)
    import environment

    python = environment.prepare(a.venv, a.torch, a.comfyui)
    return subprocess.run([str(python), *sys.argv, "--prepared"], check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
