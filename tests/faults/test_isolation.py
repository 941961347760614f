"""Two tenants through the doors: what is another's looks like what never was, to the byte."""

from __future__ import annotations

import aiohttp
import pytest
from tests.support.platform import Platform
from tests.support.platform_client import Reply, Run, chat, request

VARYING = {"date", "tenantry-request-id", "server-timing"}


def told(reply: Reply) -> tuple[int, dict[str, str], bytes]:
    headers = {name: value for name, value in reply.headers.items() if name not in VARYING}
    return reply.status, headers, reply.body


@pytest.fixture
async def pair(platform: Platform, client: aiohttp.ClientSession) -> tuple[Run, Run]:
    runs = [
        await platform.open_run(client, await platform.add_tenant(name, model_tokens_day=10**6))
        for name in ("mine", "theirs")
    ]
    return runs[0], runs[1]


@pytest.mark.invariant(12)
async def test_anothers_run_is_as_one_that_never_was(
    client: aiohttp.ClientSession, pair: tuple[Run, Run]
) -> None:
    mine, theirs = pair
    ids = (theirs.run_id, theirs.run_id[:-1] + "0", "run_" + "7" * 26, "nonsense")
    bodies: tuple[dict[str, str], ...] = (
        {"state": "succeeded"},
        {"state": "failed", "tenant_id": theirs.tenant},
    )
    answers = [
        told(await request(client, "POST", f"/api/v1/runs/{run_id}/finish", json=body, headers=mine.headers))
        for run_id in ids
        for body in bodies
    ]
    assert {status for status, _, _ in answers} == {404}
    assert len({body for _, _, body in answers}) == 1
    assert len({tuple(sorted(headers.items())) for _, headers, _ in answers}) == 1
    assert theirs.run_id.encode() not in answers[0][2]
    assert (await chat(client, theirs, "!tokens=1")).status == 200, "their run goes on"


@pytest.mark.invariant(12)
async def test_request_ids_have_one_length_and_nothing_of_a_tenant(
    client: aiohttp.ClientSession, pair: tuple[Run, Run]
) -> None:
    ids = [(await chat(client, run, "!tokens=1")).headers["tenantry-request-id"] for run in pair * 3]
    assert len({len(found) for found in ids}) == 1
    assert len(set(ids)) == len(ids)
    assert not any(run.tenant in found for run in pair for found in ids)


@pytest.mark.invariant(12)
async def test_what_one_spends_shows_in_nothing_of_the_other(
    client: aiohttp.ClientSession, pair: tuple[Run, Run], platform: Platform
) -> None:
    mine, theirs = pair
    async with platform.probe() as probe:
        before = await probe.scope(mine.tenant, "tenant", mine.tenant)
        answer = told(await request(client, "GET", "/v1/models", headers=mine.headers))
        for _ in range(5):
            assert (await chat(client, theirs, "!tokens=5")).status == 200
        await probe.until_settled(theirs.tenant)
        assert await probe.scope(mine.tenant, "tenant", mine.tenant) == before
        assert told(await request(client, "GET", "/v1/models", headers=mine.headers)) == answer
        found = await probe.value(
            "select count(*) from tenantry.journal where tenant_id = $1 and run_id = $2",
            mine.tenant,
            theirs.run_id,
        )
    assert found == 0
