"""Clients that leave in mid-stream: the ledger equals the provider's bill to the token."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import pytest
from tests.support.platform import Platform
from tests.support.platform_books import bill, model_entries
from tests.support.platform_client import Run, chat_body
from tests.support.platform_probe import Probe

SEED = 404
AT_ONCE = 20


async def leave_in_mid_stream(client: aiohttp.ClientSession, run: Run, chance: random.Random) -> int:
    """Read so many chunks, then break the connection; how many were read."""
    tokens, reads = chance.randrange(8, 40), chance.randrange(0, 6)
    delay_ms = chance.choice([1, 5, 10])
    body = chat_body(
        f"!tokens={tokens} !delay_ms={delay_ms} !cached={chance.choice([0, 2])}", user=run.tenant, stream=True
    )
    body["n"] = chance.choice([1, 1, 2])
    answer = await client.post("/v1/chat/completions", json=body, headers=run.headers)
    assert answer.status == 200
    for _ in range(reads):
        await answer.content.readany()
    answer.close()
    return reads


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [pytest.param(20), pytest.param(200, marks=pytest.mark.soak)])
async def test_the_ledger_equals_the_bill_when_clients_leave(
    platform: Platform, client: aiohttp.ClientSession, probe: Probe, count: int
) -> None:
    run = await platform.open_run(client, await platform.add_tenant("leaver"))
    chance = random.Random(SEED)
    for _ in range(count // AT_ONCE):
        await asyncio.gather(*(leave_in_mid_stream(client, run, chance) for _ in range(AT_ONCE)))
    await probe.until_settled(run.tenant)
    entries = model_entries(platform, run.tenant)
    assert len(entries) == count
    assert {entry["outcome"] for entry in entries} == {"completed"}, "each was read to its end"
    assert (await probe.ledger(run.tenant))[0] == bill(entries)
    per_action = await probe.rows(
        "select used_tokens from tenantry.journal where tenant_id = $1 and kind = 'model'", run.tenant
    )
    assert sorted(row["used_tokens"] for row in per_action) == sorted(bill([entry]) for entry in entries)
    assert (await probe.scope(run.tenant, "tenant", run.tenant))["model_tokens_day_used"] == bill(entries)
    print(f"\n{count} disconnects (seed {SEED}): ledger = bill = {bill(entries)} tokens")


async def test_a_client_that_leaves_a_whole_answer_pays_for_it(
    platform: Platform, client: aiohttp.ClientSession, probe: Probe
) -> None:
    run = await platform.open_run(client, await platform.add_tenant("hasty"))

    async def leave() -> None:
        body = chat_body("!tokens=5 !slow_ms=200", user=run.tenant)
        timeout = aiohttp.ClientTimeout(total=0.05)
        with pytest.raises(TimeoutError):
            await client.post("/v1/chat/completions", json=body, headers=run.headers, timeout=timeout)

    await asyncio.gather(*(leave() for _ in range(5)))
    await probe.until_settled(run.tenant)
    entries = model_entries(platform, run.tenant)
    assert {entry["outcome"] for entry in entries} <= {"completed"}
    assert (await probe.ledger(run.tenant))[0] == bill(entries)
