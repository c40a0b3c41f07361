# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the node pack's tests: python comfyui/tests/run.py [NAME ...]

ComfyUI is a double here (tests/double), and so is the cluster where an answer is
wanted that a real one does not give; test_cluster.py has a real coordinator and
agents behind it: BIN/distorch of the variable DISTORCH_BIN.
"""

import os
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    sys.dont_write_bytecode = True
    sys.path[:0] = [os.path.join(HERE, "double"), os.path.dirname(os.path.dirname(HERE)), HERE]
    os.environ.pop("DISTORCH_CONNECTION", None)
    with tempfile.TemporaryDirectory() as user:
        os.environ["DISTORCH_TEST_USER"] = user
        import torch

        torch.set_num_threads(1)
        loader = unittest.TestLoader()
        found = loader.loadTestsFromNames(sys.argv[1:]) if sys.argv[1:] else loader.discover(HERE)
        print(f"node pack: ComfyUI is a double; torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
        result = unittest.TextTestRunner(verbosity=1, warnings="error").run(found)
        for test, why in result.skipped:
            print("skipped", test, why)
    return 0 if result.wasSuccessful() and result.testsRun and not result.skipped else 1


if __name__ == "__main__":
    sys.exit(main())
