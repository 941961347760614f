"""One request at a door: its headers, read once, and the ways to answer it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import msgspec

from tenantry.web.problems import (
    JSON_CONTENT_TYPE,
    PROBLEM_CONTENT_TYPE,
    Problem,
    ProblemError,
    invalid,
    openai_problem_bytes,
    problem_bytes,
)
from tenantry.web.timing import NOTHING_SPENT, Timings, server_timing
from tenantry.web.verdicts import Headers, Wire, openai_body, problem_body, verdict_headers

if TYPE_CHECKING:
    from tenantry.core.clock import Clock
    from tenantry.gateway.ports import Connection, Message, Receive, Send

CONNECTION_EXTENSION: Final = "tenantry.connection"
_KEPT: Final = frozenset(
    {
        b"host",
        b"origin",
        b"authorization",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"transfer-encoding",
        b"idempotency-key",
    }
)
# What only a request that somebody tampered with carries twice.
_FIXED: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)


class Exchange:
    """One HTTP request. ``speaks_openai`` says in whose shape errors are told.

    ``is_started`` is True once the status line went out: nothing but body parts may follow.
    """

    __slots__ = (
        "_receive",
        "_send",
        "connection",
        "doubled",
        "headers",
        "is_body_read",
        "is_started",
        "method",
        "path",
        "peer",
        "request_id",
        "scope",
        "speaks_openai",
    )

    def __init__(self, scope: Message, receive: Receive, send: Send, clock: Clock) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        client = scope.get("client")
        self.peer: str | None = client[0] if client else None
        # Fixed length: an answer's size tells nothing.
        self.request_id = b"req_" + clock.random_bytes(16).hex().encode()
        self.connection: Connection | None = cast(
            "Connection | None", (scope.get("extensions") or {}).get(CONNECTION_EXTENSION)
        )
        self.speaks_openai = False
        self.is_started = False
        self.doubled: bytes | None = None
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _KEPT:
                if name in headers:
                    self.doubled = name
                headers[name] = value
        self.headers = headers
        self.is_body_read = (
            b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"
        )

    async def receive(self) -> Message:
        """The next event of the request."""
        return await self._receive()

    async def send(self, message: Message) -> None:
        """Send as it is; see `start` for the usual headers."""
        await self._send(message)

    def text_header(self, name: bytes) -> str | None:
        """A header's value as text. Raises `ProblemError` (400) where it is not ASCII."""
        value = self.headers.get(name)
        if value is None:
            return None
        if not value.isascii():
            raise invalid("the header is not ASCII", path=f"header {name.decode()}")
        return value.decode("ascii")

    async def start(self, status: int, headers: Headers, timing: tuple[bytes, bytes]) -> None:
        """Send status and headers, with those that every answer of a door carries."""
        self.is_started = True
        sent = [(b"tenantry-request-id", self.request_id), timing, *_FIXED, *headers]
        if not self.is_body_read:
            # What is left of the body is never read; without this it would be taken for the next request.
            sent.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": sent})

    async def part(self, body: bytes, *, more: bool) -> None:
        """Send one part of the body; `more` False ends the answer."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def answer(
        self,
        status: int,
        headers: Headers,
        body: bytes,
        timings: Timings | None = None,
        *,
        more: bool = False,
    ) -> None:
        """Send a whole answer; with `more` the connection is kept open after it."""
        headers.append((b"content-length", str(len(body)).encode()))
        await self.start(status, headers, NOTHING_SPENT if timings is None else server_timing(timings))
        await self.part(body, more=more)

    async def answer_json(self, status: int, value: object, timings: Timings | None = None) -> None:
        """Send a value as JSON."""
        await self.answer(status, [(b"content-type", JSON_CONTENT_TYPE)], msgspec.json.encode(value), timings)

    async def answer_problem(self, problem: Problem, timings: Timings | None = None) -> None:
        """Send a problem in the door's own shape."""
        if self.speaks_openai:
            content_type, body = JSON_CONTENT_TYPE, openai_problem_bytes(problem)
        else:
            content_type, body = PROBLEM_CONTENT_TYPE, problem_bytes(problem)
        await self.answer(
            problem.status,
            [(b"content-type", content_type), *problem.headers],
            body,
            timings,
            more=problem.closes,
        )

    async def answer_verdict(self, wire: Wire, timings: Timings | None = None) -> None:
        """Send a refusal in the door's own shape."""
        if self.speaks_openai:
            content_type, body = JSON_CONTENT_TYPE, openai_body(wire)
        else:
            content_type, body = PROBLEM_CONTENT_TYPE, problem_body(wire)
        headers = [(b"content-type", content_type), *verdict_headers(wire)]
        await self.answer(wire.status, headers, body, timings)


def refuse(status: int, kind: str, title: str, detail: str | None = None) -> ProblemError:
    """A problem, as an error to raise."""
    return ProblemError(Problem(status, kind, title, detail))
