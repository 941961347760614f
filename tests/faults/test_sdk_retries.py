"""The real SDK's own retry loop obeys what the doors tell it; counted in the journal and in the provider's books."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import aiohttp
import openai
import pytest
from tests.support.platform import Platform
from tests.support.platform_books import model_entries
from tests.support.platform_client import Run
from tests.support.platform_probe import Probe

MODEL = "example-small"


@pytest.fixture
async def run(platform: Platform, client: aiohttp.ClientSession) -> Run:
    return await platform.open_run(client, await platform.add_tenant("sdk"))


@pytest.fixture
async def sdk(platform: Platform, run: Run) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{platform.url}/v1", api_key=run.token, max_retries=2, timeout=20
    ) as opened:
        yield opened


async def ask(sdk: openai.AsyncOpenAI, run: Run, text: str) -> str | None:
    answer = await sdk.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], max_tokens=32, user=run.tenant
    )
    return answer.choices[0].message.content


async def verdicts(probe: Probe, run: Run) -> list[str]:
    found = await probe.rows(
        "select verdict from tenantry.journal where tenant_id = $1 and kind = 'model' order by begun_at",
        run.tenant,
    )
    return [row["verdict"] for row in found]


async def test_a_spent_budget_is_not_tried_again(
    platform: Platform, probe: Probe, run: Run, sdk: openai.AsyncOpenAI
) -> None:
    await probe.set_limit(run.tenant, "tenant", run.tenant, model_tokens_day_limit=10)
    with pytest.raises(openai.RateLimitError) as refused:
        await ask(sdk, run, "!tokens=2")
    assert refused.value.code == "budget_exceeded"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert await verdicts(probe, run) == ["budget_exceeded"], "one try"
    assert model_entries(platform, run.tenant) == []


async def test_a_denial_and_a_switch_are_not_tried_again(
    platform: Platform, probe: Probe, run: Run, sdk: openai.AsyncOpenAI
) -> None:
    async with platform.control() as control:
        await control.switch(run.tenant, "kill")
    with pytest.raises(openai.APIStatusError) as refused:
        await ask(sdk, run, "!tokens=2")
    assert refused.value.status_code == 423
    assert await verdicts(probe, run) == ["suspended"]
    assert model_entries(platform, run.tenant) == []


async def test_a_throttled_call_comes_again_when_it_was_told_to(
    platform: Platform, probe: Probe, run: Run, sdk: openai.AsyncOpenAI
) -> None:
    await probe.set_limit(
        run.tenant, "tenant", run.tenant, requests_interval_us=1_000_000, requests_burst=1, requests_tat_us=0
    )
    assert await ask(sdk, run, "!tokens=2")
    started = time.monotonic()
    assert await ask(sdk, run, "!tokens=2")
    waited_s = time.monotonic() - started
    assert await verdicts(probe, run) == ["allowed", "throttled", "allowed"], "Retry-After was enough"
    assert 0.9 <= waited_s < 3
    assert len(model_entries(platform, run.tenant)) == 2


@pytest.mark.parametrize("status", [429, 503])
async def test_a_provider_that_asks_for_time_gets_it(
    platform: Platform, probe: Probe, run: Run, sdk: openai.AsyncOpenAI, status: int
) -> None:
    platform.model.rules(
        {"match": {"user": run.tenant}, "behaviour": {"fail": status, "retry_after_ms": 700}, "times": 1}
    )
    started = time.monotonic()
    assert await ask(sdk, run, "!tokens=2")
    waited_s = time.monotonic() - started
    entries = model_entries(platform, run.tenant)
    assert [entry["outcome"] for entry in entries] == ["failed", "completed"]
    assert (entries[1]["started_ns"] - entries[0]["started_ns"]) / 1e9 >= 0.69
    assert waited_s < 4
    retries = [entry["headers"].get("x-stainless-retry-count") for entry in entries]
    assert retries == [None, None], "what the SDK tells about itself stays with us"
    assert (await probe.ledger(run.tenant))[0] == entries[1]["prompt_tokens"] + entries[1][
        "completion_tokens"
    ]


async def test_a_provider_that_stays_away_is_tried_three_times(
    platform: Platform, probe: Probe, run: Run, sdk: openai.AsyncOpenAI
) -> None:
    platform.model.rules({"match": {"user": run.tenant}, "behaviour": {"fail": 503, "retry_after_ms": 10}})
    with pytest.raises(openai.InternalServerError):
        await ask(sdk, run, "!tokens=2")
    assert len(model_entries(platform, run.tenant)) == 3
    assert (await probe.ledger(run.tenant))[0] == 0, "a refusal costs nothing"


async def test_an_uncertain_outcome_is_not_tried_again(
    platform: Platform, probe: Probe, run: Run, sdk: openai.AsyncOpenAI
) -> None:
    with pytest.raises(openai.APIStatusError) as broken:
        await ask(sdk, run, "!tokens=8 !reset")
    assert broken.value.status_code == 502
    assert broken.value.response.headers["tenantry-verdict"] == "unknown_outcome"
    assert len(model_entries(platform, run.tenant)) == 1
    posted = (await probe.rows("select used_tokens, model_tokens from tenantry.journal where tenant_id = $1 "
                               "and kind = 'model'", run.tenant))[0]  # fmt: skip
    assert posted["used_tokens"] == posted["model_tokens"], "the bound is posted: never below the bill"
