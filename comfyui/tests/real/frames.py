# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""A WebSocket that only listens, enough for ComfyUI's (RFC 6455; no extensions)."""

import base64
import os
import socket
import struct


class Closed(Exception):
    pass


class WebSocket:
    def __init__(self, host: str, port: int, path: str):
        self.socket = socket.create_connection((host, port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self.file = self.socket.makefile("rb")
        status = self.file.readline()
        if b" 101 " not in status:
            raise ConnectionError(f"{path}: {status!r}")
        while self.file.readline() not in (b"\r\n", b""):
            pass
        self.socket.settimeout(None)

    def receive(self) -> str | bytes:
        """The next message: text or bytes."""
        message, kind = b"", 0
        while True:
            head = self._read(2)
            opcode, size = head[0] & 15, head[1] & 127
            if size == 126:
                size = struct.unpack(">H", self._read(2))[0]
            elif size == 127:
                size = struct.unpack(">Q", self._read(8))[0]
            payload = self._read(size)
            if opcode == 8:
                raise Closed
            if opcode == 9:
                self._send(10, payload)
                continue
            if opcode == 10:
                continue
            kind = opcode or kind
            message += payload
            if head[0] & 128:
                return message.decode() if kind == 1 else message

    def _read(self, n: int) -> bytes:
        try:
            data = self.file.read(n)
        except (OSError, ValueError) as e:
            raise Closed from e
        if len(data) < n:
            raise Closed
        return data

    def _send(self, opcode: int, payload: bytes):
        mask = os.urandom(4)
        body = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        self.socket.sendall(bytes([128 | opcode, 128 | len(payload)]) + mask + body)

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()
