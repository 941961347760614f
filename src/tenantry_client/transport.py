"""One request at a time to a platform, over TCP or over the socket of a local one."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

import msgspec

ANSWER_BYTES_MAX = 64 * 1024 * 1024


class ClientError(Exception):
    """Base of what this package raises."""


class UnreachableError(ClientError):
    """Nothing answers there, or what answers breaks off; whether the request took effect is not known."""


class ApiError(ClientError):
    """The platform's no: problem details (RFC 9457). `verdict` is set when the gate or a rate said it."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.title = str(problem.get("title") or f"status {status}")
        self.detail = None if problem.get("detail") is None else str(problem["detail"])
        self.path = None if problem.get("path") is None else str(problem["path"])
        self.verdict = None if problem.get("verdict") is None else str(problem["verdict"])
        words = self.title if self.detail is None else f"{self.title}: {self.detail}"
        super().__init__(words if self.path is None else f"{words} (at {self.path})")


class Answer(msgspec.Struct, frozen=True):
    """A good answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Transport(Protocol):
    """Where a platform is met."""

    @property
    def address(self) -> str:
        """For people: where this goes."""

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """A new connection, not yet opened."""


class TcpTransport:
    """``http://host:port`` or ``https://...``. Raises ValueError for a URL that is neither."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("a platform's URL is http://host:port or https://host")
        self._parts = parts
        self.address = url.rstrip("/")
        self.host, self.port = parts.hostname, parts.port

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """A new connection, not yet opened."""
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout_s)


class SocketTransport:
    """The control socket in a data folder; its path may be longer than a socket's address can be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.address = str(path)

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """A new connection, not yet opened."""
        return _SocketConnection(self._path, timeout_s)


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)


def send(
    transport: Transport,
    method: str,
    path: str,
    *,
    token: str | None,
    body: object = None,
    query: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
) -> Answer:
    """Send one request with a JSON body and read the whole answer.

    Query values that are None are left out. Errors: `ApiError` for an answer of 400 and above;
    `UnreachableError`.
    """
    asked = {name: str(value) for name, value in (query or {}).items() if value is not None}
    target = f"{path}?{urlencode(asked)}" if asked else path
    sent = {"accept": "application/json", **(headers or {})}
    if token is not None:
        sent["authorization"] = f"Bearer {token}"
    content = None
    if body is not None:
        content = msgspec.json.encode(body)
        sent["content-type"] = "application/json"
    connection = transport.connect(timeout_s)
    try:
        connection.request(method, target, content, sent)
        response = connection.getresponse()
        received = response.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        words = getattr(error, "strerror", None) or type(error).__name__
        raise UnreachableError(f"the platform at {transport.address} does not answer: {words}") from None
    finally:
        connection.close()
    if response.status >= 400:
        raise ApiError(response.status, _problem(received))
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, received)


def _problem(body: bytes) -> dict[str, Any]:
    try:
        problem = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return {}
    return problem if isinstance(problem, dict) else {}
