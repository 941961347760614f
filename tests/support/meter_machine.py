"""Hypothesis' state machine over begin and settle: each batch goes to the database and to the plain model."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import json
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from tenantry.core.clock import SystemClock
from tenantry.gate.calls import BeginItem, SettleItem
from tenantry.storage.connect import DatabaseTarget
from tests.support.gates import Bench, check_log, make_begin, make_settle
from tests.support.meter_model import (
    BY_DAY,
    GAUGES,
    LIMITED,
    Answer,
    MeterModel,
    ScopeModel,
)
from tests.support.tenants import TestTenant, register_tenant

START: Final = dt.datetime(2027, 3, 1, 23, 58, 30, tzinfo=dt.UTC)
DIGESTS: Final = [hashlib.sha256(text).digest() for text in (b"a", b"b")]
MODES: Final = ("normal", "normal", "read_only", "drafts_only", "approvals_only", "suspended")
LABELS: Final = ("", "", "", "pii", "untrusted", "pii,untrusted")
RUNS: Final = 3

limits = st.one_of(st.none(), st.integers(0, 12))


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401 - any field
    """The usual value, now and then another one."""
    return st.sampled_from([*[usual] * 12, *others])


demands = st.one_of(
    st.fixed_dictionaries({"tool_calls": st.integers(0, 2), "high_risk": mostly(0, 1)}),
    st.fixed_dictionaries(
        {
            "kind": st.just("model"),
            "tool_calls": st.just(0),
            "model_inflight": st.just(1),
            "model_tokens": st.integers(0, 5),
            "cost_microusd": st.integers(0, 5),
        }
    ),
    st.fixed_dictionaries(
        {
            "tool_calls": st.integers(0, 1),
            "model_tokens": st.integers(0, 2),
            "cost_microusd": st.integers(0, 2),
        }
    ),
)
plain = st.fixed_dictionaries(
    {
        "tenant": st.integers(0, 1),
        "place": st.integers(0, RUNS - 1),
        "demand": demands,
        "bytes": st.integers(0, 3),
    }
)
flawed = st.fixed_dictionaries(
    {
        "tenant": st.integers(0, 1),
        "place": st.integers(0, RUNS - 1),
        "demand": demands,
        "bytes": st.integers(0, 3),
        "opens": mostly(False, True),
        "key": st.sampled_from([None, None, "k0", "k1"]),
        "input": mostly(0, 1),
        "risk": st.sampled_from([0, 0, 0, 1, 2, 3]),
        "old_policy": mostly(0, 1),
        "old_fleet": mostly(0, 1),
        "attempt": mostly(1, 2),
        "allow": mostly(True, False),
        "approvers": mostly("", "approver"),
        "approval": st.integers(0, 1),
        "labels": st.sampled_from(LABELS),
        "labels_epoch": mostly(0, 1),
        "unknown": mostly(None, "workspace", "agent"),
        "content": st.integers(0, 3),
    }
)
settlements = st.fixed_dictionaries(
    {
        "which": st.integers(0, 200),
        "status": st.sampled_from(["ok", "ok", "failed", "cut", "unknown", "void"]),
        "extra": mostly(0, -2, -1, 1, 3),
        "bytes": st.integers(0, 4),
        "labels": mostly("", "pii", "untrusted"),
        "wrong": mostly(None, "scope_run", "agent"),
        "ends": st.booleans(),
    }
)


class Loop:
    """One event loop and bench for all examples of a test."""

    def __init__(self, target: DatabaseTarget) -> None:
        self.target = target
        self.runner = asyncio.Runner()
        self.stack = contextlib.AsyncExitStack()
        self.bench = self.run(self.stack.enter_async_context(Bench.open(target)))

    def run(self, work: Any) -> Any:  # noqa: ANN401 - whatever the coroutine gives
        return self.runner.run(work)

    def close(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()


class Meters(RuleBasedStateMachine):
    """Two tenants whose names are alike in everything but the tenant."""

    loop: Loop

    def __init__(self) -> None:
        super().__init__()
        self.bench = self.loop.bench
        self.model = MeterModel()
        self.tenants: list[TestTenant] = []
        self.runs: list[list[str]] = [[], []]
        self.begun: list[BeginItem] = []
        self.now = START

    @property
    def now_us(self) -> int:
        return int(self.now.timestamp()) * 1_000_000 + self.now.microsecond

    @initialize(
        bounds=st.dictionaries(
            st.tuples(st.integers(0, 1), st.integers(0, 5), st.sampled_from(LIMITED)),
            st.integers(0, 20),
            min_size=2,
            max_size=8,
        )
    )
    def start(self, bounds: dict[tuple[int, int, str], int]) -> None:
        self.begin_with(bounds)

    def begin_with(self, bounds: dict[tuple[int, int, str], int]) -> None:
        """Some meters are bounded from the beginning, or little would ever be refused."""
        self.loop.run(self._start())
        for (tenant, place, meter), limit in bounds.items():
            self.change_limits(tenant, place, {meter: limit})

    async def _start(self) -> None:
        await self._set_clock()
        await self.bench.root.execute("update tenantry.fleet_scope set mode = 'normal', policy_version = 1")
        for number in range(2):
            tenant = await register_tenant(self.loop.target, SystemClock())
            self.tenants.append(tenant)
            for level, subject in enumerate((tenant.tenant_id, tenant.workspace_id, tenant.agent_id)):
                self.model.add_scope(ScopeModel(tenant.tenant_id, level, subject))
            for place in range(RUNS):
                # The same run names in both tenants.
                await self._add_run(number, f"wr_{place}")

    async def _add_run(self, number: int, run: str) -> None:
        tenant = self.tenants[number].tenant_id
        lease = self.now + dt.timedelta(hours=30)
        await self.bench.root.execute(
            "insert into tenantry.scopes (tenant_id, level, subject_id, attempt, lease_expires_at)"
            " values ($1, 3, $2, 1, $3)",
            tenant,
            run,
            lease,
        )
        self.runs[number].append(run)
        self.model.add_scope(ScopeModel(tenant, 3, run, attempt=1, lease_us=self.now_us + 30 * 3_600_000_000))

    async def _set_clock(self) -> None:
        await self.bench.root.execute(
            "create or replace function tenantry.now() returns timestamptz language sql stable parallel safe"
            f" return timestamptz '{self.now.isoformat()}'"
        )

    @rule(
        items=st.lists(plain, min_size=1, max_size=12),
        ended=st.lists(settlements, max_size=3),
        slow=st.booleans(),
    )
    def plain_batch(self, items: list[dict[str, Any]], ended: list[dict[str, Any]], slow: bool) -> None:
        """Nothing stands against anything but the meters; `slow` forces the item-by-item way."""
        self.take(items, ended, slow=slow)

    @rule(
        items=st.lists(flawed, min_size=1, max_size=40),
        ended=st.lists(settlements, max_size=8),
        slow=st.booleans(),
    )
    def batch(self, items: list[dict[str, Any]], ended: list[dict[str, Any]], slow: bool) -> None:
        self.take(items, ended, slow=slow)

    @rule(item=st.one_of(plain, flawed))
    def single(self, item: dict[str, Any]) -> None:
        self.take([item], [], slow=False)

    @rule(ended=st.lists(settlements, min_size=1, max_size=10))
    def settle(self, ended: list[dict[str, Any]]) -> None:
        self.take([], ended, slow=False)

    @rule(
        tenant=st.integers(0, 1),
        place=st.integers(0, 5),
        values=st.dictionaries(st.sampled_from(LIMITED), limits, min_size=1, max_size=4),
    )
    def set_limits(self, tenant: int, place: int, values: dict[str, int | None]) -> None:
        self.change_limits(tenant, place, values)

    def change_limits(self, tenant: int, place: int, values: dict[str, int | None]) -> None:
        scope = self._scope(tenant, place)
        for meter, value in values.items():
            scope.limits[meter] = value
            key = (scope.tenant, scope.level, scope.subject)
            if value is not None and scope.used[meter] + scope.reserved[meter] > value:
                self.model.lowered.add((key, meter))
        self._write(scope, **{f"{meter}_limit": value for meter, value in values.items()})

    @rule(
        tenant=st.integers(0, 1),
        place=st.integers(0, 5),
        interval=st.sampled_from([None, 1, 999, 20_000_000]),
        burst=st.integers(0, 5),
    )
    def set_rate(self, tenant: int, place: int, interval: int | None, burst: int) -> None:
        self.change_rate(tenant, place, interval, burst)

    def change_rate(self, tenant: int, place: int, interval: int | None, burst: int) -> None:
        scope = self._scope(tenant, place)
        scope.interval_us, scope.burst = interval, burst if interval is not None else None
        self._write(scope, requests_interval_us=scope.interval_us, requests_burst=scope.burst)

    @rule(
        tenant=st.integers(0, 1),
        place=st.integers(0, 5),
        mode=st.sampled_from(MODES),
        killed=mostly(False, True),
        expires=st.booleans(),
    )
    def switch(self, tenant: int, place: int, mode: str, killed: bool, expires: bool) -> None:
        self.change_mode(tenant, place, mode, killed, expires)

    def change_mode(self, tenant: int, place: int, mode: str, killed: bool, expires: bool) -> None:
        scope = self._scope(tenant, place)
        until = self.now + dt.timedelta(seconds=90) if expires else None
        scope.mode, scope.killed = mode, killed
        scope.mode_until_us = self.now_us + 90_000_000 if expires else None
        self._write(scope, mode=mode, killed=killed, mode_expires_at=until)

    @rule(mode=st.sampled_from(MODES), raised=st.booleans())
    def switch_fleet(self, mode: str, raised: bool) -> None:
        self.change_fleet(mode, raised)

    def change_fleet(self, mode: str, raised: bool) -> None:
        self.model.fleet_mode = mode
        self.model.fleet_version += raised
        self.loop.run(
            self.bench.root.execute(
                "update tenantry.fleet_scope set mode = $1, policy_version = $2",
                mode,
                self.model.fleet_version,
            )
        )

    @rule(tenant=st.integers(0, 1))
    def raise_policy_version(self, tenant: int) -> None:
        scope = self._scope(tenant, 0)
        scope.policy_version += 1
        self._write(scope, policy_version=scope.policy_version)

    @rule(tenant=st.integers(0, 1), place=st.integers(3, 5), cleared=st.booleans())
    def declassify(self, tenant: int, place: int, cleared: bool) -> None:
        self.change_labels(tenant, place, cleared)

    def change_labels(self, tenant: int, place: int, cleared: bool) -> None:
        scope = self._scope(tenant, place)
        scope.labels_epoch = 1 - scope.labels_epoch
        scope.labels = frozenset() if cleared else scope.labels
        self._write(scope, labels_epoch=scope.labels_epoch, labels=sorted(scope.labels))

    @rule(seconds=st.sampled_from([0.000001, 0.5, 7, 31, 60, 600, 40_000, 90_000]))
    def move_clock(self, seconds: float) -> None:
        self.change_clock(seconds)

    def change_clock(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)
        self.loop.run(self._set_clock())

    @precondition(lambda self: any(a.state == "pending" for a in self.model.approvals))
    @rule(which=st.integers(0, 5), state=st.sampled_from(["approved", "approved", "denied"]))
    def answer(self, which: int, state: str) -> None:
        self.change_approval(which, state)

    def change_approval(self, which: int, state: str) -> None:
        pending = [a for a in self.model.approvals if a.state == "pending"]
        chosen = pending[which % len(pending)]
        chosen.state = state
        done = self.loop.run(
            self.bench.root.execute(
                "update tenantry.approvals set state = $4, expires_at = 'infinity'"
                " where tenant_id = $1 and run_id = $2 and digest = $3 and state = 'pending'",
                chosen.tenant,
                chosen.run,
                chosen.digest,
                state,
            )
        )
        assert done == "UPDATE 1"

    def _scope(self, number: int, place: int) -> ScopeModel:
        tenant = self.tenants[number]
        names = [(0, tenant.tenant_id), (1, tenant.workspace_id), (2, tenant.agent_id)]
        names += [(3, run) for run in self.runs[number][:RUNS]]
        level, subject = names[place]
        return self.model.scopes[tenant.tenant_id, level, subject]

    def _write(self, scope: ScopeModel, **columns: object) -> None:
        tenant = next(t for t in self.tenants if t.tenant_id == scope.tenant)
        self.loop.run(self.bench.set_scope(tenant, scope.level, scope.subject, **columns))

    def _begin_item(self, drawn: dict[str, Any]) -> BeginItem:
        number = drawn["tenant"]
        tenant, run = self.tenants[number], self.runs[number][drawn["place"]]
        content = b"c" * drawn.get("content", 1)
        scope = self.model.scopes[tenant.tenant_id, 3, run]
        fields: dict[str, Any] = {
            "input_sha256": DIGESTS[drawn.get("input", 0)],
            "policy_version": self._scope(number, 0).policy_version - drawn.get("old_policy", 0),
            "fleet_version": self.model.fleet_version - drawn.get("old_fleet", 0),
            "approval_digest": DIGESTS[drawn.get("approval", 0)],
            "journal_bytes": len(content) + drawn["bytes"],
            "content": content,
            # A plain item has seen everything.
            "labels": ",".join(sorted(scope.labels)),
            "labels_epoch": scope.labels_epoch,
            **drawn["demand"],
        }
        fields |= {
            name: drawn[name]
            for name in ("key", "risk", "attempt", "allow", "approvers", "labels", "labels_epoch")
            if name in drawn
        }
        if drawn.get("unknown"):
            fields[drawn["unknown"]] = "nobody"
        item = make_begin(tenant, run, **fields)
        if not drawn.get("opens"):
            return item
        spec = {
            "mode": "attached",
            "deadline_at": "2099-01-01T00:00:00Z",
            "envelope": "",
            "limits": {"tool_calls_day": 3},
        }
        opened = f"wr_{item.action_id}"
        return make_begin(
            tenant,
            opened,
            **(
                fields
                | {
                    "scope_run": None,
                    "kind": "run",
                    "concurrent_runs": 1,
                    "tool_calls": 0,
                    "run_spec": json.dumps(spec),
                    "action_id": item.action_id,
                }
            ),
        )

    def _settle_item(self, drawn: dict[str, Any]) -> SettleItem | None:
        if not self.begun:
            return None
        begun = self.begun[drawn["which"] % len(self.begun)]
        void = drawn["status"] == "void"
        fields: dict[str, Any] = {
            "tokens": 0 if void else max(begun.model_tokens + drawn["extra"], 0),
            "microusd": 0 if void else max(begun.cost_microusd + drawn["extra"], 0),
            "journal_bytes": drawn["bytes"],
            "labels": drawn["labels"] if begun.scope_run is not None else "",
        }
        if drawn["wrong"] is not None:
            fields[drawn["wrong"]] = (
                "helpers" if drawn["wrong"] == "agent" else "wr_0" if begun.kind == "run" else None
            )
        if begun.kind == "run" and drawn["ends"]:
            fields["run_state"] = "succeeded"
        return make_settle(begun, drawn["status"], **fields)

    def take(self, items: list[dict[str, Any]], ended: list[dict[str, Any]], *, slow: bool) -> None:
        begins = [self._begin_item(drawn) for drawn in items]
        settles = [item for item in map(self._settle_item, ended) if item is not None]
        if not begins and not settles:
            return
        expected_settles, expected = self.model.batch(self.now_us, settles, begins)
        settled, begun = self.loop.run(self.bench.batch(begins, settles, skip_locked=slow))
        assert [r.code for r in settled] == expected_settles
        told = [
            Answer(
                r.code,
                (r.detail or {}).get("level")
                if r.code in {"suspended", "throttled", "budget_exceeded"}
                else None,
                (r.detail or {}).get("meter"),
                r.prior_action_id,
            )
            for r in begun
        ]
        assert told == expected
        for item, answer in zip(begins, expected, strict=True):
            if answer.code == "allowed":
                self.begun.append(item)
                if item.run_spec is not None:
                    self._opened(item)
        self.loop.run(self._compare())

    def _opened(self, item: BeginItem) -> None:
        lease = int(dt.datetime(2099, 1, 1, tzinfo=dt.UTC).timestamp()) * 1_000_000
        scope = ScopeModel(item.tenant_id, 3, item.run, attempt=1, lease_us=lease)
        scope.limits["tool_calls_day"] = 3
        self.model.add_scope(scope)
        self.runs[[t.tenant_id for t in self.tenants].index(item.tenant_id)].append(item.run)

    async def _compare(self) -> None:
        """Every row of the two tenants, column by column; then the laws."""
        for tenant in self.tenants:
            rows = await self.bench.scopes(tenant)
            assert len(rows) == sum(key[0] == tenant.tenant_id for key in self.model.scopes)
            for row in rows:
                scope = self.model.scopes[tenant.tenant_id, row["level"], row["subject_id"]]
                compare_scope(row, scope)
                self._check_law(scope)
            for row in await self.bench.journal(tenant):
                action = self.model.actions[tenant.tenant_id, row["action_id"]]
                assert (row["state"], row["verdict"], row["log_position"], row["status"]) == (
                    action.state,
                    action.code,
                    action.position,
                    action.status,
                )
                assert (row["content"] is not None) == action.kept
            assert await check_log(self.bench.root, tenant.tenant_id) == len(
                self.model.logs[tenant.tenant_id]
            )
            leaves = await self.bench.root.fetch(
                "select leaf from tenantry.log_leaves where tenant_id = $1 order by position",
                tenant.tenant_id,
            )
            assert [row["leaf"] for row in leaves] == self.model.logs[tenant.tenant_id]

    def _check_law(self, scope: ScopeModel) -> None:
        """INVARIANT 3, but for a limit that was lowered below use."""
        for meter, limit in scope.limits.items():
            key = ((scope.tenant, scope.level, scope.subject), meter)
            assert scope.reserved[meter] >= 0 and scope.used[meter] >= 0
            if limit is not None and scope.used[meter] + scope.reserved[meter] > limit:
                assert key in self.model.lowered, key
            else:
                self.model.lowered.discard(key)


def compare_scope(row: dict[str, Any], scope: ScopeModel) -> None:
    """One scope row against its model."""
    found = {name: row[f"{name}_reserved"] for name in LIMITED}
    assert found == scope.reserved, (scope.level, scope.subject)
    used = {name: row[f"{name}_used"] for name in LIMITED if name not in GAUGES}
    assert used == {name: value for name, value in scope.used.items() if name not in GAUGES}, scope.level
    assert (row["model_tokens_minute_window"], row["day_window"]) == (scope.minute, scope.day)
    assert (row["overrun_tokens"], row["overrun_microusd"]) == (scope.overrun_tokens, scope.overrun_microusd)
    assert (row["requests_tat_us"], row["refusals"]) == (scope.tat_us, scope.refusals)
    assert frozenset(row["labels"]) == scope.labels
    if scope.lease_us is not None:
        assert int(row["lease_expires_at"].timestamp()) == scope.lease_us // 1_000_000
    assert set(BY_DAY) <= set(LIMITED)
