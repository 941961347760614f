"""Two tenants whose every name is alike, taken through everything that begin and settle do, in shared batches.

A statement that forgets `tenant_id` in one join gives one of them something of the other, and fails here. `mutants`
makes such statements from the real ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, Final

import msgspec

from tenantry.gate.calls import BeginItem, BeginResult
from tests.support.cluster import connect_as
from tests.support.gates import Bench, check_log, make_begin, make_model_begin, make_settle
from tests.support.tenants import TestTenant

RUN: Final = "wr_same"
FILES: Final = ("begin.sql", "decide.sql", "settle.sql", "batch.sql")
TOLD: Final = {"risk": 2, "approvers": "approver"}


class Crossing:
    """One walk; made anew for each, with tenants of its own."""

    def __init__(self, bench: Bench, alike: Sequence[TestTenant]) -> None:
        self.bench = bench
        self.a, self.b = alike

    async def walk(self) -> None:
        """Everything, in an order in which each part finds what it needs."""
        for tenant in (self.a, self.b):
            await self.bench.root.execute(
                "insert into tenantry.scopes (tenant_id, level, subject_id, attempt, lease_expires_at)"
                " values ($1, 3, $2, 1, tenantry.now() + interval '1 hour')",
                tenant.tenant_id,
                RUN,
            )
        await self._keys()
        await self._meters()
        await self._refusals()
        await self._approvals()
        await self._runs()
        await self._bills()
        await self._labels()
        await self._locks()
        for tenant in (self.a, self.b):
            await check_log(self.bench.root, tenant.tenant_id)

    async def _pair(self, first: dict[str, Any], second: dict[str, Any]) -> tuple[BeginResult, BeginResult]:
        _, (one, two) = await self.bench.batch(
            [make_begin(self.a, RUN, **first), make_begin(self.b, RUN, **second)]
        )
        return one, two

    async def _keys(self) -> None:
        """One key and one action id in both; only the content and the outcome differ."""
        made = [make_begin(t, RUN, key="k", content=t.tenant_id.encode()) for t in (self.a, self.b)]
        made[1] = msgspec.structs.replace(made[1], action_id=made[0].action_id)
        # One by one, so that each is looked for in the journal.
        for item in made:
            assert await self.bench.begin(item) == ["allowed"]
        one, two = await self._pair({"key": "k"}, {"key": "k2"})
        assert (one.code, two.code) == ("open", "allowed")
        assert (
            await self.bench.settle(
                make_settle(made[1], output=b"of b" * 8), make_settle(made[0], "failed", output=b"of a" * 8)
            )
            == ["settled"] * 2
        )
        for item, status in zip(made, ("failed", "ok"), strict=True):
            row = await self._row(item)
            assert (row["status"], row["content"]) == (status, item.tenant_id.encode())
        one, two = await self._pair({"key": "k"}, {"key": "k"})
        assert (one.code, one.output, two.code, two.output) == (
            "recorded",
            b"of a" * 8,
            "recorded",
            b"of b" * 8,
        )
        one, two = await self._pair({"key": "only"}, {})
        assert (one.code, two.code) == ("allowed", "allowed")
        one, two = await self._pair({}, {"key": "only"})
        assert (one.code, two.code) == ("allowed", "allowed")
        one, two = await self._pair({"key": "both", "allow": False}, {"key": "both"})
        assert (one.code, two.code) == ("denied", "allowed")
        one, two = await self._pair({"key": "two"}, {"key": "two"})
        assert (one.code, two.code) == ("allowed", "allowed")
        # And the same where the batch is gone through item by item.
        shared = [make_begin(t, RUN, key="three") for t in (self.a, self.b)]
        codes = await self.bench.begin(*shared, make_begin(self.a, RUN, allow=False))
        assert codes == ["allowed", "allowed", "denied"]
        # An action of the other's is nobody's here.
        foreign, own = make_begin(self.b, RUN), make_begin(self.a, RUN)
        assert await self.bench.begin(foreign, own) == ["allowed"] * 2
        stolen = msgspec.structs.replace(make_settle(own), action_id=foreign.action_id)
        assert await self.bench.settle(stolen, make_settle(foreign)) == ["unknown", "settled"]

    async def _meters(self) -> None:
        """Rows of one name are two rows; what one has used leaves the other's as it was."""
        await self.bench.set_scope(self.b, 1, self.b.workspace_id, high_risk_day_limit=1)
        items = [make_begin(self.a, RUN, high_risk=1) for _ in range(3)] + [
            make_begin(self.b, RUN, high_risk=1)
        ]
        for batch in (items[:3], items[3:], [make_begin(self.a, RUN, high_risk=1), make_begin(self.b, RUN)]):
            assert set(await self.bench.begin(*batch)) == {"allowed"}
        one, two = await self._pair({"high_risk": 1}, {"high_risk": 1})
        assert (one.code, two.code) == ("allowed", "budget_exceeded")
        assert two.detail is not None and (two.detail["limit"], two.detail["reserved"]) == (1, 1)
        for tenant, reserved in ((self.a, 5), (self.b, 1)):
            found = {s["high_risk_day_reserved"] for s in await self.bench.scopes(tenant)}
            assert found == {reserved}
        await self.bench.settle(make_settle(items[0], "void"), make_settle(items[3]))
        for tenant, reserved, used in ((self.a, 4, 0), (self.b, 0, 1)):
            found = {
                (s["high_risk_day_reserved"], s["high_risk_day_used"])
                for s in await self.bench.scopes(tenant)
            }
            assert found == {(reserved, used)}

    async def _refusals(self) -> None:
        """Who switched it, and why, is the tenant's own."""
        for tenant, by in ((self.a, "anna"), (self.b, "bert")):
            await self.bench.set_scope(tenant, 2, tenant.agent_id, mode="suspended", switched_by=by)
        one, two = await self._pair({}, {})
        assert one.detail is not None and two.detail is not None
        assert (one.detail["by"], two.detail["by"]) == ("anna", "bert")
        await self.bench.set_scope(self.a, 2, self.a.agent_id, mode="normal")
        assert [r.code for r in await self._pair({}, {})] == ["allowed", "suspended"]
        await self.bench.set_scope(self.b, 2, self.b.agent_id, mode="normal")
        assert [r.code for r in await self._pair({}, {})] == ["allowed", "allowed"]
        await self.bench.set_scope(self.b, 0, self.b.tenant_id, policy_version=2)
        assert [r.code for r in await self._pair({}, {})] == ["allowed", "stale_policy"]
        await self.bench.set_scope(self.b, 0, self.b.tenant_id, policy_version=1)

    async def _approvals(self) -> None:
        """The same question in the same run, of two tenants."""
        same = make_begin(self.a, RUN).action_id
        wants = TOLD | {"action_id": same}
        one, two = await self._pair(wants, wants)
        assert [r.code for r in (one, two)] == ["approval_required"] * 2
        await self._answer(self.a, "approved")
        one, two = await self._pair({}, TOLD)
        assert [r.code for r in (one, two)] == ["allowed", "approval_required"]
        one, two = await self._pair(TOLD, TOLD)
        assert [r.code for r in (one, two)] == ["allowed", "approval_required"]
        assert await self._states(self.a) == ["used"]
        assert await self._states(self.b) == ["pending"]
        # One of a ran out, as did that of b; only a asks again.
        one, _ = await self._pair(TOLD, {})
        for tenant in (self.a, self.b):
            await self.bench.root.execute(
                "update tenantry.approvals set expires_at = tenantry.now() - interval '1 s'"
                " where tenant_id = $1 and state = 'pending'",
                tenant.tenant_id,
            )
        again, _ = await self._pair(TOLD, {})
        assert again.detail is not None and one.detail is not None
        assert again.detail["approval_id"] != one.detail["approval_id"]
        assert await self._states(self.b) == ["pending"]
        assert await self._states(self.a) == ["expired", "pending", "used"]
        # Each is told of its own, whichever was first.
        digest = {"approval_digest": b"d" * 32}
        one, _ = await self._pair(TOLD | digest, {})
        _, two = await self._pair({}, TOLD | digest)
        assert one.detail is not None and two.detail is not None
        assert one.detail["approval_id"] != two.detail["approval_id"]
        repeated = await self._pair(TOLD | digest, TOLD | digest)
        assert [r.detail["approval_id"] for r in repeated if r.detail] == [
            one.detail["approval_id"],
            two.detail["approval_id"],
        ]

    async def _runs(self) -> None:
        """A run that ends takes no lease but its own."""
        spec = '{"mode": "attached", "deadline_at": "2099-01-01T00:00:00Z", "envelope": "", "limits": {}}'
        opening: dict[str, Any] = {
            "scope_run": None,
            "kind": "run",
            "tool_calls": 0,
            "concurrent_runs": 1,
            "run_spec": spec,
            "action_id": make_begin(self.a, RUN).action_id,
        }
        opened = [make_begin(t, "wr_opened", **opening) for t in (self.a, self.b)]
        assert await self.bench.begin(*opened) == ["allowed"] * 2
        plain = make_begin(self.b, RUN)
        await self.bench.begin(plain)
        assert await self.bench.settle(make_settle(opened[1])) == ["settled"]
        assert (
            await self.bench.settle(make_settle(opened[0], run_state="succeeded"), make_settle(plain))
            == ["settled"] * 2
        )
        states = await self.bench.root.fetch(
            "select state from tenantry.runs where tenant_id = any($1::text[]) order by tenant_id",
            [self.a.tenant_id, self.b.tenant_id],
        )
        by_tenant = dict(zip(sorted((self.a.tenant_id, self.b.tenant_id)), states, strict=True))
        assert by_tenant[self.a.tenant_id]["state"] == "succeeded"
        assert by_tenant[self.b.tenant_id]["state"] == "running"
        codes = await self.bench.begin(make_begin(self.a, "wr_opened"), make_begin(self.b, "wr_opened"))
        assert codes == ["lease_lost", "allowed"]

    async def _bills(self) -> None:
        """A bill beyond the bound is told of whoever got it; b's was not reported."""
        over = [make_model_begin(t, RUN, tokens=1) for t in (self.a, self.b)]
        over[1] = msgspec.structs.replace(over[1], action_id=over[0].action_id)
        for item in over:
            assert await self.bench.begin(item) == ["allowed"]
        plain = make_begin(self.b, RUN)
        await self.bench.begin(plain)
        await self.bench.settle(make_settle(over[1], tokens=9))
        await self.bench.settle(make_settle(over[0], tokens=9, overran=True), make_settle(plain))
        rows = await self.bench.root.fetch(
            "select tenant_id from tenantry.incidents where tenant_id = any($1::text[])",
            [self.a.tenant_id, self.b.tenant_id],
        )
        assert [row["tenant_id"] for row in rows] == [self.a.tenant_id]

    async def _labels(self) -> None:
        """What one run has read stains no other of its name."""
        item, plain = make_begin(self.a, RUN), make_begin(self.b, RUN)
        assert await self.bench.begin(item, plain) == ["allowed"] * 2
        await self.bench.settle(make_settle(item, labels="pii"), make_settle(plain))
        one, two = await self._pair({}, {})
        assert (one.code, two.code) == ("stale_labels", "allowed")
        assert one.detail == {"labels": ["pii"], "labels_epoch": 0}

    async def _locks(self) -> None:
        """A held row of a's is not b's."""
        held = make_begin(self.a, RUN, labels="pii"), make_begin(self.b, RUN)
        assert await self.bench.begin(*held) == ["allowed"] * 2
        foreign = await connect_as(self.bench.target, self.bench.target.admin)
        try:
            async with foreign.transaction():
                await foreign.execute(
                    "select from tenantry.scopes where tenant_id = $1 and level = 2 for update",
                    self.a.tenant_id,
                )
                settled, begun = await self.bench.batch(
                    [make_begin(t, RUN, labels="pii") for t in (self.a, self.b)],
                    [make_settle(item) for item in held],
                    skip_locked=True,
                )
        finally:
            await foreign.close()
        assert [r.code for r in settled] == ["skipped", "settled"]
        assert [r.code for r in begun] == ["skipped", "allowed"]

    async def _row(self, item: BeginItem) -> dict[str, Any]:
        row = await self.bench.root.fetchrow(
            "select * from tenantry.journal where tenant_id = $1 and action_id = $2",
            item.tenant_id,
            item.action_id,
        )
        assert row is not None
        return dict(row)

    async def _answer(self, tenant: TestTenant, state: str) -> None:
        await self.bench.root.execute(
            "update tenantry.approvals set state = $2 where tenant_id = $1 and state = 'pending'",
            tenant.tenant_id,
            state,
        )

    async def _states(self, tenant: TestTenant) -> list[str]:
        rows = await self.bench.root.fetch(
            "select state from tenantry.approvals where tenant_id = $1 order by state", tenant.tenant_id
        )
        return [row["state"] for row in rows]


_FORGETS: Final = (
    # alias.tenant_id = something and
    re.compile(r"(?<![.\w])\w+\.tenant_id = [\w.()\[\]]+(?:\)\.tenant_id)? and "),
    re.compile(r"(?<=\()tenant_id, (?=level, subject_id\)\n)"),
    re.compile(r"(?<=partition by )\w+\.tenant_id(?:, )?"),
    re.compile(r"(?<=distinct on \()tenant_id, "),
    re.compile(r"(?<=distinct \()it\.tenant_id, "),
)


def sources() -> dict[str, str]:
    """The gate's function files as they are."""
    folder = resources.files("tenantry.gate")
    return {name: (folder / name).read_text() for name in FILES}


def mutants() -> Iterator[tuple[str, str, str]]:
    """Each file with one tenant forgotten: its name, the line as it was, its whole text as it is then."""
    for name, text in sources().items():
        for pattern in _FORGETS:
            for found in pattern.finditer(text):
                instead = (
                    "1" if found.group().startswith(("e.", "it.", "x.")) and "=" not in found.group() else ""
                )
                if found.group().endswith(", "):
                    instead = ""
                yield (
                    name,
                    text.splitlines()[text.count("\n", 0, found.start())].strip(),
                    text[: found.start()] + instead + text[found.end() :],
                )
