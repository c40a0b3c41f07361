# Copyright The distorch authors.
# SPDX-License-Identifier: Apache-2.0

"""Turns a connection line into files for curl: ca.pem and curl.cfg.

    distorch token create --client NAME | python3 curl_config.py
    curl --config curl.cfg https://coordinator.distorch/v1
"""

import base64
import json
import os
import sys

line = sys.stdin.read().strip().removeprefix("distorch1.")
connection = json.loads(base64.urlsafe_b64decode(line + "=" * (-len(line) % 4)))
with open("ca.pem", "w", encoding="ascii") as f:
    f.write(connection["ca"])
with open(os.open("curl.cfg", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as f:
    f.write('cacert = "ca.pem"\n')
    f.write(f'header = "Authorization: Bearer {connection["t"]}"\n')
    f.write(f'connect-to = "coordinator.distorch:443:{connection["a"][0]}"\n')
    f.write("silent\nshow-error\n")
