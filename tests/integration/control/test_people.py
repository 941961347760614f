"""What people read and write beside switches and the fleet file: narrowed keys, quotas, runs, the journal."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.integration.control.support import VALUES, Control, fleet_file, person
from tests.support.tenants import OPERATOR
from tests.support.whole_gate import GateBench, ignore

from tenantry.control.services import Services
from tenantry.core.action import Outcome, OutcomeStatus
from tenantry.core.clock import SystemClock
from tenantry.core.errors import ForbiddenError, InvalidInputError, NotFoundError
from tenantry.core.ids import AgentId, RunId, TenantId, WorkspaceId
from tenantry.core.principal import Role
from tenantry.core.quota import Level, Limits
from tenantry.core.run import RunState
from tenantry.core.verdict import Allowed, BudgetExceeded
from tenantry.gate.context import OpenRun, RunContext
from tenantry.gate.ports import AdapterCall, Emit

BOREALIS, DUNES = TenantId("borealis"), TenantId("dunes")
ADMIN = person("borealis")


@pytest.fixture
async def services(control: Control) -> Services:
    document = fleet_file()
    document["tenants"]["borealis"]["workspaces"]["sales"] = {"external_account_id": "a_9"}
    document["tenants"]["borealis"]["agents"]["closer"] = {
        "workspace": "sales",
        "agent_class": "support",
        "policy_profile": "open",
    }
    document["tenants"]["borealis"]["policy"] = {"text": '@id("all") permit (principal, action, resource);'}
    await control.apply(document, VALUES)
    return await Services.open(control.shard, SystemClock(), instance_id="ins_test")


@pytest.fixture
async def gate(control: Control) -> AsyncIterator[GateBench]:
    async with GateBench.open(control.target) as bench:
        yield bench


async def open_run(gate: GateBench, agent: str = "triage") -> RunContext:
    opened = await gate.gate.open_run(
        ADMIN, OpenRun(BOREALIS, AgentId(agent), None, "attached", b'{"ask":1}', 600_000)
    )
    assert opened.token is not None, opened.result.verdict
    return await gate.gate.identify(opened.token)


async def test_a_run_and_its_actions_are_read_with_their_content(
    control: Control, services: Services, gate: GateBench
) -> None:
    credentials: list[str] = []

    async def script(call: AdapterCall, _emit: Emit) -> Outcome:
        assert call.credential is not None
        credentials.append(call.credential.value.reveal())
        return Outcome(OutcomeStatus.OK, b'{"done":true}', call.action.estimate, http_status=200)

    gate.adapter.script = script
    context = await open_run(gate)
    action = gate.action(write=True, body=b'{"status":"solved"}')
    result = await gate.gate.act(context, action, ignore)
    assert isinstance(result.verdict, Allowed)
    assert credentials == ["tk-borealis"]
    run_id = context.claims.run_id
    shown = await services.runs.show_run(ADMIN, BOREALIS, run_id)
    assert [a.action_name for a in shown.actions] == ["ticket.update", "run.start"]
    await gate.gate.close_run(context.scope, run_id, RunState.SUCCEEDED, b'{"answer":42}')
    shown = await services.runs.show_run(ADMIN, BOREALIS, run_id)
    assert shown.run.state == "succeeded" and shown.result == {"answer": 42}

    entry = await services.runs.show_entry(ADMIN, BOREALIS, action.action_id)
    assert entry.input == {"status": "solved"} and entry.output == {"done": True}
    assert isinstance(entry.envelope, dict) and entry.envelope["tenant_id"] == "borealis"
    assert entry.policy_request is not None and entry.output_http_status == 200
    assert "tk-borealis" not in repr(entry)
    listed = await services.runs.list_journal(ADMIN, BOREALIS, run_id=run_id)
    assert {e.action_id for e in listed} == {a.action_id for a in shown.actions}
    page = await services.runs.list_journal(ADMIN, BOREALIS, run_id=run_id, limit=1)
    rest = await services.runs.list_journal(ADMIN, BOREALIS, run_id=run_id, before=page[0].action_id)
    assert [e.action_id for e in (*page, *rest)] == [e.action_id for e in listed]

    # Somebody who is not the tenant's leaves a trace of having looked.
    await services.runs.show_entry(OPERATOR, BOREALIS, action.action_id)
    traces = await control.value(
        "select array_agg(principal_id || ' ' || target_system) from tenantry.journal"
        " where action_name = 'journal.read'"
    )
    assert traces == [f"op_test action/{action.action_id}"]

    for stranger in (person("dunes"), person("dunes", Role.VIEWER)):
        with pytest.raises((NotFoundError, ForbiddenError)):
            await services.runs.show_entry(stranger, BOREALIS, action.action_id)
        with pytest.raises((NotFoundError, ForbiddenError)):
            await services.runs.show_entry(stranger, DUNES, action.action_id)
        with pytest.raises(NotFoundError):
            await services.runs.show_run(stranger, DUNES, run_id)


async def test_a_narrowed_key_stays_in_its_workspace(services: Services, gate: GateBench) -> None:
    sales = person("borealis", workspace="sales")
    mine, theirs = await open_run(gate, "closer"), await open_run(gate, "triage")
    runs = await services.runs.list_runs(sales, BOREALIS)
    assert [run.run_id for run in runs] == [mine.claims.run_id]
    with pytest.raises(NotFoundError):
        await services.runs.show_run(sales, BOREALIS, theirs.claims.run_id)
    with pytest.raises(NotFoundError):
        await services.runs.list_journal(sales, BOREALIS, run_id=theirs.claims.run_id)
    entries = await services.runs.list_journal(sales, BOREALIS)
    assert {entry.workspace_id for entry in entries} == {"sales"}
    state = await services.tenants.show(sales, BOREALIS)
    assert set(state.spec.workspaces) == {"sales"} and set(state.spec.agents) == {"closer"}
    assert state.spec.secrets == {}
    meters = await services.quotas.show(sales, BOREALIS)
    assert {(m.level, m.subject_id) for m in meters} == {("workspace", "sales"), ("agent", "closer")}
    own = await services.quotas.show(sales, BOREALIS, level="run", subject_id=mine.claims.run_id)
    assert own[0].subject_id == mine.claims.run_id
    with pytest.raises(NotFoundError):
        await services.quotas.show(sales, BOREALIS, level="run", subject_id=theirs.claims.run_id)
    assert await services.secrets.list_secrets(sales, BOREALIS) == []
    with pytest.raises(NotFoundError):
        await services.secrets.list_secrets(sales, BOREALIS, WorkspaceId("support"))
    with pytest.raises(ForbiddenError):
        await services.keys.create(sales, BOREALIS, role=Role.TENANT_ADMIN)
    made = await services.keys.create(sales, BOREALIS, role=Role.VIEWER, workspace_id=WorkspaceId("sales"))
    other = await services.keys.create(ADMIN, BOREALIS, role=Role.VIEWER)
    assert [k.key_id for k in await services.keys.list_keys(sales, BOREALIS)] == [made.key_id]
    with pytest.raises(NotFoundError):
        await services.keys.revoke(sales, BOREALIS, other.key_id)
    with pytest.raises(ForbiddenError):
        await services.policies.activate(sales, BOREALIS, {"tenant": None}, reason="x")


async def test_an_override_bounds_what_begins_next(
    control: Control, services: Services, gate: GateBench
) -> None:
    context = await open_run(gate)
    limits = Limits(tool_calls_day=1)
    with pytest.raises(ForbiddenError):
        await services.quotas.set_limits(ADMIN, BOREALIS, "agent", "triage", limits, reason="x")
    await services.quotas.set_limits(OPERATOR, BOREALIS, "agent", "triage", limits, reason="runaway")
    first = await gate.gate.act(context, gate.action(write=True), ignore)
    second = await gate.gate.act(context, gate.action(write=True), ignore)
    assert isinstance(first.verdict, Allowed)
    assert isinstance(second.verdict, BudgetExceeded) and second.verdict.meter.level == "agent"
    (meters,) = await services.quotas.show(ADMIN, BOREALIS, level="agent", subject_id="triage")
    reading = next(m for m in meters.meters if m.meter.name == "tool_calls_day")
    assert (reading.limit, reading.used, reading.reserved) == (1, 1, 0)
    assert meters.refusals == 1
    # It is the tenant's declaration now: exporting and applying keeps it.
    exported = await control.fleet.export(OPERATOR)
    assert exported.tenants["borealis"].agents["triage"].limits == limits
    unknown: list[tuple[Level, str]] = [("agent", "nobody"), ("workspace", "x"), ("tenant", "dunes")]
    for level, subject in unknown:
        with pytest.raises(NotFoundError):
            await services.quotas.set_limits(
                OPERATOR,
                BOREALIS,
                level,
                subject,
                limits,
                reason="x",
            )
    with pytest.raises(InvalidInputError):
        await services.quotas.set_limits(
            OPERATOR, BOREALIS, "agent", "triage", Limits(tool_calls_day=-1), reason="x"
        )


async def test_a_window_that_is_over_shows_nothing(
    control: Control, services: Services, gate: GateBench
) -> None:
    context = await open_run(gate)
    await gate.gate.act(context, gate.action(write=True), ignore)
    connection = await control.admin()
    await connection.execute(
        "update tenantry.scopes set day_window = day_window - 86400, model_tokens_minute_window = 0"
        " where tenant_id = 'borealis' and level = 0"
    )
    await connection.close()
    (meters,) = await services.quotas.show(ADMIN, BOREALIS, level="tenant")
    used = {m.meter.name.value: (m.used, m.reserved) for m in meters.meters}
    assert used["tool_calls_day"] == (0, 0)
    # The bucket has refilled by some since.
    assert used["requests"][0] in {1, 2}
    assert used["concurrent_runs"] == (0, 1)
    assert used["journal_bytes"][0] > 0


async def test_an_overrun_is_cleared_by_an_operator_who_looked(control: Control, services: Services) -> None:
    connection = await control.admin()
    await connection.execute(
        "update tenantry.scopes set overrun_tokens = 5 where tenant_id = 'borealis' and level in (0, 2)"
    )
    await connection.execute(
        "insert into tenantry.incidents (tenant_id, incident_id, kind, detail, opened_at)"
        " select t, 'inc_1', 'provider_overrun', '{}', now() from unnest('{borealis,dunes}'::text[]) t"
    )
    await connection.close()
    with pytest.raises(ForbiddenError):
        await services.quotas.clear_overrun(ADMIN, BOREALIS, reason="x")
    cleared = await services.quotas.clear_overrun(OPERATOR, BOREALIS, reason="bill checked")
    assert (cleared.scopes, cleared.incidents) == (3, 1)
    incidents = await services.runs.list_incidents(ADMIN, BOREALIS)
    assert [i.closed_at is not None for i in incidents] == [True]
    assert (await services.runs.list_incidents(person("dunes"), DUNES))[0].closed_at is None
    journal = await services.runs.list_journal(ADMIN, BOREALIS)
    assert journal[0].action_name == "quota.clear_overrun"


async def test_hostile_ids_are_not_found_and_break_nothing(services: Services) -> None:
    for text in ("", "x", "' or true --", "%", "\u202e", "A" * 10_000):
        with pytest.raises(NotFoundError):
            await services.runs.show_run(ADMIN, BOREALIS, RunId(text))
        with pytest.raises(NotFoundError):
            await services.runs.show_entry(ADMIN, BOREALIS, text)
        with pytest.raises(NotFoundError):
            await services.keys.revoke(ADMIN, BOREALIS, text)
        with pytest.raises(NotFoundError):
            await services.secrets.revoke(ADMIN, BOREALIS, WorkspaceId(text), text)
    for number in (0, -1, 2**63, 10**30):
        with pytest.raises(NotFoundError):
            await services.policies.show_version(ADMIN, BOREALIS, number)


async def test_every_write_of_people_has_its_entry(control: Control, services: Services) -> None:
    before = await control.value("select count(*) from tenantry.journal where tenant_id = 'borealis'")
    key = await services.keys.create(ADMIN, BOREALIS, role=Role.VIEWER)
    await services.keys.revoke(ADMIN, BOREALIS, key.key_id)
    await services.policies.activate(
        ADMIN, BOREALIS, {"tenant": '@id("all") permit (principal, action, resource);'}, reason="same"
    )
    await services.secrets.rotate(ADMIN, BOREALIS, WorkspaceId("support"), "token", "new", overlap=False)
    rows = await services.runs.list_journal(ADMIN, BOREALIS)
    names = [row.action_name for row in rows][: len(rows) - before]
    assert names == ["secret.rotate", "policy.activate", "key.revoke", "key.create"]
    assert all(row.principal_id == ADMIN.principal_id for row in rows[:4])
    stored = await control.value("select string_agg(detail::text, '') from tenantry.journal")
    assert key.token not in stored
    # What fails leaves no entry.
    with pytest.raises(InvalidInputError):
        await services.policies.activate(ADMIN, BOREALIS, {"tenant": "permit ("}, reason="x")
    with pytest.raises(InvalidInputError):
        await services.keys.create(ADMIN, BOREALIS, role=Role.OPERATOR)
    assert len(await services.runs.list_journal(ADMIN, BOREALIS)) == len(rows)
