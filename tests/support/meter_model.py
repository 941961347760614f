"""The gate's begin and settle in plain Python, one item after the other: what the functions must agree with.

Written from DESIGN §3, not from the SQL: settlements first, then intents in order; an intent is all or nothing over
every meter of every level; a refusal consumes nothing but the journal bytes of what is kept of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from tenantry.gate.calls import BeginItem, SettleItem
from tests.support.gates import leaf

MINUTE_US: Final = 60_000_000
DAY_US: Final = 86_400_000_000
GAUGES: Final = ("concurrent_runs", "model_inflight")
BY_DAY: Final = ("model_tokens_day", "cost_microusd_day", "tool_calls_day", "high_risk_day")
LIMITED: Final = (*GAUGES, "model_tokens_minute", *BY_DAY, "journal_bytes")
ADMITS: Final = {"normal": 3, "drafts_only": 1, "read_only": 0, "approvals_only": 0, "suspended": -1}
JOURNALED: Final = frozenset(
    {"allowed", "denied", "suspended", "throttled", "budget_exceeded", "approval_required"}
)
# The order in which a scope's meters speak when several refuse.
SPEAKS: Final = (
    "requests",
    "concurrent_runs",
    "overrun",
    "model_tokens_day",
    "cost_microusd_day",
    "tool_calls_day",
    "high_risk_day",
    "journal_bytes",
    "model_tokens_minute",
    "model_inflight",
)
WAITS: Final = frozenset({"requests", "concurrent_runs", "model_inflight"})

ScopeKey = tuple[str, int, str]


def demand_of(item: BeginItem) -> dict[str, int]:
    """What an intent reserves, by meter."""
    return {
        "concurrent_runs": item.concurrent_runs,
        "model_inflight": item.model_inflight,
        "model_tokens_minute": item.model_tokens,
        "model_tokens_day": item.model_tokens,
        "cost_microusd_day": item.cost_microusd,
        "tool_calls_day": item.tool_calls,
        "high_risk_day": item.high_risk,
        "journal_bytes": item.journal_bytes,
    }


def _zero() -> dict[str, int]:
    return dict.fromkeys(LIMITED, 0)


@dataclasses.dataclass
class ScopeModel:
    """One wide row. Times are microseconds since the epoch."""

    tenant: str
    level: int
    subject: str
    limits: dict[str, int | None] = dataclasses.field(default_factory=lambda: dict.fromkeys(LIMITED))
    used: dict[str, int] = dataclasses.field(default_factory=_zero)
    reserved: dict[str, int] = dataclasses.field(default_factory=_zero)
    interval_us: int | None = None
    burst: int | None = None
    tat_us: int = 0
    minute: int = 0
    day: int = 0
    overrun_tokens: int = 0
    overrun_microusd: int = 0
    refusals: int = 0
    mode: str = "normal"
    mode_until_us: int | None = None
    killed: bool = False
    policy_version: int = 1
    attempt: int | None = None
    lease_us: int | None = None
    labels: frozenset[str] = frozenset()
    labels_epoch: int = 0

    def window_of(self, meter: str) -> str | None:
        """Which of the row's windows a meter counts in."""
        if meter == "model_tokens_minute":
            return "minute"
        return "day" if meter in BY_DAY else None

    def roll(self, now_us: int) -> None:
        """Begin the windows of now, and forget what was counted in those before. Never goes back."""
        minute, day = windows_at(now_us)
        if self.minute < minute:
            self.minute = minute
            self.used["model_tokens_minute"] = self.reserved["model_tokens_minute"] = 0
        if self.level != 3 and self.day < day:
            self.day = day
            for meter in BY_DAY:
                self.used[meter] = self.reserved[meter] = 0

    def rolled(self, now_us: int) -> ScopeModel:
        """A look at the row as it would be in the windows of now."""
        copy = dataclasses.replace(self, used=dict(self.used), reserved=dict(self.reserved))
        copy.roll(now_us)
        return copy

    def refuses(self, item: BeginItem, now_us: int) -> str | None:
        """The first meter that does not hold the item."""
        seen, demand = self.rolled(now_us), demand_of(item)
        full = {
            meter
            for meter, limit in self.limits.items()
            if limit is not None and limit - seen.used[meter] - seen.reserved[meter] < demand[meter]
        }
        if self.interval_us is not None and self.burst is not None:
            ahead = max(self.tat_us, now_us) - now_us
            if ahead + self.interval_us > self.interval_us * self.burst:
                full.add("requests")
        if self.overrun_tokens + self.overrun_microusd > 0 and item.model_tokens > 0:
            full.add("overrun")
        return next((meter for meter in SPEAKS if meter in full), None)

    def reserve(self, item: BeginItem, now_us: int) -> None:
        """Take what an allowed item reserves."""
        self.roll(now_us)
        for meter, amount in demand_of(item).items():
            self.reserved[meter] += amount
        if self.interval_us is not None:
            self.tat_us = max(self.tat_us, now_us) + self.interval_us


@dataclasses.dataclass
class ActionModel:
    """A journal row."""

    item: BeginItem
    state: str
    code: str
    position: int
    minute: int
    day: int
    kept: bool = True
    status: str | None = None


@dataclasses.dataclass
class ApprovalModel:
    """An approval of one action by digest."""

    tenant: str
    run: str
    digest: bytes
    state: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one intent is told."""

    code: str
    level: int | None = None
    meter: str | None = None
    prior: str | None = None


def windows_at(now_us: int) -> tuple[int, int]:
    """The Unix seconds at which the minute and the day of a moment began."""
    return now_us // MINUTE_US * 60, now_us // DAY_US * 86_400


class MeterModel:
    """Every scope, action, key, approval and log of a few tenants."""

    def __init__(self) -> None:
        self.scopes: dict[ScopeKey, ScopeModel] = {}
        self.actions: dict[tuple[str, str], ActionModel] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.approvals: list[ApprovalModel] = []
        self.logs: dict[str, list[bytes]] = {}
        self.running: dict[tuple[str, str], str] = {}
        self.fleet_mode = "normal"
        self.fleet_version = 1
        self.lowered: set[tuple[ScopeKey, str]] = set()

    def add_scope(self, scope: ScopeModel) -> ScopeModel:
        """A row that begin and settle may find."""
        self.scopes[(scope.tenant, scope.level, scope.subject)] = scope
        if scope.level == 0:
            self.logs.setdefault(scope.tenant, [])
        return scope

    def batch(
        self, now_us: int, settles: Sequence[SettleItem], begins: Sequence[BeginItem]
    ) -> tuple[list[str], list[Answer]]:
        """One call of the gate's function."""
        first: set[tuple[str, str]] = set()
        settled = [self._settle(item, first) for item in settles]
        for settle in settles:
            self._end_run(now_us, settle)
        answers: list[Answer] = []
        used: list[ApprovalModel] = []
        winners: dict[tuple[str, str], BeginItem] = {}
        before = dict(self.keys)
        for item in begins:
            answer = self._decide(now_us, item, winners, before, used)
            if answer.code == "allowed":
                for scope in self._touched(item):
                    scope.reserve(item, now_us)
                if item.key is not None:
                    winners[item.tenant_id, item.key] = item
            answers.append(answer)
        self._journal(now_us, begins, answers)
        for approval in used:
            approval.state = "used"
        for item, answer in zip(begins, answers, strict=True):
            if answer.code == "approval_required":
                self._ask(item)
            if answer.code == "allowed" and item.run_spec is not None:
                self.running[item.tenant_id, item.action_id] = item.run
        return settled, answers

    def _touched(self, item: BeginItem | SettleItem) -> list[ScopeModel]:
        names = (item.tenant_id, item.workspace, item.agent, item.scope_run)
        wanted = ((item.tenant_id, level, name) for level, name in enumerate(names) if name is not None)
        # A refusal above may name what does not exist below.
        return [self.scopes[key] for key in wanted if key in self.scopes]

    def _decide(
        self,
        now_us: int,
        item: BeginItem,
        winners: dict[tuple[str, str], BeginItem],
        before: dict[tuple[str, str], str],
        used: list[ApprovalModel],
    ) -> Answer:
        needs_approval = item.approvers != ""
        names = (item.tenant_id, item.workspace, item.agent, item.scope_run)
        for level, name in enumerate(names):
            if name is None:
                continue
            scope = self.scopes.get((item.tenant_id, level, name))
            if scope is None:
                return Answer("unknown_scope")
            over = scope.mode_until_us is not None and scope.mode_until_us <= now_us
            mode = "normal" if over else scope.mode
            if scope.killed:
                return Answer("suspended", level)
            if ADMITS[mode] < item.risk:
                if mode != "approvals_only":
                    return Answer("suspended", level)
                needs_approval = True
        if ADMITS[self.fleet_mode] < item.risk:
            if self.fleet_mode != "approvals_only":
                return Answer("suspended", -1)
            needs_approval = True
        touched = self._touched(item)
        run = touched[3] if item.scope_run is not None else None
        if run is not None and (
            run.lease_us is None or run.lease_us <= now_us or run.attempt != item.attempt
        ):
            return Answer("lease_lost")
        told = self._told(item, winners, before)
        if told is not None:
            return told
        if (item.policy_version, item.fleet_version) != (touched[0].policy_version, self.fleet_version):
            return Answer("stale_policy")
        if run is not None and (
            item.labels_epoch != run.labels_epoch
            or not run.labels <= set(filter(None, item.labels.split(",")))
        ):
            return Answer("stale_labels")
        if not item.allow:
            return Answer("denied")
        approval = None
        if needs_approval:
            approval = self._find_approval(item, "approved", used)
            if approval is None:
                return Answer("approval_required")
        for scope in touched:
            meter = scope.refuses(item, now_us)
            if meter is not None:
                return Answer("throttled" if meter in WAITS else "budget_exceeded", scope.level, meter)
        if approval is not None:
            used.append(approval)
        return Answer("allowed")

    def _told(
        self, item: BeginItem, winners: dict[tuple[str, str], BeginItem], before: dict[tuple[str, str], str]
    ) -> Answer | None:
        """What an earlier one with the same key says."""
        if item.key is None:
            return None
        winner = winners.get((item.tenant_id, item.key))
        if winner is not None:
            same = winner.input_sha256 == item.input_sha256
            return Answer("open" if same else "key_reuse", prior=winner.action_id)
        prior = before.get((item.tenant_id, item.key))
        if prior is None:
            return None
        earlier = self.actions[item.tenant_id, prior]
        if earlier.item.input_sha256 != item.input_sha256:
            return Answer("key_reuse", prior=prior)
        return Answer("open" if earlier.state == "begun" else "recorded", prior=prior)

    def _find_approval(
        self, item: BeginItem, state: str, used: Sequence[ApprovalModel] = ()
    ) -> ApprovalModel | None:
        return next(
            (
                a
                for a in self.approvals
                if (a.tenant, a.run, a.digest, a.state)
                == (item.tenant_id, item.run, item.approval_digest, state)
                and not any(a is taken for taken in used)
            ),
            None,
        )

    def _ask(self, item: BeginItem) -> None:
        if self._find_approval(item, "pending") is None and self._find_approval(item, "approved") is None:
            self.approvals.append(ApprovalModel(item.tenant_id, item.run, item.approval_digest, "pending"))

    def _journal(self, now_us: int, begins: Sequence[BeginItem], answers: Sequence[Answer]) -> None:
        minute, day = windows_at(now_us)
        for item, answer in zip(begins, answers, strict=True):
            if answer.code not in JOURNALED:
                continue
            kept = True
            if answer.code != "allowed":
                kept = self._count_refusal(now_us, item, answer)
            elif item.key is not None:
                self.keys[item.tenant_id, item.key] = item.action_id
            state = "begun" if answer.code == "allowed" else "refused"
            position = self._log(item.tenant_id, item.action_id, "begin", answer.code, item.content_sha256)
            self.actions[item.tenant_id, item.action_id] = ActionModel(
                item, state, answer.code, position, minute, day, kept
            )

    def _count_refusal(self, now_us: int, item: BeginItem, answer: Answer) -> bool:
        tenant = self.scopes[item.tenant_id, 0, item.tenant_id]
        limit = tenant.limits["journal_bytes"]
        size = len(item.content)
        kept = (
            limit is None or tenant.used["journal_bytes"] + tenant.reserved["journal_bytes"] + size <= limit
        )
        if kept:
            tenant.used["journal_bytes"] += size
        for scope in self._touched(item):
            if scope.level in {0, answer.level}:
                scope.roll(now_us)
                scope.refusals += 1
        return kept

    def _log(self, tenant: str, action_id: str, phase: str, word: str, digest: bytes) -> int:
        log = self.logs[tenant]
        log.append(leaf(tenant, len(log), action_id, phase, word, digest))
        return len(log) - 1

    def _settle(self, item: SettleItem, first: set[tuple[str, str]]) -> str:
        action = self.actions.get((item.tenant_id, item.action_id))
        if action is None:
            return "unknown"
        begun = action.item
        # Of several in one batch the first one speaks, right or wrong.
        repeated = (item.tenant_id, item.action_id) in first
        first.add((item.tenant_id, item.action_id))
        if (
            repeated
            or action.state != "begun"
            or (item.workspace, item.agent, item.scope_run)
            != (
                begun.workspace,
                begun.agent,
                begun.scope_run,
            )
        ):
            return "already"
        void = item.status == "void"
        held = item.status == "unknown" and begun.kind != "model" and begun.risk > 0
        action.state = "voided" if void else "held" if held else "settled"
        action.status = item.status
        if void and begun.key is not None:
            del self.keys[item.tenant_id, begun.key]
        tokens, microusd = (0, 0) if void else (item.tokens, item.microusd)
        posted = {
            "model_tokens_minute": min(tokens, begun.model_tokens),
            "model_tokens_day": min(tokens, begun.model_tokens),
            "cost_microusd_day": min(microusd, begun.cost_microusd),
            "tool_calls_day": 0 if void else begun.tool_calls,
            "high_risk_day": 0 if void else begun.high_risk,
            "journal_bytes": min(item.journal_bytes, begun.journal_bytes),
        }
        for scope in self._touched(item):
            current = {
                None: True,
                "minute": scope.minute == action.minute,
                "day": scope.level == 3 or scope.day == action.day,
            }
            for meter, amount in demand_of(begun).items():
                if current[scope.window_of(meter)]:
                    scope.reserved[meter] -= amount
                    scope.used[meter] += posted.get(meter, 0)
            scope.overrun_tokens += max(tokens - begun.model_tokens, 0)
            scope.overrun_microusd += max(microusd - begun.cost_microusd, 0)
            if scope.level == 3 and item.labels:
                scope.labels |= set(item.labels.split(","))
        self._log(item.tenant_id, item.action_id, "settle", item.status, item.output_sha256)
        return "settled"

    def _end_run(self, now_us: int, item: SettleItem) -> None:
        action = self.actions.get((item.tenant_id, item.action_id))
        if item.run_state is None or action is None or action.state == "begun":
            return
        run = self.running.pop((item.tenant_id, item.action_id), None)
        if run is not None:
            self.scopes[item.tenant_id, 3, run].lease_us = now_us
