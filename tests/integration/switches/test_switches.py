"""Switches end to end: committed by control, heeded by processes, and told as they are."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.switches.support import CLOCK, Stream, control, instance, keys_of
from tests.support.fixtures import MakeTenant

from tenantry.control.switches import SwitchOrder
from tenantry.core.errors import LeaseLapsedError
from tenantry.storage.connect import DatabaseTarget
from tenantry.switches.guard import StoppedError


@pytest.mark.invariant(4)
async def test_a_kill_ends_what_is_live_everywhere_and_is_confirmed_then(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant
) -> None:
    tenant, quiet = await make_tenant_in(), await make_tenant_in()
    async with (
        control(fresh_database) as switches,
        instance(fresh_database) as one,
        instance(fresh_database) as two,
    ):
        streams = [Stream(at, keys_of(tenant)) for at in (one, two) for _ in range(20)]
        beside = Stream(one, keys_of(quiet))
        for stream in (*streams, beside):
            await stream.inside.wait()
        started = CLOCK.monotonic()
        result = await switches.switch(
            tenant.admin, SwitchOrder(level="tenant", verb="kill", reason="runaway")
        )
        took = CLOCK.monotonic() - started
        assert all(stream.task.done() for stream in streams)
        assert not beside.task.done()
        assert result.confirmed_at is not None
        assert {answer.answer for answer in result.instances} == {"acknowledged"}
        assert len(result.instances) == 2
        assert result.note == "confirmed"
        assert took < 1.0
        for stream in streams:
            with pytest.raises(StoppedError):
                await stream.task
        for at in (one, two):
            with pytest.raises(LeaseLapsedError):
                at.check(keys_of(tenant))
            at.check(keys_of(quiet))
        revived = await switches.switch(
            tenant.admin, SwitchOrder(level="tenant", verb="revive", reason="fixed")
        )
        assert revived.confirmed_at is not None
        for at in (one, two):
            at.check(keys_of(tenant))
        beside.task.cancel()
        await asyncio.wait({beside.task})
