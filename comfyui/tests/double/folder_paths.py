# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Double of ComfyUI's module: the user directory alone."""

import os


def get_user_directory():
    return os.environ["DISTORCH_TEST_USER"]
