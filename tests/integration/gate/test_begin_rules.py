"""Rules of begin and settle that a reader of the functions might think hold, each tried in a real batch."""

from __future__ import annotations

import hashlib

import pytest
from tests.support.fixtures import MakeTenant
from tests.support.gates import (
    Bench,
    check_log,
    make_begin,
    make_model_begin,
    make_settle,
    over_limit,
    reserved_of,
)

DIGEST = hashlib.sha256(b"digest").digest()


@pytest.mark.invariant(4)
@pytest.mark.parametrize("level", [0, 1, 2, 3])
async def test_a_kill_holds_whatever_mode_stands_beside_it(
    bench: Bench, make_tenant: MakeTenant, level: int
) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    subject = (tenant.tenant_id, tenant.workspace_id, tenant.agent_id, run)[level]
    for mode in ("normal", "read_only", "drafts_only", "approvals_only", "suspended"):
        await bench.set_scope(tenant, level, subject, killed=True, mode=mode)
        codes = await bench.begin(*(make_begin(tenant, run, risk=risk) for risk in range(4)))
        assert codes == ["suspended"] * 4, mode


@pytest.mark.invariant(4)
async def test_an_approval_does_not_open_a_killed_scope(bench: Bench, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    await bench.set_scope(tenant, 2, tenant.agent_id, mode="approvals_only")
    item = make_begin(tenant, run, risk=2)
    assert await bench.begin(item) == ["approval_required"]
    await bench.root.execute(
        "update tenantry.approvals set state = 'approved' where tenant_id = $1", tenant.tenant_id
    )
    await bench.set_scope(tenant, 2, tenant.agent_id, killed=True)
    assert await bench.begin(make_begin(tenant, run, risk=2)) == ["suspended"]


@pytest.mark.invariant(3)
async def test_a_refusal_keeps_content_only_within_the_journal_budget(
    bench: Bench, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(limits={"journal_bytes_limit": 1_000})
    run = await bench.open_run(tenant)
    large = [make_begin(tenant, run, allow=False, content=b"x" * 700) for _ in range(3)]
    small = make_begin(tenant, run, allow=False, content=b"x")
    assert await bench.begin(*large, small) == ["denied"] * 4
    scope = await bench.scope(tenant, 0)
    assert scope["journal_bytes_used"] == 701
    assert not over_limit(scope)
    kept = [row["content"] is not None for row in await bench.journal(tenant)]
    assert kept == [True, False, False, True]
    assert await check_log(bench.root, tenant.tenant_id) == 4


@pytest.mark.invariant(3)
@pytest.mark.parametrize(
    "column", ["model_tokens", "cost_microusd", "tool_calls", "high_risk", "concurrent_runs"]
)
async def test_mixed_demand_is_summed_whichever_way_the_batch_goes(
    bench: Bench, make_tenant: MakeTenant, column: str
) -> None:
    limit = f"{column}_day_limit" if column != "concurrent_runs" else "concurrent_runs_limit"
    tenant = await make_tenant(limits={limit: 2})
    run = await bench.open_run(tenant)
    for inflight in (0, 1):
        demand = {"tool_calls": 0, "model_inflight": inflight, column: 1}
        items = [make_begin(tenant, run, **demand) for _ in range(4)]
        codes = await bench.begin(*items)
        assert codes[:2] == ["allowed"] * 2
        assert "allowed" not in codes[2:], codes
        assert not over_limit(await bench.scope(tenant, 0))
        await bench.settle(*(make_settle(item, "void") for item in items[:2]))


@pytest.mark.invariant(5)
async def test_a_voided_action_frees_its_key(bench: Bench, make_tenant: MakeTenant) -> None:
    """Certainly nothing was sent, so there is no outcome to repeat: the next one with the key is performed."""
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    first, second = make_begin(tenant, run, key="k"), make_begin(tenant, run, key="k")
    assert await bench.begin(first) == ["allowed"]
    assert await bench.settle(make_settle(first, "void")) == ["settled"]
    assert await bench.begin(second) == ["allowed"]
    assert await bench.settle(make_settle(second)) == ["settled"]
    _, (repeated,) = await bench.batch([make_begin(tenant, run, key="k")])
    assert (repeated.code, repeated.prior_action_id) == ("recorded", second.action_id)


@pytest.mark.invariant(5)
async def test_a_key_voided_in_the_batch_that_asks_again_is_free(
    bench: Bench, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    first = make_begin(tenant, run, key="k")
    await bench.begin(first)
    again = [make_begin(tenant, run, key="k"), make_begin(tenant, run, key="k")]
    settled, begun = await bench.batch(again, [make_settle(first, "void")])
    assert [r.code for r in settled] == ["settled"]
    assert [(r.code, r.prior_action_id) for r in begun] == [("allowed", None), ("open", again[0].action_id)]


async def test_an_approval_that_ran_out_is_asked_for_anew(bench: Bench, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    asked = []
    for state in ("pending", "approved"):
        _, (result,) = await bench.batch([make_begin(tenant, run, risk=2, approvers="approver")])
        assert result.code == "approval_required" and result.detail is not None
        asked.append(result.detail["approval_id"])
        await bench.root.execute(
            "update tenantry.approvals set state = $2, expires_at = tenantry.now() - interval '1 s'"
            " where approval_id = $1",
            asked[-1],
            state,
        )
    _, (result,) = await bench.batch([make_begin(tenant, run, risk=2, approvers="approver")])
    assert result.code == "approval_required" and result.detail is not None
    assert len({*asked, result.detail["approval_id"]}) == 3


@pytest.mark.invariant(5)
async def test_an_approval_is_used_once_and_the_second_is_asked_a_new_one(
    bench: Bench, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    wants = {"risk": 2, "approvers": "approver"}
    _, (first, same) = await bench.batch([make_begin(tenant, run, **wants), make_begin(tenant, run, **wants)])
    assert first.detail is not None and first.detail == same.detail
    await bench.root.execute(
        "update tenantry.approvals set state = 'approved' where tenant_id = $1", tenant.tenant_id
    )
    _, (allowed, refused) = await bench.batch(
        [make_begin(tenant, run, **wants), make_begin(tenant, run, **wants)]
    )
    assert (allowed.code, refused.code) == ("allowed", "approval_required")
    assert refused.detail is not None
    assert refused.detail["approval_id"] != first.detail["approval_id"]


async def test_a_refused_action_does_not_use_its_approval_up(bench: Bench, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(limits={"tool_calls_day_limit": 0})
    run = await bench.open_run(tenant)
    item = make_begin(tenant, run, risk=2, approvers="approver", tool_calls=0)
    assert await bench.begin(item) == ["approval_required"]
    await bench.root.execute(
        "update tenantry.approvals set state = 'approved' where tenant_id = $1", tenant.tenant_id
    )
    assert await bench.begin(make_begin(tenant, run, risk=2, approvers="approver")) == ["budget_exceeded"]
    assert await bench.begin(make_begin(tenant, run, risk=2, approvers="approver", tool_calls=0)) == [
        "allowed"
    ]


@pytest.mark.parametrize("column", ["attempt", "lease_expires_at"])
@pytest.mark.parametrize("others", [0, 1])
async def test_a_run_without_a_lease_begins_nothing(
    bench: Bench, make_tenant: MakeTenant, column: str, others: int
) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant, **{column: None})
    codes = await bench.begin(*(make_begin(tenant, run) for _ in range(1 + others)))
    assert codes == ["lease_lost"] * (1 + others)


async def test_a_rate_that_is_set_later_knows_nothing_of_the_time_without_one(
    bench: Bench, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    put = "select tenantry.put_scope_v1($1, 0::smallint, $1, $2::jsonb)"
    await bench.root.execute(put, tenant.tenant_id, "{}")
    for _ in range(3):
        await bench.begin(*(make_begin(tenant, run) for _ in range(10)))
    await bench.root.execute(put, tenant.tenant_id, '{"requests_per_minute": 60, "requests_burst": 2}')
    assert await bench.begin(*(make_begin(tenant, run) for _ in range(3))) == [
        "allowed",
        "allowed",
        "throttled",
    ]
    await bench.root.execute(put, tenant.tenant_id, '{"requests_burst": 2}')
    assert await bench.begin(*(make_begin(tenant, run) for _ in range(3))) == ["allowed"] * 3


@pytest.mark.parametrize("rate", [0, 1, 60_000_000, 60_000_001, 2**53])
async def test_every_rate_that_can_be_declared_can_be_decided_on(
    bench: Bench, make_tenant: MakeTenant, rate: int
) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    put = "select tenantry.put_scope_v1($1, 0::smallint, $1, jsonb_build_object('requests_per_minute', $2::bigint))"
    await bench.root.execute(put, tenant.tenant_id, rate)
    codes = await bench.begin(make_begin(tenant, run), make_begin(tenant, run, allow=False))
    assert codes == ["throttled" if rate == 0 else "allowed", "denied"]


async def test_a_rate_raised_takes_effect_within_its_own_burst(bench: Bench, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    put = "select tenantry.put_scope_v1($1, 0::smallint, $1, $2::jsonb)"
    await bench.root.execute(put, tenant.tenant_id, '{"requests_per_minute": 1, "requests_burst": 20}')
    await bench.begin(*(make_begin(tenant, run) for _ in range(20)))
    await bench.root.execute(put, tenant.tenant_id, '{"requests_per_minute": 6000}')
    _, (_, refused) = await bench.batch([make_begin(tenant, run), make_begin(tenant, run)])
    if refused.code == "throttled":
        assert refused.detail is not None and refused.detail["retry_after_ms"] <= 1_000 * 60


@pytest.mark.invariant(3)
async def test_a_settlement_in_other_scopes_than_the_intent_changes_nothing(
    bench: Bench, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    other = await bench.open_run(tenant)
    begun = make_model_begin(tenant, run)
    await bench.begin(begun)
    before = await bench.scopes(tenant)
    for wrong in ({"scope_run": None}, {"scope_run": other}, {"agent": "nobody"}, {"workspace": "nowhere"}):
        assert await bench.settle(make_settle(begun, **wrong)) == ["already"], wrong
    assert await bench.scopes(tenant) == before
    assert await bench.settle(make_settle(begun)) == ["settled"]
    assert [reserved_of(scope) for scope in await bench.scopes(tenant)] == [{}] * 5


@pytest.mark.invariant(3)
async def test_a_bill_below_zero_takes_nothing_off_a_meter(bench: Bench, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    begun = make_model_begin(tenant, run)
    await bench.begin(begun)
    await bench.settle(make_settle(begun, tokens=-5_000, microusd=-1, journal_bytes=-7))
    for scope in await bench.scopes(tenant):
        assert {name: v for name, v in scope.items() if name.endswith("_used") and v} == {}
        assert reserved_of(scope) == {}


@pytest.mark.invariant(3)
async def test_a_bill_above_the_bound_goes_to_the_overrun_and_blocks(
    bench: Bench, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(limits={"model_tokens_day_limit": 1_000})
    run = await bench.open_run(tenant)
    begun = make_model_begin(tenant, run, tokens=1_000)
    await bench.begin(begun)
    assert await bench.settle(make_settle(begun, tokens=1_500, overran=True)) == ["settled"]
    scope = await bench.scope(tenant, 0)
    assert (scope["model_tokens_day_used"], scope["overrun_tokens"]) == (1_000, 500)
    _, (refused, tool) = await bench.batch([make_model_begin(tenant, run, tokens=1), make_begin(tenant, run)])
    assert refused.code == "budget_exceeded" and refused.detail is not None
    assert refused.detail["meter"] == "overrun"
    assert tool.code == "allowed"
    kinds = await bench.root.fetch(
        "select kind from tenantry.incidents where tenant_id = $1", tenant.tenant_id
    )
    assert [row["kind"] for row in kinds] == ["provider_overrun"]


@pytest.mark.invariant(12)
async def test_a_run_being_opened_shifts_nobody_elses_scopes(bench: Bench, make_tenant: MakeTenant) -> None:
    """Its run has no scope yet; the scopes of whoever stands behind it are still their own."""
    opener, other = await make_tenant(), await make_tenant(limits={"tool_calls_day_limit": 1})
    run = await bench.open_run(other)
    spec = '{"mode": "attached", "deadline_at": "2099-01-01T00:00:00Z", "envelope": "", "limits": {}}'
    opening = make_begin(
        opener, f"wr_{opener.tenant_id}", scope_run=None, kind="run", concurrent_runs=1, run_spec=spec
    )
    items = [opening, *(make_begin(other, run) for _ in range(2)), make_begin(other, run, allow=False)]
    assert await bench.begin(*items) == ["allowed", "allowed", "budget_exceeded", "denied"]
    assert not over_limit(await bench.scope(other, 0))


@pytest.mark.invariant(3)
async def test_a_clock_set_back_counts_nothing_away(bench: Bench, make_tenant: MakeTenant) -> None:
    """The windows of an earlier day do not replace those of a later one, whoever touches the scope."""
    tenant = await make_tenant(limits={"model_tokens_day_limit": 100, "model_tokens_minute_limit": 100})
    run = await bench.open_run(tenant)
    await bench.begin(make_model_begin(tenant, run, tokens=100))
    row = await bench.scope(tenant, 0)
    ahead = {
        "day_window": row["day_window"] + 86_400,
        "model_tokens_minute_window": row["model_tokens_minute_window"] + 86_400,
    }
    await bench.set_scope(tenant, 0, tenant.tenant_id, **ahead)
    for items in ([make_begin(tenant, run)], [make_begin(tenant, run), make_begin(tenant, run, allow=False)]):
        assert (await bench.begin(*items))[0] == "allowed"
        assert await bench.begin(make_model_begin(tenant, run, tokens=1)) == ["budget_exceeded"]
    after = await bench.scope(tenant, 0)
    assert (after["model_tokens_day_reserved"], after["model_tokens_minute_reserved"]) == (100, 100)
    assert {name: after[name] for name in ahead} == ahead
