"""Step two of a switch: waiting until every process that could act has said that it does not (DESIGN §3).

Processes count from the first reading after the commit: one that is not in it yet, or whose lease had lapsed
in it, reads the switch before its lease counts (switches/instance.py, INVARIANT 4).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from tenantry.core.clock import Clock
from tenantry.core.errors import TenantryError
from tenantry.core.ids import InstanceId
from tenantry.storage.connect import Row
from tenantry.storage.database import ControlConnection
from tenantry.storage.statements import Statement, load_statements

ACK_CHANNEL: Final = "tenantry_ack"
POLL_S: Final = 0.05

Answer = Literal["acknowledged", "lapsed", "unconfirmed"]


class InstanceAnswer(msgspec.Struct, frozen=True):
    """What is known of one process; `at` is aware UTC. ``lapsed``: its lease is over or given back."""

    instance_id: InstanceId
    role: str
    address: str | None
    answer: Answer
    at: dt.datetime | None


class Acknowledgements:
    """Waits for processes; one a control process, over a connection of its own."""

    def __init__(self, connection: ControlConnection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._statements: Mapping[str, Statement] = load_statements("tenantry.switches", "store.sql")
        self._heard = asyncio.Event()

    async def start(self) -> None:
        """Listen. Errors: `StorageUnavailableError`."""
        await self._connection.listen(ACK_CHANNEL, self._wake)

    async def wait(self, switch_seq: int, timeout_s: float) -> list[InstanceAnswer]:
        """Every process's answer to a committed switch, by id; at most `timeout_s` after now.

        Cost: one read each 50 ms, and one a notification. A database that is away leaves processes
        unconfirmed.
        """
        deadline = self._clock.monotonic() + timeout_s
        answers: dict[InstanceId, InstanceAnswer] | None = None
        while True:
            heard = self._heard
            with contextlib.suppress(TenantryError):
                rows = await self._connection.fetch_all(self._statements["list_instances"])
                answers = _judge(rows, switch_seq, answers)
            left_s = deadline - self._clock.monotonic()
            pending = answers is None or any(a.answer == "unconfirmed" for a in answers.values())
            if not pending or left_s <= 0:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(POLL_S, left_s)):
                    await heard.wait()
        if answers is None:
            return [InstanceAnswer(InstanceId("unknown"), "", None, "unconfirmed", None)]
        return sorted(answers.values(), key=lambda answer: answer.instance_id)

    async def list_instances(self) -> list[Row]:
        """Every process that has, or lately had, a lease."""
        return await self._connection.fetch_all(self._statements["list_instances"])

    async def confirm(self, switch_seq: int, at: dt.datetime | None, answers: list[InstanceAnswer]) -> None:
        """Write down what came of it. Errors: `StorageUnavailableError`."""
        encoded = msgspec.json.encode(answers).decode()
        await self._connection.execute(self._statements["confirm"], switch_seq, at, encoded)

    def _wake(self, _payload: str) -> None:
        # A new event for those who wait next: each acknowledgement wakes everybody once.
        heard, self._heard = self._heard, asyncio.Event()
        heard.set()


def _judge(
    rows: list[Row], switch_seq: int, before: dict[InstanceId, InstanceAnswer] | None
) -> dict[InstanceId, InstanceAnswer]:
    answers: dict[InstanceId, InstanceAnswer] = dict(before or {})
    present: set[InstanceId] = set()
    now = rows[0]["now"] if rows else None
    for row in rows:
        instance_id = InstanceId(row["instance_id"])
        present.add(instance_id)
        known = answers.get(instance_id)
        if (before is not None and known is None) or (known is not None and known.answer != "unconfirmed"):
            continue
        answer: Answer = "unconfirmed"
        at = None
        if row["acked_switch_seq"] >= switch_seq:
            answer, at = "acknowledged", now
        elif row["lapsed"]:
            answer, at = "lapsed", row["lease_expires_at"]
        answers[instance_id] = InstanceAnswer(instance_id, row["role"], row["address"], answer, at)
    for instance_id, known in answers.items():
        if instance_id not in present and known.answer == "unconfirmed":
            answers[instance_id] = msgspec.structs.replace(known, answer="lapsed", at=now)
    return answers
