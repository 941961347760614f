"""A kill under load: nothing of the tenant starts at the upstream afterwards, and nobody else notices.

Times are CLOCK_MONOTONIC of one machine: the provider's books and the switch speak of the same clock.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from tests.support.platform import Platform
from tests.support.platform_client import Reply, Run, chat, chat_body, request
from tests.support.platform_control import Switched
from tests.support.platform_probe import Probe
from tests.support.platform_wait import until

NS = 1_000_000_000
STREAMS = 24
CALLERS = 16


@dataclass
class Load:
    """What one tenant's clients saw, with times of CLOCK_MONOTONIC in ns."""

    answers: list[tuple[int, int, Reply]] = field(default_factory=list)
    streams_ended_ns: list[int] = field(default_factory=list)
    streams_open: int = 0
    broken: list[Exception] = field(default_factory=list)

    def latencies_ms(self, since_ns: int, until_ns: int) -> list[float]:
        return [
            (end - start) / 1e6 for start, end, _ in self.answers if since_ns <= start and end <= until_ns
        ]


async def call_for_ever(client: aiohttp.ClientSession, run: Run, load: Load, text: str) -> None:
    while True:
        started = time.monotonic_ns()
        try:
            reply = await chat(client, run, text)
        except (aiohttp.ClientError, TimeoutError) as error:
            load.broken.append(error)
            continue
        load.answers.append((started, time.monotonic_ns(), reply))
        if reply.status != 200:
            # Refusals come back at once; without a pause this process would starve its own other callers.
            await asyncio.sleep(0.02)


async def stream_once(client: aiohttp.ClientSession, run: Run, load: Load) -> bytes:
    """One long stream, to whatever end it comes."""
    body = chat_body("!tokens=64 !delay_ms=100", user=run.tenant, stream=True)
    async with client.post("/v1/chat/completions", json=body, headers=run.headers) as answer:
        load.streams_open += answer.status == 200
        received = await answer.read()
    load.streams_ended_ns.append(time.monotonic_ns())
    return received


async def loaded(
    client: aiohttp.ClientSession, run: Run, *, streams: int, callers: int, text: str
) -> tuple[Load, list[asyncio.Task[Any]], list[asyncio.Task[bytes]]]:
    load = Load()
    streaming = [asyncio.create_task(stream_once(client, run, load)) for _ in range(streams)]
    calling = [asyncio.create_task(call_for_ever(client, run, load, text)) for _ in range(callers)]
    await until(lambda: load.streams_open >= streams and len(load.answers) >= callers, 20)
    return load, calling, streaming


async def ended(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def started_after(platform: Platform, tenant: str, switched: Switched) -> list[dict[str, Any]]:
    return [
        entry
        for entry in platform.model.books()["entries"]
        if entry.get("user") == tenant and entry["started_ns"] > switched.returned_ns
    ]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@pytest.mark.invariant(4)
@pytest.mark.invariant(11)
async def test_a_kill_under_load_holds_at_the_upstream(
    platform: Platform, client: aiohttp.ClientSession, probe: Probe
) -> None:
    hostile = await platform.open_run(client, await platform.add_tenant("hostile"))
    steady = await platform.open_run(client, await platform.add_tenant("steady"))
    quiet, quiet_tasks, _ = await loaded(client, steady, streams=0, callers=2, text="!tokens=2")
    async with platform.control() as control:
        load, calling, streaming = await loaded(
            client, hostile, streams=STREAMS, callers=CALLERS, text="!tokens=2 !slow_ms=30"
        )
        before_ns = time.monotonic_ns()
        await asyncio.sleep(1)
        switched = await control.switch(hostile.tenant, "kill")
        bodies = await asyncio.gather(*streaming)
        await asyncio.sleep(1)
        after_ns = time.monotonic_ns()
        await ended([*calling, *quiet_tasks])
        assert started_after(platform, hostile.tenant, switched) == []
        assert switched.result.note == "confirmed"
        assert {answer.answer for answer in switched.result.instances} == {"acknowledged"}
        assert len(switched.result.instances) >= platform.gateways
        late = [reply for start, _, reply in load.answers if start > switched.returned_ns]
        assert late and {reply.verdict for reply in late} == {"suspended"}
        assert {reply.status for reply in late} == {423}
        cut_ms = [(at - switched.asked_ns) / 1e6 for at in load.streams_ended_ns]
        assert len(cut_ms) == STREAMS
        assert max(cut_ms) < 1_000, "saturated: one second"
        assert all(b'"code":"suspended"' in body for body in bodies), "a cut stream says by what"
        assert not load.broken and not quiet.broken
        assert {reply.status for _, _, reply in quiet.answers} == {200}
        first = quiet.latencies_ms(before_ns, switched.asked_ns)
        second = quiet.latencies_ms(switched.asked_ns, after_ns)
        rates = [
            len(first) / (switched.asked_ns - before_ns) * NS,
            len(second) / (after_ns - switched.asked_ns) * NS,
        ]
        assert rates[1] > 0.5 * rates[0], "the neighbour goes on"
        print(
            f"\nkill returned after {(switched.returned_ns - switched.asked_ns) / 1e6:.0f} ms, "
            f"streams cut within {max(cut_ms):.0f} ms (median {statistics.median(cut_ms):.0f}); "
            f"neighbour: {rates[0]:.0f}/s p99 {percentile(first, 0.99):.0f} ms beside the flood, "
            f"{rates[1]:.0f}/s p99 {percentile(second, 0.99):.0f} ms across the kill"
        )
        await control.switch(hostile.tenant, "revive")
    assert (await chat(client, hostile, "!tokens=2")).status == 200
    await probe.until_settled(hostile.tenant)


@pytest.mark.invariant(4)
async def test_an_unsaturated_kill_cuts_streams_within_250_ms(
    platform: Platform, client: aiohttp.ClientSession
) -> None:
    run = await platform.open_run(client, await platform.add_tenant("streams"))
    load, _, streaming = await loaded(client, run, streams=6, callers=0, text="")
    async with platform.control() as control:
        switched = await control.switch(run.tenant, "kill")
    await asyncio.gather(*streaming)
    slowest = max(load.streams_ended_ns) - switched.asked_ns
    assert slowest < 0.25 * NS, f"{slowest / 1e6:.0f} ms"
    assert started_after(platform, run.tenant, switched) == []


@pytest.mark.invariant(4)
async def test_a_stopped_gateway_is_named_and_performs_nothing_when_it_wakes(
    platform: Platform, client: aiohttp.ClientSession, probe: Probe
) -> None:
    run = await platform.open_run(client, await platform.add_tenant("sleeper"))
    load, _, streaming = await loaded(client, run, streams=12, callers=0, text="")
    sleeper = platform.gateway_pids()[0]
    async with platform.control() as control, _kept_connections(platform, 24) as kept:
        platform.stop(sleeper)
        pending = [
            asyncio.create_task(
                request(
                    one,
                    "POST",
                    "/v1/chat/completions",
                    json=chat_body("!tokens=2", user=run.tenant),
                    headers=run.headers,
                )
            )
            for one in kept
        ]
        early = await control.switch(run.tenant, "kill", wait_ms=300)
        assert early.result.confirmed_at is None
        assert early.result.note.startswith("unconfirmed: gateway ")
        silent = [answer for answer in early.result.instances if answer.answer == "unconfirmed"]
        assert len(silent) == 1
        assert silent[0].instance_id in early.result.note
        late = await control.switch(run.tenant, "kill")
        assert late.result.note == "confirmed"
        told = {answer.instance_id: answer.answer for answer in late.result.instances}
        assert told.pop(silent[0].instance_id) == "lapsed"
        assert set(told.values()) == {"acknowledged"}
        asleep = [task for task in pending if not task.done()]
        assert asleep, "some requests wait at the sleeper's own connections"
        platform.resume(sleeper)
        replies = await asyncio.gather(*pending)
        await asyncio.gather(*streaming)
        assert started_after(platform, run.tenant, late) == []
        woken = [task.result() for task in asleep]
        assert {reply.status for reply in woken} <= {423, 503}, [reply.body for reply in woken]
        assert 423 in {reply.status for reply in replies}
        assert load.streams_open == 12
        await probe.until_settled(run.tenant)
        assert (await probe.ledger(run.tenant))[0] >= sum(
            entry["prompt_tokens"] + entry["completion_tokens"]
            for entry in platform.model.books()["entries"]
            if entry.get("user") == run.tenant
        )


class _kept_connections:  # noqa: N801 - used as a function
    """So many clients with one kept connection each, spread over the gateways."""

    def __init__(self, platform: Platform, count: int) -> None:
        self._clients = [
            aiohttp.ClientSession(
                platform.url,
                connector=aiohttp.TCPConnector(limit=1),
                timeout=aiohttp.ClientTimeout(total=30),
            )
            for _ in range(count)
        ]

    async def __aenter__(self) -> list[aiohttp.ClientSession]:
        for one in self._clients:
            assert (await request(one, "GET", "/healthz")).status == 200
        return self._clients

    async def __aexit__(self, *_error: object) -> None:
        for one in self._clients:
            await one.close()
