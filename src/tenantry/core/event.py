"""Neutral events that `perform` emits while an upstream answers; dialects live in doors and adapters."""

from __future__ import annotations

import msgspec


class Head(msgspec.Struct, frozen=True):
    """The upstream's answer begins: its status, and the content type of what follows."""

    status: int
    content_type: str
    stream: bool
    headers: tuple[tuple[str, str], ...] = ()


class Chunk(msgspec.Struct, frozen=True):
    """A piece of the answer, passed on as it came."""

    data: bytes


Event = Head | Chunk
