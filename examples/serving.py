"""What the example servers share: a raw ASGI exchange under uvicorn, books, and a switchboard of behaviours.

The servers stand in for somebody else's service: they listen on loopback only, keep their own books of what
they were asked and what they charged for it, and can be told to misbehave as real services do.

An entry of the books lives as ``started -> [effect] -> ended``; each step is one JSON line in the file,
written out before the step's answer leaves the process.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import os
import re
import signal
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Generic, Protocol, TypeVar
from urllib.parse import parse_qs

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Facts = dict[str, Any]
Behaviour = TypeVar("Behaviour", bound=msgspec.Struct)

BODY_BYTES_MAX = 32 * 1024 * 1024
CONTROL_BYTES_MAX = 64 * 1024
ENTRIES_MAX = 200_000
HANG_S_MAX = 600.0
KEEP_ALIVE_S = 75
TRANSPORT = "example.transport"
HEADERS_OF_INTEREST = frozenset(
    {"idempotency-key", "user-agent", "x-stainless-retry-count", "x-request-id", "traceparent", "host"}
)
JSON = {"content-type": "application/json"}


class BodyError(Exception):
    """The request's body could not be read; ``status`` is what HTTP calls the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Exchange:
    """One request and its answer. Headers have lower-case names; the last of equal names stands."""

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self.started_ns = time.monotonic_ns()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query_string: str = scope["query_string"].decode("latin-1")
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._transport: asyncio.Transport = scope["extensions"][TRANSPORT]
        self._receive = receive
        self._send = send
        self._is_done = False

    def interesting_headers(self) -> dict[str, str]:
        """The headers that the books keep; never one that holds a credential."""
        return {name: value for name, value in self.headers.items() if name in HEADERS_OF_INTEREST}

    async def read_body(self, bytes_max: int = BODY_BYTES_MAX) -> bytes:
        """The whole body. Raises `BodyError` above ``bytes_max`` (413) or when the client left (499)."""
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise BodyError(499, "the client left before its body was complete")
            body += message.get("body", b"")
            if len(body) > bytes_max:
                raise BodyError(413, f"the body is larger than {bytes_max} bytes")
            if not message.get("more_body", False):
                return bytes(body)

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the status line and headers."""
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def send(self, chunk: bytes, *, more: bool = True) -> None:
        """Send a piece of the body; waits for a slow reader, and does nothing once the client is gone."""
        was_gone = self.is_gone()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})
        self._is_done = self._is_done or not (more or was_gone)

    async def reply(self, status: int, body: bytes, headers: Mapping[str, str] = JSON) -> None:
        """A whole answer with its length."""
        await self.start(status, {**headers, "content-length": str(len(body))})
        await self.send(body, more=False)

    async def reply_json(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        """A whole answer of JSON."""
        await self.reply(status, msgspec.json.encode(value), {**JSON, **(headers or {})})

    def is_gone(self) -> bool:
        """Whether the client has closed the connection, as far as this process has noticed."""
        return self._transport.is_closing()

    def client_left(self) -> bool:
        """Whether the client went away before this side was done with it."""
        return self.is_gone() and not self._is_done

    async def gone_within(self, seconds: float) -> bool:
        """Wait ``seconds``, or less if the client leaves; says whether it left. Read the body first."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return self.is_gone()
        try:
            async with asyncio.timeout(seconds):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return self.is_gone()
        return True

    async def reset(self) -> None:
        """Break the connection with a TCP reset, whatever was or was not sent before."""
        self._is_done = not self.client_left()
        peer = self._transport.get_extra_info("socket")
        if peer is not None and not self.is_gone():
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
        await self.gone_within(1.0)


class Books:
    """Who asked for what, and what it cost: in memory, and a JSON line a step when a file is given.

    Memory holds the newest ``ENTRIES_MAX`` entries; the totals count all of them.
    """

    def __init__(self, path: Path | None, summed: Iterable[str]) -> None:
        self._file: BinaryIO | None = path.open("ab") if path else None
        self._entries: deque[Facts] = deque(maxlen=ENTRIES_MAX)
        self._summed = tuple(summed)
        self._totals: Counter[str] = Counter(
            dict.fromkeys(("requests", "open", "left_early", *self._summed), 0)
        )
        self._prefix = os.urandom(4).hex()

    def start(self, exchange: Exchange, facts: Facts) -> Facts:
        """Open an entry; its ``started_ns`` (CLOCK_MONOTONIC) is when the request's headers arrived."""
        self._totals["requests"] += 1
        self._totals["open"] += 1
        entry: Facts = {
            "seq": self._totals["requests"],
            "request_id": f"{self._prefix}{self._totals['requests']:08x}",
            "started_ns": exchange.started_ns,
            "started_at": datetime.now(UTC).isoformat(),
            "headers": exchange.interesting_headers(),
            **facts,
        }
        self._entries.append(entry)
        self._write("started", entry)
        return entry

    def note(self, entry: Facts, event: str, facts: Facts) -> None:
        """Add ``facts`` to an open entry, as the step ``event``."""
        entry.update(facts)
        self._write(event, {"request_id": entry["request_id"], "at_ns": time.monotonic_ns(), **facts})

    def end(self, entry: Facts, event: str, facts: Facts) -> None:
        """Close an entry. Each entry is closed once, also when the answer failed."""
        self._totals["open"] -= 1
        self._totals["left_early"] += bool(facts.get("left_early"))
        for name in self._summed:
            self._totals[name] += facts.get(name, 0)
        facts["ended_ns"] = time.monotonic_ns()
        self.note(entry, event, facts)

    def view(self, since: int = 0) -> Facts:
        """The totals, and the entries whose ``seq`` is above ``since``, oldest first."""
        return {
            "totals": dict(self._totals),
            "entries": [entry for entry in self._entries if entry["seq"] > since],
        }

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._file.close()

    def _write(self, event: str, facts: Facts) -> None:
        if self._file is not None:
            self._file.write(msgspec.json.encode({"event": event, **facts}) + b"\n")
            self._file.flush()


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A behaviour for requests whose facts match ``match``, at most ``times`` of them (None: all)."""

    behaviour: dict[str, Any] = {}
    match: dict[str, str] = {}
    times: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /control``; it replaces all rules that stood before."""

    rules: Annotated[list[Rule], msgspec.Meta(max_length=100)] = []


class Control(Generic[Behaviour]):
    """Which behaviour a request meets: of `/control` the first rule that matches, then its own words.

    A word is ``!name`` or ``!name=value`` in a text of the request, for example ``!tokens=50
    !delay_ms=20``; words that name no field of the behaviour are plain text. ``bare`` says what ``!name``
    alone means.
    """

    _WORD = re.compile(r"!([a-z_]+)(?:=([^\s!\"]+))?")

    def __init__(self, behaviour: type[Behaviour], bare: Mapping[str, str]) -> None:
        self._behaviour = behaviour
        self._bare = bare
        self._fields = frozenset(behaviour.__struct_fields__)
        self._rules: list[tuple[Rule, int | None]] = []

    def replace(self, body: bytes) -> None:
        """Take new rules. Raises `msgspec.MsgspecError` and changes nothing when one is bad."""
        rules = msgspec.json.decode(body, type=Rules).rules
        for rule in rules:
            msgspec.convert(rule.behaviour, self._behaviour, strict=False)
            if unknown := sorted(set(rule.behaviour) - self._fields):
                raise msgspec.ValidationError(f"unknown behaviour {unknown[0]!r}")
        self._rules = [(rule, rule.times) for rule in rules]

    def view(self) -> Facts:
        """The rules as they stand, with what is left of ``times``."""
        return {"rules": [{**msgspec.to_builtins(rule), "times": left} for rule, left in self._rules]}

    def behaviour(self, facts: Mapping[str, Any], *texts: str) -> Behaviour:
        """One request's behaviour; later ``texts`` win. Raises `msgspec.ValidationError` on a bad value."""
        chosen: Facts = dict(self._take(facts))
        for text in texts:
            for name, value in self._WORD.findall(text):
                if name in self._fields:
                    chosen[name] = value or self._bare.get(name, "")
        return msgspec.convert(chosen, self._behaviour, strict=False)

    def strip(self, text: str) -> str:
        """``text`` without its words."""
        known = self._fields
        return self._WORD.sub(lambda found: "" if found[1] in known else found[0], text).strip()

    def _take(self, facts: Mapping[str, Any]) -> Facts:
        for index, (rule, left) in enumerate(self._rules):
            if left != 0 and all(facts.get(name) == value for name, value in rule.match.items()):
                self._rules[index] = (rule, None if left is None else left - 1)
                return rule.behaviour
        return {}


class App(Protocol):
    """What a server file provides: its books, its rules, and the answer to everything else."""

    @property
    def books(self) -> Books: ...

    @property
    def control(self) -> Control[Any]: ...

    async def answer(self, exchange: Exchange) -> None:
        """Answer one request that is not about books or rules."""


def credential_of(exchange: Exchange) -> tuple[str, str]:
    """The scheme (``bearer``, ``basic``, ``api_key`` or ``none``) and the secret that the request carries.

    Of HTTP Basic the secret is the password (RFC 7617); an undecodable one is the empty secret.
    """
    scheme, _, value = exchange.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value:
        return "bearer", value.strip()
    if scheme.lower() == "basic" and value:
        try:
            return "basic", base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return "basic", ""
    if "x-api-key" in exchange.headers:
        return "api_key", exchange.headers["x-api-key"]
    return "none", ""


def suffix(secret: str) -> str:
    """The last six characters of a long credential, which tell keys apart and give none away."""
    return secret[-6:] if len(secret) >= 12 else ""


def asgi(app: App) -> Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]:
    """``app`` as an ASGI application, with ``/books`` and ``/control`` in front."""

    async def call(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        if exchange.path == "/books" and exchange.method == "GET":
            since = parse_qs(exchange.query_string).get("since", ["0"])[0]
            await exchange.reply_json(200, app.books.view(int(since) if since.isdecimal() else 0))
        elif exchange.path == "/control":
            await _answer_control(app, exchange)
        else:
            await app.answer(exchange)

    return call


async def _answer_control(app: App, exchange: Exchange) -> None:
    if exchange.method == "POST":
        try:
            app.control.replace(await exchange.read_body(CONTROL_BYTES_MAX))
        except BodyError as fault:
            await exchange.reply_json(fault.status, {"error": str(fault)})
            return
        except msgspec.MsgspecError as fault:
            await exchange.reply_json(400, {"error": str(fault)})
            return
    await exchange.reply_json(200, app.control.view())


class _OpenProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which also hands the connection's transport to the application."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {TRANSPORT: self.transport}  # type: ignore[dict-item]


class _Server(uvicorn.Server):
    """uvicorn's server, which says on stdout when it serves and may end with its stdin."""

    def __init__(self, config: uvicorn.Config, *, ready: str, exit_with_stdin: bool) -> None:
        super().__init__(config)
        self._ready = ready
        self._exit_with_stdin = exit_with_stdin

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self._exit_with_stdin:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._read_stdin)
        print(self._ready, flush=True)

    def _read_stdin(self) -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self.should_exit = True


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The options that every example server has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument(
        "--books", type=Path, metavar="FILE", help="append the books to FILE, one JSON line a step"
    )
    parser.add_argument(
        "--exit-with-stdin",
        action="store_true",
        help="stop when stdin closes, so that no server outlives whoever started it",
    )
    return parser


def open_books(parser: argparse.ArgumentParser, options: argparse.Namespace, *summed: str) -> Books:
    """The books of ``--books``, with totals of the facts ``summed``; exits with 2 on an unwritable file."""
    try:
        return Books(options.books, summed)
    except OSError as fault:
        parser.error(f"--books: {fault}")


def serve(app: App, options: argparse.Namespace, *, base_path: str = "") -> None:
    """Serve on loopback until SIGTERM, SIGINT or, with ``--exit-with-stdin``, the end of stdin; exits with 0.

    Prints ``ready http://127.0.0.1:PORT<base_path>`` once it serves.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", options.port))
        except (OSError, OverflowError) as fault:
            sys.exit(f"cannot listen on port {options.port} of 127.0.0.1: {fault}")
        config = uvicorn.Config(
            asgi(app),
            http=_OpenProtocol,
            ws="none",
            proxy_headers=False,
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            backlog=2048,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
        )
        ready = f"ready http://127.0.0.1:{listener.getsockname()[1]}{base_path}"
        # uvicorn raises the signal that stopped it once more; a stop that was asked for is no failure.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        try:
            _Server(config, ready=ready, exit_with_stdin=options.exit_with_stdin).run(sockets=[listener])
        finally:
            app.books.close()
