"""Kill against real processes: one that is stopped performs nothing when it wakes, and is told of truthfully."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.integration.switches.support import CLOCK, control, until
from tests.support.fixtures import MakeTenant

from tenantry.control.switches import SwitchOrder
from tenantry.storage.connect import DatabaseTarget

ROOT = Path(__file__).parents[3]
KILL = SwitchOrder(level="tenant", verb="kill", reason="runaway")


class Child:
    """A gateway in a process of its own; `lines` is what it did, each with when we read it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[tuple[float, str]] = []
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.lines.append((CLOCK.monotonic(), line.decode().strip()))

    def count(self, word: str) -> int:
        return sum(1 for _, line in self.lines if line.startswith(word))

    @property
    def counts(self) -> Counter[str]:
        return Counter(line.split()[0] for _, line in self.lines)

    async def begin(self, name: str, tenant: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"begin {name} {tenant}\n".encode())
        await self.process.stdin.drain()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


@contextlib.asynccontextmanager
async def child(target: DatabaseTarget) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "tests/integration/switches/process.py"),
        msgspec.json.encode(target).decode(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": os.environ["PATH"]},
    )
    made = Child(process)
    try:
        await until(lambda: made.count("ready") == 1, seconds=20)
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()
        await made.reading


@pytest.mark.invariant(4)
async def test_after_kill_returned_nothing_is_sent_by_any_process(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant
) -> None:
    tenant, quiet = await make_tenant_in(), await make_tenant_in()
    async with (
        control(fresh_database) as switches,
        child(fresh_database) as one,
        child(fresh_database) as two,
    ):
        for at in (one, two):
            for number in range(10):
                await at.begin(f"a{number}", tenant.tenant_id)
            await at.begin("quiet", quiet.tenant_id)
        await until(lambda: one.count("sent a") > 50 and two.count("sent a") > 50)
        started = CLOCK.monotonic()
        result = await switches.switch(tenant.admin, KILL)
        took = CLOCK.monotonic() - started
        returned = CLOCK.monotonic()
        assert result.confirmed_at is not None
        assert {answer.answer for answer in result.instances} == {"acknowledged"}
        await until(lambda: one.count("ended") == two.count("ended") == 10)
        quiet_before = one.count("sent quiet")
        await one.begin("late", tenant.tenant_id)
        await until(lambda: one.count("refused late") == 1)
        await until(lambda: one.count("sent quiet") > quiet_before + 20)
        # Pipes may hold what was written before the kill returned, for an instant.
        late = [line for at, line in (*one.lines, *two.lines) if at > returned + 0.1 and "sent a" in line]
        assert late == []
        assert one.count("sent late") == 0
        assert took < 1.0


@pytest.mark.invariant(4)
async def test_a_stopped_process_is_waited_for_told_of_and_wakes_to_nothing(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant
) -> None:
    tenant = await make_tenant_in()
    async with control(fresh_database) as switches, child(fresh_database) as at:
        await at.begin("a", tenant.tenant_id)
        await until(lambda: at.count("sent a") > 10)
        at.signal(signal.SIGSTOP)
        order = SwitchOrder(level="tenant", verb="kill", reason="x", wait_ms=500)
        early = await switches.switch(tenant.admin, order)
        assert early.confirmed_at is None
        assert [answer.answer for answer in early.instances] == ["unconfirmed"]
        assert "unconfirmed: gateway" in early.note
        later = await switches.switch(tenant.admin, KILL)
        assert [answer.answer for answer in later.instances] == ["lapsed"]
        assert later.confirmed_at is not None
        sent = at.count("sent a")
        at.signal(signal.SIGCONT)
        await until(lambda: at.count("refused a") + at.count("ended a") == 1)
        await at.begin("late", tenant.tenant_id)
        await until(lambda: at.count("refused late") == 1)
        # A line may have been on its way when the process was stopped.
        assert at.count("sent a") <= sent + 1
        assert at.count("sent late") == 0


async def test_a_process_that_is_gone_is_lapsed_within_its_lease(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant
) -> None:
    tenant = await make_tenant_in()
    async with control(fresh_database) as switches, child(fresh_database) as at:
        at.signal(signal.SIGKILL)
        await at.process.wait()
        started = CLOCK.monotonic()
        result = await switches.switch(tenant.admin, KILL)
        assert [answer.answer for answer in result.instances] == ["lapsed"]
        assert CLOCK.monotonic() - started < 4.5
