"""``Idempotency-Key`` on writes: the same key and body of one person get the first answer again.

Held in memory by the one control process, for ten minutes: long enough for a client's retries, and no longer
than a new key's token should stay anywhere. Use cases are safe to repeat after that, or say what stands.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from tenantry.core.clock import Clock
from tenantry.core.errors import InvalidInputError, KeyReuseError
from tenantry.core.principal import Principal

KEPT_S: Final = 600.0
ANSWERS_MAX: Final = 10_000
KEY_CHARACTERS_MAX: Final = 200


class Answer(msgspec.Struct, frozen=True):
    """A whole answer."""

    status: int
    body: bytes

    def __repr__(self) -> str:
        return f"Answer({self.status})"


class _Kept:
    __slots__ = ("answer", "digest", "kept_at")

    def __init__(self, digest: bytes, kept_at: float) -> None:
        self.digest = digest
        self.kept_at = kept_at
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()


class Answers:
    """The answers of the last ten minutes, at most 10,000; the oldest go first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    async def once(
        self, principal: Principal, key: str, request: bytes, work: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """The answer to `request`, worked out once. What failed is forgotten, and may be tried again.

        Errors: `KeyReuseError` when the key came with another request; `InvalidInputError` for its shape.
        """
        if not 1 <= len(key) <= KEY_CHARACTERS_MAX or not key.isascii() or not key.isprintable():
            raise InvalidInputError(
                "an idempotency key is 1 to 200 printable ASCII characters", path="header idempotency-key"
            )
        digest = hashlib.sha256(request).digest()
        place = (principal.key_id, key)
        self._forget_old()
        kept = self._kept.get(place)
        if kept is not None:
            if kept.digest != digest:
                raise KeyReuseError("the idempotency key came with another request before")
            return await asyncio.shield(kept.answer)
        kept = self._kept[place] = _Kept(digest, self._clock.monotonic())
        try:
            answer = await work()
        except BaseException as error:
            self._kept.pop(place, None)
            kept.answer.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            kept.answer.exception()  # retrieved: who waits with us is told, and there may be nobody
            raise
        kept.answer.set_result(answer)
        return answer

    def _forget_old(self) -> None:
        limit = self._clock.monotonic() - KEPT_S
        while self._kept:
            place, oldest = next(iter(self._kept.items()))
            if oldest.kept_at > limit and len(self._kept) < ANSWERS_MAX:
                break
            del self._kept[place]
