"""Verdicts: what the gate answers, as values (CONTRACT 'Verdicts')."""

from __future__ import annotations

import datetime as dt

import msgspec

from tenantry.core.action import Outcome
from tenantry.core.ids import ActionId, ApprovalId, PolicyId, SwitchId
from tenantry.core.quota import Meter


class Allowed(msgspec.Struct, frozen=True, tag="allowed"):
    """Begun, durable, reserved. ``recorded`` is set when this step was settled before: `perform` is skipped."""

    action_id: ActionId
    position: int | None
    recorded: Outcome | None = None


class Denied(msgspec.Struct, frozen=True, tag="denied"):
    """Policy said no; ``reason`` names the policies, ``errors`` what failed to evaluate."""

    reason: tuple[PolicyId, ...]
    errors: tuple[str, ...] = ()


class Throttled(msgspec.Struct, frozen=True, tag="throttled"):
    """A rate or a gauge is at its limit; the same request may pass after ``retry_after_ms``."""

    meter: Meter
    retry_after_ms: int


class Queued(msgspec.Struct, frozen=True, tag="queued"):
    """Accepted, waiting for its turn at ``position``."""

    position: int


class BudgetExceeded(msgspec.Struct, frozen=True, tag="budget_exceeded"):
    """A budget does not hold what this action could use. ``resets_at`` is None where only a person can raise it."""

    meter: Meter
    limit: int
    used: int
    reserved: int
    requested: int
    resets_at: dt.datetime | None


class ApprovalRequired(msgspec.Struct, frozen=True, tag="approval_required"):
    """A person must approve this very action; repeat it with the same key after that."""

    approval_id: ApprovalId
    approvers: tuple[str, ...]
    expires_at: dt.datetime


class Suspended(msgspec.Struct, frozen=True, tag="suspended"):
    """A switch or a mode stopped it."""

    switch_id: SwitchId | None
    mode: str
    level: str
    by: str
    since: dt.datetime | None
    reason: str | None = None


class ProviderDegraded(msgspec.Struct, frozen=True, tag="provider_degraded"):
    """The platform is fine; the provider named is not. Nothing was sent."""

    provider: str
    retry_after_ms: int


class UnknownOutcome(msgspec.Struct, frozen=True, tag="unknown_outcome"):
    """It may or may not have happened at the upstream; never repeat it blindly."""

    action_id: ActionId


Verdict = (
    Allowed
    | Denied
    | Throttled
    | Queued
    | BudgetExceeded
    | ApprovalRequired
    | Suspended
    | ProviderDegraded
    | UnknownOutcome
)
