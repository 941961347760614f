"""`ticket.update` through `/api/v1/actions`: whose credential, which policy, one effect for one key."""

from __future__ import annotations

import asyncio
import collections
import itertools
from typing import Any

import aiohttp
import pytest
from tests.support.platform import Platform
from tests.support.platform_client import Run, act
from tests.support.platform_fleet import ticket_token
from tests.support.platform_probe import Probe

RACERS = 24
_KEYS = itertools.count(1)


@pytest.fixture
async def desks(platform: Platform, client: aiohttp.ClientSession) -> dict[str, Run]:
    await platform.add_ticket_tenants()
    return {name: await platform.open_run(client, name) for name in ("borealis", "aurora")}


@pytest.fixture
def key() -> str:
    return f"key-{next(_KEYS)}"


def effects(platform: Platform, since: int) -> list[dict[str, Any]]:
    entries = platform.tickets.call("GET", f"/books?since={since}").json()["entries"]
    return [entry for entry in entries if entry["effect"] == "updated"]


def seen(platform: Platform) -> int:
    total: int = platform.tickets.books()["totals"]["requests"]
    return total


async def test_each_tenant_acts_with_its_own_credential(
    platform: Platform, client: aiohttp.ClientSession, desks: dict[str, Run]
) -> None:
    since = seen(platform)
    for name, run in desks.items():
        reply = await act(client, run, "ticket.update", value={"status": "solved", "comment": f"of {name}"})
        assert reply.status == 200, reply.body
        answer = reply.json()
        assert answer["verdict"] == "allowed" and answer["outcome"] == "ok"
        assert answer["output"]["body"]["ticket"]["id"] == "zd_99102"
        assert ticket_token(name) not in reply.body.decode()
    assert [entry["credential"] for entry in effects(platform, since)] == ["borealis", "aurora"]


async def test_a_web_fetch_is_denied_by_the_policy_that_says_so(
    platform: Platform, client: aiohttp.ClientSession, desks: dict[str, Run], probe: Probe
) -> None:
    since = seen(platform)
    run = desks["borealis"]
    url = f"{platform.tickets.url}/api/v2/tickets/zd_99102"
    reply = await act(client, run, "web.fetch", system="web", record="page", value={"url": url})
    assert (reply.status, reply.verdict) == (403, "denied")
    assert reply.headers["x-should-retry"] == "false"
    told = reply.json()
    assert any("no_web" in policy for policy in told["policies"]), told
    assert "no_web" in told["detail"]
    assert platform.tickets.call("GET", f"/books?since={since}").json()["entries"] == []
    row = (
        await probe.rows(
            "select verdict, state, reason::text as reason from tenantry.journal "
            "where tenant_id = $1 and run_id = $2 and action_name = 'web.fetch'",
            run.tenant,
            run.run_id,
        )
    )[0]
    assert (row["verdict"], row["state"]) == ("denied", "refused")
    assert "no_web" in row["reason"]


@pytest.mark.invariant(5)
async def test_a_repeat_gets_the_recorded_outcome_and_another_body_a_422(
    platform: Platform, client: aiohttp.ClientSession, desks: dict[str, Run], key: str
) -> None:
    since = seen(platform)
    run = desks["borealis"]
    first = await act(client, run, "ticket.update", value={"comment": "once"}, key=key)
    again = await act(client, run, "ticket.update", value={"comment": "once"}, key=key)
    assert first.status == again.status == 200
    assert (first.json()["recorded"], again.json()["recorded"]) == (False, True)
    assert first.json()["output"] == again.json()["output"]
    assert first.json()["action_id"] == again.json()["action_id"]
    other = await act(client, run, "ticket.update", value={"comment": "twice"}, key=key)
    assert other.status == 422
    assert other.json()["type"].endswith("idempotency_key_reuse")
    assert len(effects(platform, since)) == 1
    # Another tenant's same key is another key.
    foreign = await act(client, desks["aurora"], "ticket.update", value={"comment": "mine"}, key=key)
    assert foreign.json()["recorded"] is False
    assert len(effects(platform, since)) == 2


@pytest.mark.invariant(5)
async def test_gateways_that_race_with_one_key_have_one_effect(
    platform: Platform, client: aiohttp.ClientSession, desks: dict[str, Run], probe: Probe, key: str
) -> None:
    since = seen(platform)
    run = desks["borealis"]
    values = [{"comment": "race !delay_ms=50", "priority": "high" if n % 4 else "low"} for n in range(RACERS)]
    replies = await asyncio.gather(
        *(act(client, run, "ticket.update", value=value, key=key) for value in values)
    )
    statuses = collections.Counter(reply.status for reply in replies)
    assert set(statuses) == {200, 422}, [reply.body for reply in replies]
    assert statuses[200] in {RACERS // 4, RACERS - RACERS // 4}, "one body won, and all of its senders know"
    won = [reply.json() for reply in replies if reply.status == 200]
    assert len({answer["action_id"] for answer in won}) == 1
    assert sum(not answer["recorded"] for answer in won) == 1
    assert len(effects(platform, since)) == 1
    rows = await probe.value(
        "select count(*) from tenantry.journal where tenant_id = $1 and run_id = $2 and "
        "action_name = 'ticket.update' and state = 'settled'",
        run.tenant,
        run.run_id,
    )
    assert rows == 1
