"""Step 3, begin: one round trip that decides, reserves and journals the intent; and what its answer means.

A decision made under another policy version, or without a label that the run has got meanwhile, is not begun: facts are
loaded again and policy decides again, `STALE_PASSES_MAX` times at most. Whoever holds the key is waited for as long as
`OPEN_WAIT_S`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tenantry.core.action import Action, Outcome, OutcomeStatus
from tenantry.core.envelope import canonical_bytes
from tenantry.core.errors import KeyReuseError, StorageUnavailableError, TenantryError, UnauthenticatedError
from tenantry.core.ids import ActionId, ApprovalId, SwitchId
from tenantry.core.labels import Label
from tenantry.core.quota import LEVELS, Meter, MeterName, Usage
from tenantry.core.verdict import (
    Allowed,
    ApprovalRequired,
    BudgetExceeded,
    Denied,
    Suspended,
    Throttled,
    UnknownOutcome,
    Verdict,
)
from tenantry.gate.authorize import authorize
from tenantry.gate.calls import BeginItem
from tenantry.gate.context import Subject, Timings, make_envelope
from tenantry.journal.entries import SALT_BYTES, JournalContent, JournalOutput

if TYPE_CHECKING:
    from tenantry.core.clock import Clock
    from tenantry.core.decision import Decision
    from tenantry.core.labels import Labels
    from tenantry.gate.calls import BeginResult
    from tenantry.gate.identify import KnownLabels
    from tenantry.gate.ledger import Ledger
    from tenantry.gate.views import TenantView, Views
    from tenantry.storage.scope import TenantScope

STALE_PASSES_MAX: Final = 8
OPEN_WAIT_S: Final = 10.0
OPEN_POLL_S: Final = (0.02, 0.05, 0.1, 0.25)


@dataclasses.dataclass(frozen=True, slots=True)
class Begun:
    """What `begin` found: the verdict, the view and item that it was reached on."""

    verdict: Verdict
    view: TenantView
    item: BeginItem


class Begin:
    """Authorize and begin, until both saw the same versions and labels."""

    def __init__(self, ledger: Ledger, views: Views, labels: KnownLabels, clock: Clock) -> None:
        self._ledger = ledger
        self._views = views
        self._labels = labels
        self._clock = clock

    async def __call__(
        self,
        scope: TenantScope,
        subject: Subject,
        view: TenantView,
        action: Action,
        timings: Timings,
        *,
        run_spec: str | None = None,
    ) -> Begun:
        """Raises `KeyReuseError`, `UnauthenticatedError` (no live lease), `StorageUnavailableError`."""
        waited_until = self._clock.monotonic() + min(OPEN_WAIT_S, action.timeout_ms / 1000)
        stale, waits = 0, 0
        while stale < STALE_PASSES_MAX:
            labels, epoch = self._labels.get(subject.tenant_id, subject.run_id)
            started = self._clock.monotonic()
            decision = authorize(view, subject, action, labels)
            decided = self._clock.monotonic()
            timings.policy += (decided - started) * 1000
            item = _make_item(
                scope,
                subject,
                view,
                action,
                decision,
                seen=(labels, epoch),
                run_spec=run_spec,
                clock=self._clock,
            )
            result = await self._ledger.begin(scope, item)
            timings.gate += (self._clock.monotonic() - decided) * 1000
            if result.code == "stale_policy":
                stale += 1
                view = await self._views.reload(scope, stale=view)
            elif result.code == "stale_labels":
                stale += 1
                self._learn(subject, result.detail or {})
            elif result.code == "open" and action.kind == "run":
                # The run that this key opened is under way; its action stays open as long as it lives.
                return Begun(Allowed(ActionId(result.prior_action_id or ""), None), view, item)
            elif result.code == "open":
                if not await self._wait(result, waited_until, waits):
                    return Begun(UnknownOutcome(ActionId(result.prior_action_id or "")), view, item)
                waits += 1
            else:
                return Begun(_verdict(scope, action, decision, result), view, item)
        msg = "policy or labels changed faster than a decision could be made; nothing was begun"
        raise StorageUnavailableError(msg)

    def _learn(self, subject: Subject, detail: Any) -> None:  # noqa: ANN401 - the function's JSON
        labels = frozenset(Label(label) for label in detail["labels"])
        self._labels.put(subject.tenant_id, subject.run_id, labels, detail["labels_epoch"])

    async def _wait(self, result: BeginResult, until: float, waits: int) -> bool:
        """Wait a little for the action that holds the key; False when the time is over."""
        left = until - self._clock.monotonic()
        if left <= 0:
            return False
        pause = min(left, OPEN_POLL_S[min(waits, len(OPEN_POLL_S) - 1)])
        if not await self._ledger.wait_settled(result.prior_action_id or "", left):
            await asyncio.sleep(pause)
        return True


def _make_item(
    scope: TenantScope,
    subject: Subject,
    view: TenantView,
    action: Action,
    decision: Decision,
    *,
    seen: tuple[Labels, int],
    run_spec: str | None,
    clock: Clock,
) -> BeginItem:
    """The intent as the database takes it. Each pass has an action id and a seal of its own."""
    envelope = canonical_bytes(make_envelope(subject, view, action))
    content = JournalContent(envelope, action.input, decision.request).encode(
        scope, action.action_id, salt=clock.random_bytes(SALT_BYTES)
    )
    usage = action.estimate
    approvers = ",".join(sorted(decision.obligations.approvers))
    return BeginItem(
        tenant_id=subject.tenant_id,
        action_id=action.action_id,
        key=_idempotency_key(subject, action),
        workspace=subject.workspace_id,
        agent=subject.agent_id,
        run=subject.run_id,
        scope_run=subject.run_scope,
        principal=subject.principal_id,
        kind=action.kind,
        name=action.name,
        risk=int(action.risk),
        system=action.target.system,
        input_sha256=action.input_sha256,
        policy_version=view.facts.policy_version,
        fleet_version=view.facts.fleet_version,
        attempt=subject.attempt,
        allow=decision.effect == "allow",
        reason=msgspec.json.encode(decision.reason).decode(),
        approvers=approvers,
        approval_digest=_approval_digest(subject, view, action),
        labels=",".join(sorted(seen[0])),
        labels_epoch=seen[1],
        concurrent_runs=usage.concurrent_runs,
        model_inflight=usage.model_inflight,
        model_tokens=usage.model_tokens,
        cost_microusd=usage.cost_microusd,
        tool_calls=usage.tool_calls,
        high_risk=usage.high_risk,
        journal_bytes=len(content) + usage.journal_bytes,
        timeout_ms=action.timeout_ms,
        content=content,
        content_sha256=hashlib.sha256(content).digest(),
        run_spec=run_spec,
    )


def _idempotency_key(subject: Subject, action: Action) -> str | None:
    """A caller's key counts within its run: two runs may use the same words. Opening a run counts in its agent."""
    if action.idempotency_key is None:
        return None
    owner = subject.run_scope or f"agent/{subject.agent_id}"
    return f"{owner}/{action.idempotency_key}"


def _approval_digest(subject: Subject, view: TenantView, action: Action) -> bytes:
    """What an approval binds: the arguments, the policy version, the agent's version, the tool's declaration."""
    bound = (subject.run_id, action.target, action.input_sha256, subject.agent.version)
    return hashlib.sha256(view.binding(action.name) + msgspec.json.encode(bound)).digest()


def _verdict(scope: TenantScope, action: Action, decision: Decision, result: BeginResult) -> Verdict:
    """The function's code as a value. Raises where the code is no verdict."""
    detail: Any = result.detail or {}
    match result.code:
        case "allowed":
            return Allowed(action.action_id, result.position)
        case "recorded":
            return _recorded(scope, result)
        case "denied":
            return Denied(decision.reason, decision.errors)
        case "suspended":
            return Suspended(
                switch_id=SwitchId(detail["switch_id"]) if detail["switch_id"] else None,
                mode=detail["mode"],
                level="fleet" if detail["level"] < 0 else LEVELS[detail["level"]],
                by=detail["by"] or "",
                since=_time(detail["since"]),
                reason=detail["reason"],
            )
        case "throttled":
            return Throttled(_meter(detail), max(1, int(detail["retry_after_ms"])))
        case "budget_exceeded":
            return BudgetExceeded(
                meter=_meter(detail),
                limit=detail["limit"],
                used=detail["used"],
                reserved=detail["reserved"],
                requested=detail["requested"],
                resets_at=_epoch(detail["resets_at_s"]),
            )
        case "approval_required":
            expires_at = _time(detail["expires_at"])
            assert expires_at is not None
            return ApprovalRequired(ApprovalId(detail["approval_id"]), tuple(detail["approvers"]), expires_at)
        case "key_reuse":
            msg = "the idempotency key was used before with another body; take a new key for a new request"
            raise KeyReuseError(msg)
        case "lease_lost":
            msg = "the run has ended or its lease is lost; its token counts for nothing"
            raise UnauthenticatedError(msg)
        case "unknown_scope":
            msg = "the run, its agent or its workspace does not exist here"
            raise UnauthenticatedError(msg)
        case "skipped" | "open" | "stale_policy" | "stale_labels":
            raise TenantryError(f"the gate's function answered {result.code!r} where it cannot")


def _recorded(scope: TenantScope, result: BeginResult) -> Verdict:
    """A step that was settled before: its outcome comes back, and nothing is performed."""
    detail: Any = result.detail or {}
    action_id = ActionId(result.prior_action_id or "")
    if detail["state"] == "held" or detail["status"] == "unknown":
        return UnknownOutcome(action_id)
    if not result.output:
        usage = Usage(model_tokens=detail["used_tokens"] or 0, cost_microusd=detail["used_microusd"] or 0)
        outcome = Outcome(OutcomeStatus(detail["status"]), None, usage, detail="the record was erased")
        return Allowed(action_id, None, outcome)
    stored = JournalOutput.decode(scope, action_id, result.output)
    outcome = Outcome(
        status=stored.status,
        output=stored.output,
        usage=Usage(model_tokens=detail["used_tokens"] or 0, cost_microusd=detail["used_microusd"] or 0),
        labels=stored.label_set,
        content_type=stored.content_type,
        http_status=stored.http_status,
        detail=stored.detail,
    )
    return Allowed(action_id, None, outcome)


def _meter(detail: Any) -> Meter:  # noqa: ANN401 - the function's JSON
    return Meter(LEVELS[detail["level"]], detail["subject"], MeterName(detail["meter"]))


def _time(text: str | None) -> dt.datetime | None:
    return dt.datetime.fromisoformat(text) if text else None


def _epoch(seconds: int | None) -> dt.datetime | None:
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC) if seconds else None
