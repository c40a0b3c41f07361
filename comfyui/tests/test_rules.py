# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the pack may import: the standard library without what Windows lacks, and what
every ComfyUI has installed.
"""

import ast
import glob
import os
import sys
import unittest

PACK = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
INSTALLED = {"torch", "PIL", "comfy", "folder_paths"}
UNIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
UNIX_CALLS = {
    "fork",
    "forkpty",
    "getuid",
    "geteuid",
    "kill",
    "killpg",
    "mkfifo",
    "setsid",
    "umask",
    "uname",
    "chmod",
    "chown",
}


class Imports(unittest.TestCase):
    def test_imports(self):
        found = set()
        for path in glob.glob(os.path.join(PACK, "*.py")):
            with open(path, encoding="utf-8") as f:
                tree = ast.parse(f.read(), path)
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    found.update(n.name.partition(".")[0] for n in node.names)
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    found.add(node.module.partition(".")[0])
                elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                    self.assertNotIn(node.attr, UNIX_CALLS, path)
        self.assertTrue({"torch", "http", "ssl"} <= found)
        self.assertEqual(found & UNIX, set())
        self.assertEqual(found - set(sys.stdlib_module_names) - INSTALLED, set())
