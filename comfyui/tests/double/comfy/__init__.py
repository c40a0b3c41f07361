# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""A double of the parts of ComfyUI that the node pack calls. Written for these tests
from what ComfyUI was seen to do; it has none of its code.
"""
