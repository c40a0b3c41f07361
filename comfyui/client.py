# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""HTTPS to a coordinator, on the standard library alone.

Connections are kept open between calls. Every call may be repeated, since reads,
writes of named things and forwards are the same when they come twice: a
coordinator that is away for a moment, or another one of the connection line,
costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from .connection import Connection
from .errors import NEW_LINE, Cancelled, ClusterError, Unreachable

SERVER_NAME = "coordinator.distorch"
CONNECT_SECONDS = 5.0
AGAIN_SECONDS = 0.5  # between attempts on a cluster that does not answer
ANSWER_LIMIT = 1 << 31  # bytes
IDLE_LIMIT = 16  # connections kept open
BLOB_SECONDS, SLOWEST_LINK = 60.0, 250e3  # the longest that a blob may take: seconds and bytes, bytes a second
CLOSED = (http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class Call:
    """One request that another thread may give up."""

    def __init__(self):
        self.cancelled = threading.Event()
        self._connection = None

    def cancel(self):
        """Ends the request's wait by closing its connection, which also cancels it at the coordinator."""
        self.cancelled.set()
        sock = getattr(self._connection, "sock", None)
        if sock is not None:
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not SSLSocket's, which unwraps under the reader
            except OSError:
                pass

    def check(self):
        if self.cancelled.is_set():
            raise Cancelled("given up", "canceled")


class _Connection(http.client.HTTPConnection):
    def __init__(self, address, context):
        super().__init__(*address)
        self._context = context

    def connect(self):
        sock = socket.create_connection((self.host, self.port), CONNECT_SECONDS)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock = self._context.wrap_socket(sock, server_hostname=SERVER_NAME)
        except BaseException:
            sock.close()
            raise


class Client:
    """Calls to the coordinators of one connection line."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.threads = ThreadPoolExecutor(16, "distorch")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.set_alpn_protocols(["http/1.1"])
        try:
            self._context.load_verify_locations(cadata=connection.ca)
        except (ssl.SSLError, ValueError):
            raise ClusterError(
                f"the connection line of {connection.source} holds no usable certificate; {NEW_LINE}", "bad_connection"
            ) from None
        self._lock = threading.Lock()
        self._idle: list[tuple[int, _Connection]] = []
        self._closed = False
        self._sending: dict[str, threading.Lock] = {}
        self._first = 0  # index of the address that answered last
        self._blobs: set[str] = set()  # digests that the coordinator has

    @property
    def name(self) -> str:
        host, port = self.connection.addresses[self._first]
        return f"{host}:{port}"

    def get(self, path: str, timeout: float = 30, patience: float = 0, call: Call | None = None):
        return _object(self.call("GET", path, timeout=timeout, patience=patience, call=call))

    def send(self, method: str, path: str, value, timeout: float = 30, call: Call | None = None):
        body = json.dumps(value).encode()
        return _object(self.call(method, path, body, {"Content-Type": "application/json"}, timeout, call=call))

    def call(
        self, method, path, body=b"", headers=None, timeout: float = 30, patience: float = 0, call: Call | None = None
    ) -> bytearray:
        """The body of the answer. A cluster that cannot be reached is tried again for
        patience seconds; timeout is the longest silence of one that can.
        """
        call = call or Call()
        begin = time.monotonic()
        while True:
            failures = []
            for i in range(len(self.connection.addresses)):
                call.check()
                at = (self._first + i) % len(self.connection.addresses)
                try:
                    status, answer = self._once(at, method, path, body, headers, timeout, call)
                except (OSError, http.client.HTTPException) as e:
                    call.check()
                    failures.append((self.connection.addresses[at], e))
                    continue
                self._first = at
                if status < 400:
                    return answer
                error = _error(status, answer, self.connection.source)
                if error.code != "unavailable" or time.monotonic() - begin >= patience:
                    raise error
                failures.append((self.connection.addresses[at], error))
            if time.monotonic() - begin >= patience:
                raise _unreachable(failures, self.connection.source)
            if call.cancelled.wait(AGAIN_SECONDS):
                call.check()

    def _once(self, at, method, path, body, headers, timeout, call):
        conn, reused = self._take(at)
        call._connection = conn
        try:
            try:
                found = self._exchange(conn, method, path, body, headers, timeout)
            except CLOSED:
                if not reused or call.cancelled.is_set():
                    raise
                found = self._exchange(conn, method, path, body, headers, timeout)  # closed while it was idle
        finally:
            call._connection = None
        self._keep(at, conn)
        return found

    def _take(self, at) -> tuple[_Connection, bool]:
        """A connection to an address, and whether it was used before."""
        with self._lock:
            for i in reversed(range(len(self._idle))):
                if self._idle[i][0] == at:
                    return self._idle.pop(i)[1], True
        return _Connection(self.connection.addresses[at], self._context), False

    def _keep(self, at, conn):
        with self._lock:
            if conn.sock is not None and not self._closed and len(self._idle) < IDLE_LIMIT:
                self._idle.append((at, conn))
                return
        conn.close()

    def _exchange(self, conn, method, path, body, headers, timeout):
        try:
            if conn.sock is None:
                conn.connect()
            conn.sock.settimeout(timeout)
            conn.request(
                method,
                path,
                body=body or None,
                headers={"Authorization": "Bearer " + self.connection.token, **(headers or {})},
            )
            answer = conn.getresponse()
            return answer.status, _read(answer, method)
        except BaseException:
            conn.close()
            raise

    def close(self):
        """Closes what is idle; calls that run close their connections as they end."""
        self.threads.shutdown(wait=False)
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for _, conn in idle:
            conn.close()

    def forget_blobs(self, digests):
        self._blobs.difference_update(digests)

    def blob(self, digest: str, make, call: Call | None = None):
        """Has the coordinator keep the bytes that make() gives, unless it does. Forwards
        that need the same one wait for the first to send it.
        """
        if digest in self._blobs:
            return
        with self._lock:
            sending = self._sending.setdefault(digest, threading.Lock())
        with sending:
            if digest not in self._blobs:
                self._send_blob(digest, make, call)
                self._blobs.add(digest)
        with self._lock:
            self._sending.pop(digest, None)

    def _send_blob(self, digest, make, call):
        try:
            self.call("HEAD", f"/v1/blobs/{digest}", call=call)
            return
        except ClusterError as e:
            if e.code != "not_found":
                raise
        body = make()
        timeout = BLOB_SECONDS + len(body) / SLOWEST_LINK
        self.call("PUT", f"/v1/blobs/{digest}", body, {"Content-Type": "application/octet-stream"}, timeout, 20, call)


def digest(body) -> str:
    return hashlib.sha256(body).hexdigest()


def _read(answer, method) -> bytearray:
    if method == "HEAD":
        answer.read()
        return bytearray()
    if answer.length is None:
        body = answer.read(ANSWER_LIMIT + 1)
        if len(body) > ANSWER_LIMIT:
            raise ClusterError(f"the cluster's answer has more than {ANSWER_LIMIT} bytes", "internal")
        return bytearray(body)
    if answer.length > ANSWER_LIMIT:
        raise ClusterError(f"the cluster's answer has {answer.length} bytes, more than {ANSWER_LIMIT}", "internal")
    body, at = bytearray(answer.length), 0
    view = memoryview(body)
    while at < len(body):
        n = answer.readinto(view[at:])
        if n <= 0:
            raise http.client.IncompleteRead(b"", len(body) - at)
        at += n
    return body


def _object(body):
    try:
        return json.loads(bytes(body)) if body else {}
    except ValueError:
        raise ClusterError(
            f"the cluster answered with what is no JSON: {bytes(body[:80])!r}; is the port of the connection line another program's?",
            "internal",
        ) from None


STATUS_CODES = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    429: "busy",
    499: "canceled",
    503: "unavailable",
    504: "deadline",
}


def _error(status: int, body, source: str) -> ClusterError:
    code, message, details = STATUS_CODES.get(status, "internal"), "", {}
    try:
        e = json.loads(bytes(body))["error"]
        code, message, details = str(e.get("code") or code), str(e.get("message") or ""), e.get("details") or {}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    if not message and code == "unauthenticated":  # an answer to HEAD has no words
        message = f"its token is unknown, revoked or expired; {NEW_LINE}"
    if not message:
        message = f"the cluster answered with status {status} and no explanation; the coordinator's log has more"
    if code == "unauthenticated":
        message = f"the cluster does not accept the connection line of {source}: {message}"
    return ClusterError(message, code, details if isinstance(details, dict) else {})


def _unreachable(failures, source: str) -> ClusterError:
    for _, e in failures:
        if isinstance(e, ssl.SSLCertVerificationError):
            return Unreachable(
                f"what answers at the address of {source} is not the cluster that its line names ({e.verify_message}); {NEW_LINE}",
                "unavailable",
            )
    said = "; ".join(f"{host}:{port}: {_why(e)}" for (host, port), e in failures)
    return Unreachable(
        f"the cluster of {source} does not answer ({said}); see that its coordinator is running and the port open from here",
        "unavailable",
    )


def _why(e: Exception) -> str:
    if isinstance(e, TimeoutError):
        return "no answer in time"
    if isinstance(e, ConnectionRefusedError):
        return "connection refused"
    if isinstance(e, http.client.IncompleteRead):
        return "the answer broke off"
    if getattr(e, "reason", "") == "WRONG_VERSION_NUMBER":
        return "another program, which does not speak TLS, has this port"
    return getattr(e, "strerror", None) or str(e) or type(e).__name__
