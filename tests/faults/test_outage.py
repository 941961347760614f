"""The database stops or dies under load: nothing happens unseen, answers are honest, nobody needs a restart."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from tests.faults.test_crashes import Traffic
from tests.support.platform import Platform
from tests.support.platform_books import bill, model_entries, unintended
from tests.support.platform_client import Run, chat
from tests.support.platform_wait import until

CALLERS = 8
RECOVERY_S = 30.0


async def _freeze(platform: Platform, seconds: float) -> None:
    tree = platform.database_tree()
    for pid in tree:
        platform.stop(pid)
    await asyncio.sleep(seconds)
    for pid in tree:
        platform.resume(pid)


async def _die(platform: Platform, seconds: float) -> None:
    """Killed again and again, also while it starts: the supervisor gives up only when it never comes up."""
    ends, pause_s = time.monotonic() + seconds, 2.2
    while True:
        with contextlib.suppress(ProcessLookupError):
            os.kill(platform.database_pid(), signal.SIGKILL)
        left_s = ends - time.monotonic()
        if left_s <= 0:
            return
        # Twice in a row, the second time while it starts; then it may come up.
        pause_s = 0.3 if pause_s > 1 else 2.2
        await asyncio.sleep(min(left_s, pause_s))


async def _stop(platform: Platform, seconds: float) -> None:
    """Shut down in order (SIGINT, 'fast'); the supervisor starts it again by itself."""
    os.kill(platform.database_pid(), signal.SIGINT)
    await asyncio.sleep(seconds)


async def _again(client: aiohttp.ClientSession, run: Run) -> float:
    """Call until one passes; how long that took."""
    started = time.monotonic()

    async def passes() -> bool:
        return (await chat(client, run, "!tokens=1")).status == 200

    await until(passes, RECOVERY_S, look_s=0.1)
    return time.monotonic() - started


@pytest.mark.timeout(180)
@pytest.mark.invariant(9)
@pytest.mark.parametrize("fault", [_freeze, _die, _stop], ids=["stopped", "killed", "shut_down"])
@pytest.mark.parametrize("seconds", [pytest.param(3), pytest.param(10, marks=pytest.mark.soak)])
async def test_an_outage_under_load(
    platform: Platform,
    client: aiohttp.ClientSession,
    fault: Callable[[Platform, float], Awaitable[None]],
    seconds: float,
) -> None:
    run = await platform.open_run(client, await platform.add_tenant("outage"))
    gateways = platform.gateway_pids()
    traffic = Traffic()
    stop = asyncio.Event()

    async def work() -> None:
        while not stop.is_set():
            await traffic.call(client, run, 20)

    workers = [asyncio.create_task(work()) for _ in range(CALLERS)]
    try:
        await asyncio.sleep(0.5)
        before = len(traffic.replies)
        assert {reply.status for reply in traffic.replies} == {200}
        await fault(platform, seconds)
        recovered_s = await _again(client, run)
        await asyncio.sleep(0.3)
    finally:
        stop.set()
        await asyncio.gather(*workers)
    statuses = collections.Counter(reply.status for reply in traffic.replies[before:])
    refused = [reply for reply in traffic.replies if reply.status != 200]
    # 502: a call was under way when its gateway's lease lapsed, and nobody can say what the upstream did with it.
    assert set(statuses) <= {200, 502, 503}, {reply.status: reply.body for reply in refused}
    assert all(b"unknown_outcome" in reply.body for reply in refused if reply.status == 502)
    for reply in refused:
        if reply.status == 503:
            assert int(reply.headers["retry-after"]) >= 1
            title = reply.json()["title"]
            assert title.startswith(("the platform's database is away", "this gateway is not ready")), title
        else:
            assert b"lost its lease" in reply.body
    assert traffic.lost == 0, "every caller got an answer"
    assert platform.gateway_pids() == gateways, "nobody had to be started again"
    async with platform.probe() as probe:
        await probe.until_settled(run.tenant, RECOVERY_S)
        entries = model_entries(platform, run.tenant)
        marked = [entry for entry in entries if "#" in entry["user"]]
        assert await unintended(probe, run.tenant, marked, traffic.model_digests) == []
        posted, billed = (await probe.ledger(run.tenant))[0], bill(entries)
        assert posted >= billed
        reserved = await probe.reserved(run.tenant)
        assert not {n for n in reserved if "concurrent_runs" not in n and "journal_bytes" not in n}
        states = await probe.states(run.tenant)
    print(
        f"\ndatabase {fault.__name__.strip('_')} for {seconds} s: {dict(statuses)} during and after, "
        f"{len(entries)} calls at the provider, ledger {posted} >= bill {billed}, "
        f"passing again {recovered_s:.2f} s after; refusals came after at most "
        f"{max(traffic.refused_after_s, default=0):.1f} s; journal {states}"
    )
