"""The model door's sink: the upstream's answer on its way to the client, in OpenAI's shape.

waiting -> (head) -> streaming -> ended | broken
                  -> holding -> ended

- A *stream* goes out event by event, with no buffer of ours. The event that carries the bill is left out
  where the client did not ask for it. Nothing ends the stream before the action is settled; what breaks off
  ends in an error event, and without ``[DONE]``.
- Any other answer is held until the action is settled, so that its status and timings are true.
- Once the client is gone, or took nothing for ``client_stall_ms``, the sink takes everything and returns at
  once: the upstream is read to its end, and the ledger equals the bill.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from tenantry.core.action import OutcomeStatus
from tenantry.core.event import Chunk, Event, Head
from tenantry.core.verdict import Allowed, UnknownOutcome
from tenantry.web.problems import (
    FAULT,
    JSON_CONTENT_TYPE,
    Problem,
    openai_problem_bytes,
    problem_of,
)
from tenantry.web.timing import NOTHING_SPENT, Timings, server_timing
from tenantry.web.verdicts import describe, openai_body

if TYPE_CHECKING:
    from tenantry.core.action import Outcome
    from tenantry.gate.context import ActionResult
    from tenantry.gateway.exchange import Exchange
    from tenantry.gateway.limits import DoorLimits

_EVENT_STREAM: Final = "text/event-stream"
_USAGE_OBJECT: Final = re.compile(rb'"usage"\s*:\s*\{')
_NO_CHOICES: Final = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_EVENT: Final = re.compile(rb".*?(?:\r\n\r\n|\n\n|\r\r|\Z)", re.DOTALL)
# What a provider says of its own account is another tenant's business too, where the account is the
# platform's.
_PASSED_HEADERS: Final = frozenset({"retry-after", "retry-after-ms"})
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]{1,64}")
# What the upstream did with it nobody knows.
_UNCERTAIN: Final = frozenset({OutcomeStatus.UNKNOWN, OutcomeStatus.CUT})
_ALLOWED: Final = (b"tenantry-verdict", b"allowed")
_STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
    _ALLOWED,
)


class Answer:
    """Takes events (`gate.ports.Emit`), then `finish` or `fail` ends the answer.

    ``shows_usage``: the client asked.
    """

    __slots__ = (
        "_exchange",
        "_head",
        "_held",
        "_held_bytes",
        "_held_max",
        "_is_gone",
        "_shows_usage",
        "_stall_s",
        "_timings",
    )

    def __init__(self, exchange: Exchange, limits: DoorLimits, *, shows_usage: bool) -> None:
        self._exchange = exchange
        self._shows_usage = shows_usage
        self._stall_s = limits.client_stall_ms / 1000
        self._held_max = limits.whole_answer_bytes_max
        self._is_gone = False
        self._head: Head | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._timings: Timings | None = None

    def begun(self, timings: Timings) -> None:
        """What is known of the timings before the upstream is asked: a stream's headers can say no more."""
        self._timings = timings

    async def __call__(self, event: Event, /) -> None:
        if self._is_gone:
            return
        if isinstance(event, Chunk):
            if self._exchange.is_started:
                if self._shows_usage or not is_bill(event.data):
                    await self._write(event.data)
            else:
                self._hold(event.data)
        else:
            self._head = event
            if event.stream:
                await self._start_stream()

    async def finish(self, result: ActionResult) -> None:
        """End the answer of an action that is settled."""
        if self._exchange.is_started:
            await self._end_stream(_break_of(result))
        elif not isinstance(result.verdict, Allowed):
            await self._exchange.answer_verdict(describe(result.verdict), result.timings)
        elif self._head is not None:
            await self._answer_held(result, self._head)
        else:
            await self._answer_recorded(result, result.verdict.recorded or result.outcome)

    async def fail(self, error: Exception) -> bool:
        """End a stream that an error cut off.

        False: nothing was started, and the error is still to be answered.
        """
        if not self._exchange.is_started:
            return False
        await self._end_stream(openai_problem_bytes(problem_of(error) or FAULT))
        return True

    def _hold(self, data: bytes) -> None:
        self._held_bytes += len(data)
        if self._held_bytes <= self._held_max:
            self._held.append(data)

    async def _start_stream(self) -> None:
        timing = NOTHING_SPENT if self._timings is None else server_timing(self._timings)
        try:
            await self._exchange.start(200, list(_STREAM_HEADERS), timing)
        except OSError:
            self._is_gone = True

    async def _write(self, data: bytes) -> None:
        """One part.

        Waits for a client that is slow, and no longer than `_stall_s` for one that takes nothing.
        """
        connection = self._exchange.connection
        try:
            if connection is not None and not connection.is_write_paused():
                await self._exchange.part(data, more=True)
                return
            async with asyncio.timeout(self._stall_s):
                await self._exchange.part(data, more=True)
        except TimeoutError:
            self._is_gone = True
            if connection is not None:
                connection.abort()
        except OSError:
            self._is_gone = True

    async def _end_stream(self, broken: bytes | None) -> None:
        if broken is not None:
            await self._write(b"data: " + broken + b"\n\n")
        if not self._is_gone:
            await self._exchange.part(b"", more=False)

    async def _answer_held(self, result: ActionResult, head: Head) -> None:
        exchange = self._exchange
        if self._held_bytes > self._held_max:
            await exchange.answer_problem(_answer_too_large(), result.timings)
            return
        if head.status in {401, 403, 407}:
            # To the client this would say that its own token is bad.
            await exchange.answer_problem(_credential_refused(), result.timings)
            return
        headers = [(b"content-type", _content_type(head.content_type)), _ALLOWED]
        headers += [
            (name.encode(), value.encode())
            for name, value in head.headers
            if name in _PASSED_HEADERS and _HEADER_VALUE.fullmatch(value)
        ]
        await exchange.answer(head.status, headers, b"".join(self._held), result.timings)

    async def _answer_recorded(self, result: ActionResult, outcome: Outcome | None) -> None:
        """An answer that did not pass through here.

        Recorded when this step was first performed, or none at all.
        """
        exchange = self._exchange
        if outcome is not None and outcome.status in _UNCERTAIN and outcome.output is None:
            assert isinstance(result.verdict, Allowed)
            await exchange.answer_verdict(describe(UnknownOutcome(result.verdict.action_id)), result.timings)
        elif outcome is None or outcome.output is None:
            await exchange.answer_problem(_no_answer(outcome), result.timings)
        elif outcome.content_type.partition(";")[0].strip().lower() == _EVENT_STREAM:
            await exchange.start(200, list(_STREAM_HEADERS), server_timing(result.timings))
            await self._write(self._without_bill(outcome.output))
            await self._end_stream(None if outcome.status is OutcomeStatus.OK else _broken(outcome.detail))
        else:
            headers = [(b"content-type", _content_type(outcome.content_type)), _ALLOWED]
            status = outcome.http_status or (200 if outcome.status is OutcomeStatus.OK else 502)
            if status in {401, 403, 407}:
                await exchange.answer_problem(_credential_refused(), result.timings)
            else:
                await exchange.answer(status, headers, outcome.output, result.timings)

    def _without_bill(self, stream: bytes) -> bytes:
        if self._shows_usage or _NO_CHOICES.search(stream) is None:
            return stream
        return b"".join(event for event in _EVENT.findall(stream) if not is_bill(event))


def is_bill(event: bytes) -> bool:
    """Whether an event of a stream carries the usage and nothing else.

    Inside JSON strings quotes are escaped, so the patterns match keys only.
    """
    return (
        b'"usage"' in event
        and _USAGE_OBJECT.search(event) is not None
        and _NO_CHOICES.search(event) is not None
    )


def _break_of(result: ActionResult) -> bytes | None:
    """The error event of a stream that did not end well, None for one that did."""
    if not isinstance(result.verdict, Allowed):
        return openai_body(describe(result.verdict))
    outcome = result.outcome
    if outcome is not None and outcome.status is OutcomeStatus.OK:
        return None
    return _broken(outcome.detail if outcome is not None else None)


def _broken(detail: str | None) -> bytes:
    return openai_problem_bytes(Problem(502, "stream_broken", "the stream broke off at the upstream", detail))


def _no_answer(outcome: Outcome | None) -> Problem:
    if outcome is None:
        return FAULT
    if outcome.status is OutcomeStatus.OK:
        title = "this request was answered before, and its answer was too large to be kept"
        return Problem(410, "answer_not_kept", title)
    sent = "nothing was sent" if outcome.status is OutcomeStatus.VOID else "it failed at the upstream"
    return Problem(502, "upstream_failed", f"the provider gave no answer; {sent}", outcome.detail)


def _credential_refused() -> Problem:
    title = "the provider refused the credential that the platform presented"
    return Problem(502, "provider_credential_refused", title, "An operator must renew it.")


def _answer_too_large() -> Problem:
    return Problem(502, "answer_too_large", "the provider's answer is too large to be passed on")


def _content_type(given: str) -> bytes:
    """The upstream's content type where it is one of the two that this door speaks."""
    if given.partition(";")[0].strip().lower() == _EVENT_STREAM:
        return _EVENT_STREAM.encode()
    return JSON_CONTENT_TYPE
