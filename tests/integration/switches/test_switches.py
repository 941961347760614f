"""Switches end to end: committed by control, heeded by processes, and told as they are."""

from __future__ import annotations

import asyncio
import datetime as dt
import random

import pytest
from tests.integration.switches.support import CLOCK, Stream, control, instance, keys_of, until
from tests.support.cluster import connect_as
from tests.support.fixtures import MakeTenant
from tests.support.tenants import OPERATOR, TestTenant

from tenantry.control.switches import Level, SwitchOrder, Verb
from tenantry.core.errors import (
    ForbiddenError,
    InvalidInputError,
    LeaseLapsedError,
    NotFoundError,
)
from tenantry.core.ids import TenantId
from tenantry.core.principal import Role
from tenantry.storage.connect import DatabaseTarget
from tenantry.switches.guard import StoppedError
from tenantry.switches.instance import LeaseTimes

KILL = SwitchOrder(level="tenant", verb="kill", reason="runaway")
REVIVE = SwitchOrder(level="tenant", verb="revive", reason="fixed")


def order_of(tenant: TestTenant, level: Level, verb: Verb) -> SwitchOrder:
    subjects = {"workspace": tenant.workspace_id, "agent": tenant.agent_id, "run": "run_1"}
    return SwitchOrder(
        level=level,
        verb=verb,
        reason="a test",
        tenant_id=None if level == "fleet" else tenant.tenant_id,
        subject_id=subjects.get(level),
    )


async def add_run(target: DatabaseTarget, tenant: TestTenant, run_id: str = "run_1") -> None:
    connection = await connect_as(target, target.admin)
    await connection.execute(
        "insert into tenantry.scopes (tenant_id, level, subject_id, attempt, lease_expires_at)"
        " values ($1, 3, $2, 1, now() + interval '1 hour')",
        tenant.tenant_id,
        run_id,
    )
    await connection.close()


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
        result = await switches.switch(tenant.admin, KILL)
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
        revived = await switches.switch(tenant.admin, REVIVE)
        assert revived.confirmed_at is not None
        for at in (one, two):
            at.check(keys_of(tenant))
        beside.task.cancel()
        await asyncio.wait({beside.task})


async def test_every_level_stops_its_own_and_only_that(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant
) -> None:
    tenant, quiet = await make_tenant_in(), await make_tenant_in()
    await add_run(fresh_database, tenant)
    async with control(fresh_database) as switches, instance(fresh_database) as at:
        levels: tuple[Level, ...] = ("fleet", "tenant", "workspace", "agent", "run")
        for level in levels:
            await switches.switch(OPERATOR, order_of(tenant, level, "kill"))
            with pytest.raises(LeaseLapsedError):
                at.check(keys_of(tenant))
            if level == "fleet":
                with pytest.raises(LeaseLapsedError):
                    at.check(keys_of(quiet))
            else:
                at.check(keys_of(quiet))
            other = keys_of(tenant, "run_2")
            if level == "run":
                at.check(other)
            await switches.switch(OPERATOR, order_of(tenant, level, "revive"))
            at.check(keys_of(tenant))


async def test_recovery_is_staged(fresh_database: DatabaseTarget, make_tenant_in: MakeTenant) -> None:
    tenant = await make_tenant_in()
    async with control(fresh_database) as switches, instance(fresh_database) as at:
        await switches.switch(tenant.admin, order_of(tenant, "agent", "kill"))
        await switches.switch(tenant.admin, KILL)
        result = await switches.switch(tenant.admin, REVIVE)
        assert [(s.level, s.subject_id) for s in result.still_stopped] == [("agent", "helper")]
        assert "agent helper" in result.note
        with pytest.raises(LeaseLapsedError):
            at.check(keys_of(tenant))


async def test_a_process_that_does_not_close_in_time_is_named_and_never_said_to_be_done(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant
) -> None:
    tenant = await make_tenant_in()
    release = asyncio.Event()
    async with control(fresh_database) as switches, instance(fresh_database) as at:
        stream = Stream(at, keys_of(tenant), close_slowly=release)
        await stream.inside.wait()
        order = SwitchOrder(level="tenant", verb="kill", reason="x", wait_ms=300)
        result = await switches.switch(tenant.admin, order)
        assert result.confirmed_at is None
        assert result.note == f"unconfirmed: gateway {at.instance_id}"
        held_back = at.acked_switch_seq
        # What comes after it is done at once, and still not acknowledged before it.
        other = await make_tenant_in()
        behind = await switches.switch(other.admin, order)
        with pytest.raises(LeaseLapsedError):
            at.check(keys_of(other))
        assert behind.confirmed_at is None
        assert at.acked_switch_seq == held_back
        release.set()
        await asyncio.wait({stream.task})
        await until(lambda: at.acked_switch_seq == held_back + 2)
        rows = await switches.list_switches(OPERATOR)
        assert [row.confirmed_at for row in rows] == [None, None]
        assert rows[1].acknowledgements[0]["answer"] == "unconfirmed"


async def test_a_new_process_knows_what_stands(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant
) -> None:
    dead, expired, revived, mode = [await make_tenant_in() for _ in range(4)]
    async with control(fresh_database) as switches:
        await switches.switch(dead.admin, KILL)
        await switches.switch(revived.admin, KILL)
        await switches.switch(revived.admin, REVIVE)
        soon = CLOCK.now() + dt.timedelta(milliseconds=80)
        suspend = SwitchOrder(level="tenant", verb="mode", mode="suspended", reason="x")
        await switches.switch(mode.admin, suspend)
        await switches.switch(
            expired.admin,
            SwitchOrder(level="tenant", verb="mode", mode="suspended", mode_expires_at=soon, reason="x"),
        )
        async with instance(fresh_database) as at:
            for tenant in (dead, mode):
                with pytest.raises(LeaseLapsedError):
                    at.check(keys_of(tenant))
            at.check(keys_of(revived))
            await until(lambda: at.find_stop(keys_of(expired)) is None)
            await switches.switch(
                mode.admin, SwitchOrder(level="tenant", verb="mode", mode="read_only", reason="x")
            )
            at.check(keys_of(mode))


async def test_a_process_that_left_is_not_waited_for(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant
) -> None:
    tenant = await make_tenant_in()
    async with control(fresh_database) as switches:
        async with instance(fresh_database) as at:
            assert at.ready
        assert not at.ready
        with pytest.raises(LeaseLapsedError):
            at.check(keys_of(tenant))
        result = await switches.switch(tenant.admin, KILL)
        assert result.instances == []
        assert result.confirmed_at is not None


@pytest.mark.invariant(4)
async def test_a_lapsed_lease_performs_nothing_and_ends_what_is_live(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant
) -> None:
    tenant = await make_tenant_in()
    times = LeaseTimes(lease_s=0.3, renew_s=0.1, answer_s=0.2, retry_s=0.02)
    async with control(fresh_database) as switches, instance(fresh_database, times=times) as at:
        stream = Stream(at, keys_of(tenant))
        await stream.inside.wait()
        admin = await connect_as(fresh_database, fresh_database.admin)
        # Whoever holds the clock's row holds every renewal, as a database that has stopped would.
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute("select from tenantry.switch_clock for update")
        await until(lambda: not at.ready)
        with pytest.raises(LeaseLapsedError):
            at.check(keys_of(tenant))
        with pytest.raises(StoppedError, match="lease lapsed"):
            await stream.task
        await transaction.rollback()
        await admin.close()
        await until(lambda: at.ready)
        at.check(keys_of(tenant))
        result = await switches.switch(tenant.admin, KILL)
        assert result.confirmed_at is not None


@pytest.mark.parametrize("seed", range(3))
async def test_switches_arrive_in_order_and_no_acknowledgement_skips_one(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant, seed: int
) -> None:
    chance = random.Random(seed)
    tenants = [await make_tenant_in() for _ in range(4)]
    async with (
        control(fresh_database) as switches,
        control(fresh_database) as elsewhere,
        instance(fresh_database) as one,
        instance(fresh_database) as two,
    ):
        stop = asyncio.Event()

        async def churn(at: int) -> None:
            """Live actions that take their time to end."""
            while not stop.is_set():
                tenant = tenants[chance.randrange(4)]
                target = (one, two)[at]
                slow = asyncio.Event()
                asyncio.get_running_loop().call_later(chance.random() * 0.03, slow.set)
                try:
                    async with target.live(keys_of(tenant)):
                        try:
                            await asyncio.sleep(0.005)
                        except asyncio.CancelledError:
                            await slow.wait()
                            raise
                except (LeaseLapsedError, StoppedError):
                    await asyncio.sleep(0.002)

        async def people(use: object) -> None:
            del use
            for _ in range(12):
                tenant = tenants[chance.randrange(4)]
                verb: Verb = "kill" if chance.random() < 0.5 else "revive"
                asker = switches if chance.random() < 0.5 else elsewhere
                result = await asker.switch(
                    OPERATOR,
                    SwitchOrder(level="tenant", verb=verb, tenant_id=tenant.tenant_id, reason="x"),
                )
                assert result.confirmed_at is not None, result.note

        churning = [asyncio.create_task(churn(n % 2)) for n in range(8)]
        await asyncio.gather(*(people(n) for n in range(4)))
        stop.set()
        await asyncio.gather(*churning)
        await until(lambda: one.acked_switch_seq == two.acked_switch_seq == 48)
        rows = await switches.list_switches(OPERATOR, limit=500)
        assert [row.switch_seq for row in rows] == list(range(48, 0, -1))
        assert len({row.requested_at for row in rows}) == 48
        for tenant in tenants:
            last = next((row for row in rows if row.tenant_id == tenant.tenant_id), None)
            for at in (one, two):
                stopped = at.find_stop(keys_of(tenant)) is not None
                assert stopped is (last is not None and last.verb == "kill")


async def test_roles_and_tenants(fresh_database: DatabaseTarget, make_tenant_in: MakeTenant) -> None:
    tenant, other = await make_tenant_in(), await make_tenant_in()
    async with control(fresh_database) as switches:
        for role in (Role.APPROVER, Role.DEVELOPER, Role.VIEWER):
            with pytest.raises(ForbiddenError):
                await switches.switch(tenant.principal(role), KILL)
        with pytest.raises(ForbiddenError):
            await switches.switch(tenant.admin, order_of(tenant, "fleet", "kill"))
        for foreign in (other.tenant_id, TenantId("nobody"), TenantId("x'; --")):
            with pytest.raises(NotFoundError):
                await switches.switch(
                    tenant.admin,
                    SwitchOrder(level="tenant", verb="kill", tenant_id=foreign, reason="x"),
                )
        for subject in ("nobody", "run_of_" + other.tenant_id, "\0", "\ud800", "x" * 5_000, ""):
            with pytest.raises((NotFoundError, InvalidInputError)):
                await switches.switch(
                    tenant.admin, SwitchOrder(level="agent", verb="kill", subject_id=subject, reason="x")
                )
        assert await switches.list_switches(OPERATOR) == []


async def test_what_an_operator_stopped_only_an_operator_starts(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant
) -> None:
    tenant = await make_tenant_in()
    by_operator = SwitchOrder(level="tenant", verb="kill", tenant_id=tenant.tenant_id, reason="abuse")
    freeze = SwitchOrder(level="tenant", verb="freeze", tenant_id=tenant.tenant_id, reason="audit")
    unfreeze = SwitchOrder(level="tenant", verb="unfreeze", reason="no")
    async with control(fresh_database) as switches:
        await switches.switch(OPERATOR, by_operator)
        with pytest.raises(ForbiddenError):
            await switches.switch(tenant.admin, REVIVE)
        # Killing again does not make it the tenant's to revive, and neither does another kind of switch.
        await switches.switch(tenant.admin, KILL)
        with pytest.raises(ForbiddenError):
            await switches.switch(tenant.admin, REVIVE)
        await switches.switch(OPERATOR, freeze)
        await switches.switch(tenant.admin, KILL)
        with pytest.raises(ForbiddenError):
            await switches.switch(tenant.admin, unfreeze)
        await switches.switch(
            OPERATOR,
            SwitchOrder(
                level="tenant", verb="mode", mode="read_only", tenant_id=tenant.tenant_id, reason="x"
            ),
        )
        with pytest.raises(ForbiddenError):
            await switches.switch(
                tenant.admin, SwitchOrder(level="tenant", verb="mode", mode="normal", reason="x")
            )
        await switches.switch(OPERATOR, msgspec_replace(by_operator, verb="revive"))
        await switches.switch(tenant.admin, KILL)
        await switches.switch(tenant.admin, REVIVE)


def msgspec_replace(order: SwitchOrder, verb: Verb) -> SwitchOrder:
    return SwitchOrder(level=order.level, verb=verb, tenant_id=order.tenant_id, reason=order.reason)


async def test_an_order_that_makes_no_sense_is_refused(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant
) -> None:
    tenant = await make_tenant_in()
    past = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    later = dt.datetime(2999, 1, 1, tzinfo=dt.UTC)
    bad = [
        (SwitchOrder(level="tenant", verb="kill", reason=""), "$.reason"),
        (SwitchOrder(level="tenant", verb="kill", reason="a\0b"), "$.reason"),
        (SwitchOrder(level="tenant", verb="kill", reason="\ud800"), "$.reason"),
        (SwitchOrder(level="tenant", verb="kill", reason="x" * 1_001), "$.reason"),
        (SwitchOrder(level="tenant", verb="mode", reason="x"), "$.mode"),
        (SwitchOrder(level="tenant", verb="kill", mode="normal", reason="x"), "$.mode"),
        (SwitchOrder(level="agent", verb="freeze", subject_id="helper", reason="x"), "$.level"),
        (SwitchOrder(level="tenant", verb="kill", reason="x", wait_ms=-1), "$.wait_ms"),
        (SwitchOrder(level="tenant", verb="kill", reason="x", wait_ms=10**9), "$.wait_ms"),
        (
            SwitchOrder(level="tenant", verb="mode", mode="read_only", mode_expires_at=past, reason="x"),
            "$.mode_expires_at",
        ),
        (SwitchOrder(level="tenant", verb="kill", mode_expires_at=later, reason="x"), "$.mode_expires_at"),
        (SwitchOrder(level="agent", verb="kill", reason="x"), "$.subject_id"),
        (SwitchOrder(level="tenant", verb="kill", subject_id="other", reason="x"), "$.subject_id"),
    ]
    async with control(fresh_database) as switches:
        for order, path in bad:
            with pytest.raises(InvalidInputError) as caught:
                await switches.switch(tenant.admin, order)
            assert caught.value.path == path
        assert await switches.list_switches(OPERATOR) == []


async def test_a_switch_stands_in_the_tenants_journal_and_log(
    fresh_database: DatabaseTarget, make_tenant_in: MakeTenant
) -> None:
    tenant = await make_tenant_in()
    async with control(fresh_database) as switches:
        result = await switches.switch(tenant.admin, KILL)
    connection = await connect_as(fresh_database, fresh_database.admin)
    row = await connection.fetchrow(
        "select j.principal_id, j.action_name, j.detail ->> 'switch_id' as switch_id, l.position"
        " from tenantry.journal j join tenantry.log_leaves l using (tenant_id, action_id)"
    )
    await connection.close()
    assert row is not None
    assert row["principal_id"] == tenant.admin.principal_id
    assert row["action_name"] == "switch.kill"
    assert row["switch_id"] == result.switch_id
    assert row["position"] == 0
