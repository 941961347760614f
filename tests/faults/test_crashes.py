"""Gateways killed with -9 between begin and settle: nothing leaks, nothing is free, nothing is unseen."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from tests.support.platform import Platform
from tests.support.platform_books import bill, model_digest, model_entries, unintended, unintended_updates
from tests.support.platform_client import Reply, Run, act, chat
from tests.support.platform_probe import Probe
from tests.support.platform_wait import until

CALLERS = 12
SLOW_MS = 150
SEED = 20_261
REAPED_S = 40.0


@dataclass
class Traffic:
    """Calls and ticket updates that can each be told apart in every book."""

    model_digests: dict[str, bytes] = field(default_factory=dict)
    since_ns: int = field(default_factory=time.monotonic_ns)
    replies: list[Reply] = field(default_factory=list)
    refused_after_s: list[float] = field(default_factory=list)
    lost: int = 0
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def call(self, client: aiohttp.ClientSession, run: Run, slow_ms: int) -> None:
        mark = f"{run.tenant}#{next(self._numbers)}"
        text = f"number {mark} !tokens=3 !slow_ms={slow_ms}"
        self.model_digests[mark] = model_digest(text, user=mark)
        started = time.monotonic()
        with self._lost():
            self.replies.append(await chat(client, run, text, user=mark))
            if self.replies[-1].status != 200:
                self.refused_after_s.append(time.monotonic() - started)

    async def update(self, client: aiohttp.ClientSession, run: Run, slow_ms: int) -> None:
        value = {"comment": f"number {next(self._numbers)} !delay_ms={slow_ms}"}
        with self._lost():
            self.replies.append(await act(client, run, "ticket.update", value=value))

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except (aiohttp.ClientError, TimeoutError):
            self.lost += 1


async def crash_gateways(
    platform: Platform, client: aiohttp.ClientSession, run: Run, traffic: Traffic, *, kills: int, seed: int
) -> None:
    """Keep the tenant busy and kill one gateway after the other, each time while several are at work."""
    chance = random.Random(seed)
    stop = asyncio.Event()

    async def work(number: int) -> None:
        own = random.Random(seed * 1_000 + number)
        while not stop.is_set():
            if own.random() < 0.3:
                await traffic.update(client, run, own.randrange(SLOW_MS))
            else:
                await traffic.call(client, run, own.randrange(SLOW_MS))
            if traffic.lost:
                # A connection that was refused comes back at once: leave the loop to the others.
                await asyncio.sleep(0.005)

    workers = [asyncio.create_task(work(number)) for number in range(CALLERS)]
    try:
        for _ in range(kills):
            await asyncio.sleep(chance.uniform(0.05, 0.35))
            await until(lambda: len(platform.gateway_pids()) >= min(2, platform.gateways), 30)
            os.kill(chance.choice(platform.gateway_pids()), signal.SIGKILL)
    finally:
        stop.set()
        await asyncio.gather(*workers)


async def check_after_crashes(
    platform: Platform, probe: Probe, run: Run, traffic: Traffic, *, kills: int, seed: int
) -> None:
    await probe.until_settled(run.tenant, REAPED_S)
    reserved = await probe.reserved(run.tenant)
    assert not {name for name in reserved if "concurrent_runs" not in name and "journal_bytes" not in name}
    entries = model_entries(platform, run.tenant)
    tickets = [
        entry
        for entry in platform.tickets.books()["entries"]
        if entry["credential"] == run.tenant and entry["started_ns"] > traffic.since_ns
    ]
    posted, billed = (await probe.ledger(run.tenant))[0], bill(entries)
    assert posted >= billed
    assert await unintended(probe, run.tenant, entries, traffic.model_digests) == []
    effects = [entry for entry in tickets if entry["effect"] == "updated"]
    assert await unintended_updates(probe, run.tenant, tickets) == []
    states = await probe.states(run.tenant), await probe.states(run.tenant, "tool")
    assert "begun" not in states[0] and "begun" not in states[1]
    scopes = await probe.rows(
        "select log_size, (select count(*) from tenantry.log_leaves l where l.tenant_id = s.tenant_id) as leaves, "
        "(select max(position) from tenantry.log_leaves l where l.tenant_id = s.tenant_id) as last "
        "from tenantry.scopes s where tenant_id = $1 and level = 0",
        run.tenant,
    )
    assert scopes[0]["log_size"] == scopes[0]["leaves"] == scopes[0]["last"] + 1, "the log has no gap"
    reaped = await probe.value(
        "select count(*) from tenantry.journal where tenant_id = $1 and status = 'unknown' and run_id = $2",
        run.tenant,
        run.run_id,
    )
    print(
        f"\n{kills} kills (seed {seed}): {len(traffic.replies)} answers, {traffic.lost} lost connections, "
        f"{len(entries)} model calls at the provider, {len(effects)} ticket updates; ledger {posted} >= bill "
        f"{billed}; model {states[0]}, tool {states[1]}; {reaped} outcomes nobody knows"
    )


@pytest.mark.invariant(9)
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(12, marks=pytest.mark.timeout(180)),
        pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
async def test_killed_gateways_leak_nothing(
    platform: Platform, client: aiohttp.ClientSession, probe: Probe, kills: int
) -> None:
    await platform.add_ticket_tenants()
    run = await platform.open_run(client, "borealis")
    traffic = Traffic()
    async with probe.sample() as sampled:
        await crash_gateways(platform, client, run, traffic, kills=kills, seed=SEED)
    assert not sampled.beyond
    await check_after_crashes(platform, probe, run, traffic, kills=kills, seed=SEED)
    await platform.until_ready(60)
    assert (await chat(client, run, "!tokens=2")).status == 200
