"""128 calls at once on a budget that covers 3: never a fourth, at any level, whoever serves them."""

from __future__ import annotations

import asyncio
import collections
import time
from typing import Any

import aiohttp
import pytest
from tests.support.platform import Platform
from tests.support.platform_client import Reply, Run, chat
from tests.support.platform_probe import LEVELS, Probe

CALLS = 128
COVERED = 3
DAY_S = 86_400
MINUTE_S = 60
TEXT = "count to three !tokens=4 !slow_ms=100 !overbill={overbill:<4}"


async def _bound(platform: Platform, client: aiohttp.ClientSession, probe: Probe) -> tuple[int, str]:
    """What one call reserves, and a text whose bill is exactly that: then 3 are covered, and never a fourth."""
    tenant = await platform.add_tenant("probe")
    run = await platform.open_run(client, tenant)
    text = TEXT.format(overbill=0)
    assert (await chat(client, run, text)).status == 200
    row = (
        await probe.rows(
            "select model_tokens, used_tokens from tenantry.journal where tenant_id = $1 and kind = 'model'",
            tenant,
        )
    )[0]
    return row["model_tokens"], TEXT.format(overbill=row["model_tokens"] - row["used_tokens"])


def _subject(level: str, run: Run) -> str:
    return {"tenant": run.tenant, "workspace": "main", "agent": "helper", "run": run.run_id}[level]


async def _storm(client: aiohttp.ClientSession, run: Run, text: str) -> list[Reply]:
    return await asyncio.gather(*(chat(client, run, text) for _ in range(CALLS)))


def _billed(platform: Platform, tenant: str) -> list[dict[str, Any]]:
    return [entry for entry in platform.model.books()["entries"] if entry.get("user") == tenant]


async def _prepare(probe: Probe, level: str, run: Run, bound: int, *, window: str) -> None:
    """Set the limit; `reset` leaves a full meter of the window before, which ended just now."""
    subject = _subject(level, run)
    limit = COVERED * bound + bound - 1
    if window == "new":
        await probe.set_limit(run.tenant, level, subject, model_tokens_day_limit=limit)
        return
    now = int(time.time())
    # A run's day meter counts its whole life; what resets at every level is the minute.
    if level == "run":
        minute = now // MINUTE_S * MINUTE_S - MINUTE_S
        await probe.set_limit(
            run.tenant, level, subject, model_tokens_minute_limit=limit, model_tokens_minute_used=limit,
            model_tokens_minute_window=minute,
        )  # fmt: skip
    else:
        day = now // DAY_S * DAY_S - DAY_S
        await probe.set_limit(
            run.tenant,
            level,
            subject,
            model_tokens_day_limit=limit,
            model_tokens_day_used=limit,
            day_window=day,
        )


async def _until_the_window_is_young(level: str, window: str) -> None:
    """A minute that ends in the middle would rightly cover three more: begin in its first 50 s."""
    if level == "run" and window == "reset":
        await asyncio.sleep(max(0.0, time.time() % MINUTE_S - 50) and MINUTE_S - time.time() % MINUTE_S)


@pytest.mark.invariant(3)
@pytest.mark.parametrize("gateways", [1, 3])
@pytest.mark.parametrize("window", ["new", "reset"])
@pytest.mark.parametrize("level", list(LEVELS))
async def test_a_budget_for_three_lets_three_through(
    request: pytest.FixtureRequest, level: str, window: str, gateways: int
) -> None:
    platform: Platform = request.getfixturevalue("one_gateway" if gateways == 1 else "three_gateways")
    async with platform.client() as client, platform.probe() as probe:
        bound, text = await _bound(platform, client, probe)
        tenant = await platform.add_tenant("storm")
        run = await platform.open_run(client, tenant)
        await _until_the_window_is_young(level, window)
        await _prepare(probe, level, run, bound, window=window)
        async with probe.sample() as sampled:
            replies = await _storm(client, run, text)
        assert not sampled.beyond
        assert sampled.snapshots > 0
        assert collections.Counter(reply.status for reply in replies) == {200: COVERED, 429: CALLS - COVERED}
        refused = [reply for reply in replies if reply.status == 429]
        assert {reply.verdict for reply in refused} == {"budget_exceeded"}
        assert {reply.headers["x-should-retry"] for reply in refused} == {"false"}
        assert {reply.json()["meter"]["level"] for reply in refused} == {level}
        billed = _billed(platform, tenant)
        assert len(billed) == COVERED, "only what fits reaches the provider"
        await probe.until_settled(tenant)
        bill = sum(entry["prompt_tokens"] + entry["completion_tokens"] for entry in billed)
        assert (await probe.ledger(tenant))[0] == bill == COVERED * bound
        scope = await probe.scope(tenant, level, _subject(level, run))
        meter = "model_tokens_minute" if (level, window) == ("run", "reset") else "model_tokens_day"
        assert scope[f"{meter}_used"] == bill
        assert scope[f"{meter}_reserved"] == 0
        if gateways == 3:
            instances = "select count(distinct instance_id) from tenantry.journal where tenant_id = $1"
            assert await probe.value(instances, tenant) > 1, "more than one gateway took part"
