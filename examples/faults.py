"""How an example HTTP service misbehaves when told to: before its effect, after it, or in its answer."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from typing import Annotated

import msgspec
from serving import HANG_S_MAX, JSON, Exchange

PIECE_BYTES = 64 * 1024
SLOW_PIECES = 20
ENDLESS_BYTES_MAX = 4 * 1024**3
BARE = {
    "reset": "true",
    "reset_before": "true",
    "hang": "true",
    "endless": "true",
    "malformed": "true",
    "gzip_bomb_mib": "256",
}

Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=600_000)]


class HttpBehaviour(msgspec.Struct, frozen=True):
    """How one request is answered.

    Before the effect: ``delay_ms``, ``fail`` (with ``retry_after_ms``), ``redirect`` to a URL,
    ``reset_before``. After the effect: ``delay_after_ms``, ``reset`` (the answer is lost), ``hang``. In the
    answer: ``body_bytes`` pads it, ``slow_body_ms`` spreads it over that time, ``malformed`` breaks its
    JSON, ``endless`` never ends it and ``gzip_bomb_mib`` is what a small compressed body grows to.
    """

    delay_ms: Milliseconds = 0
    delay_after_ms: Milliseconds = 0
    fail: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    retry_after_ms: Milliseconds | None = None
    redirect: Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]+\Z", max_length=2000)] | None = None
    redirect_status: Annotated[int, msgspec.Meta(ge=300, le=308)] = 302
    reset_before: bool = False
    reset: bool = False
    hang: bool = False
    body_bytes: Annotated[int, msgspec.Meta(ge=0, le=1024**3)] = 0
    slow_body_ms: Milliseconds = 0
    malformed: bool = False
    endless: bool = False
    gzip_bomb_mib: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0


async def answered_before(exchange: Exchange, behaviour: HttpBehaviour) -> bool:
    """Meet the behaviours that come before the effect; True when the request ends with them."""
    if behaviour.delay_ms and await exchange.gone_within(behaviour.delay_ms / 1000):
        return True
    if behaviour.reset_before:
        await exchange.reset()
        return True
    if behaviour.redirect is not None:
        await exchange.reply(behaviour.redirect_status, b"", {"location": behaviour.redirect})
        return True
    if behaviour.fail is not None:
        headers = {}
        if behaviour.retry_after_ms is not None:
            headers["retry-after"] = str(-(-behaviour.retry_after_ms // 1000))
        await exchange.reply_json(behaviour.fail, {"error": f"told to fail with {behaviour.fail}"}, headers)
        return True
    return False


async def answer(exchange: Exchange, behaviour: HttpBehaviour, status: int, body: bytes, kind: str) -> None:
    """Answer with ``body`` of content type ``kind`` in the way that the behaviour asks for."""
    headers = {"content-type": kind}
    if behaviour.delay_after_ms and await exchange.gone_within(behaviour.delay_after_ms / 1000):
        return
    if behaviour.hang:
        await exchange.gone_within(HANG_S_MAX)
    if behaviour.hang or behaviour.reset:
        await exchange.reset()
    elif behaviour.gzip_bomb_mib:
        await _send_all(
            exchange, status, {**headers, "content-encoding": "gzip"}, _bomb(behaviour.gzip_bomb_mib)
        )
    elif behaviour.endless:
        await _send_all(exchange, status, headers, _endless(body))
    elif behaviour.slow_body_ms:
        await _send_slowly(exchange, status, body, headers, behaviour.slow_body_ms / 1000)
    else:
        if behaviour.malformed:
            body = body[: len(body) // 2] + b"\x00}}"
        await exchange.reply(status, body.ljust(behaviour.body_bytes), headers)


async def answer_json(exchange: Exchange, behaviour: HttpBehaviour, status: int, value: object) -> None:
    """`answer` with JSON."""
    await answer(exchange, behaviour, status, msgspec.json.encode(value), JSON["content-type"])


def _bomb(mib: int) -> Iterator[bytes]:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1024 * 1024)
    for _ in range(mib):
        yield packer.compress(zeros)
    yield packer.flush()


def _endless(body: bytes) -> Iterator[bytes]:
    yield body
    for _ in range(ENDLESS_BYTES_MAX // PIECE_BYTES):
        yield b" " * PIECE_BYTES


async def _send_all(
    exchange: Exchange, status: int, headers: dict[str, str], pieces: Iterator[bytes]
) -> None:
    """Send pieces without saying how many; stops when the client leaves."""
    await exchange.start(status, headers)
    for piece in pieces:
        await exchange.send(piece)
        await asyncio.sleep(0)
        if exchange.is_gone():
            return
    await exchange.send(b"", more=False)


async def _send_slowly(
    exchange: Exchange, status: int, body: bytes, headers: dict[str, str], seconds: float
) -> None:
    await exchange.start(status, {**headers, "content-length": str(len(body))})
    size = max(1, -(-len(body) // SLOW_PIECES))
    for offset in range(0, len(body), size):
        if await exchange.gone_within(seconds / SLOW_PIECES):
            return
        await exchange.send(body[offset : offset + size])
    await exchange.send(b"", more=False)
