"""The one table from verdicts to the wire (CONTRACT 'Verdicts').

Every door answers a refusal in its own dialect, but status, headers, words and members come from here. Who
stopped an action stands in the title: a policy, a quota, a switch, a person's approval or the provider; what
to do about it in the detail.
"""

from __future__ import annotations

import datetime as dt
from typing import Final, assert_never

import msgspec

from tenantry.core.quota import Meter, MeterName
from tenantry.core.verdict import (
    Allowed,
    ApprovalRequired,
    BudgetExceeded,
    Denied,
    ProviderDegraded,
    Queued,
    Suspended,
    Throttled,
    UnknownOutcome,
    Verdict,
)

Headers = list[tuple[bytes, bytes]]
PROBLEM_TYPE: Final = "urn:tenantry:problem:"
_RETRY_AFTER_S_MAX: Final = 86_400
_RATES: Final = frozenset({MeterName.REQUESTS, MeterName.MODEL_TOKENS_MINUTE})
_UNITS: Final = {
    MeterName.REQUESTS: "requests a minute",
    MeterName.CONCURRENT_RUNS: "concurrent runs",
    MeterName.MODEL_INFLIGHT: "model calls in flight",
    MeterName.MODEL_TOKENS_MINUTE: "model tokens a minute",
    MeterName.MODEL_TOKENS_DAY: "model tokens",
    MeterName.COST_MICROUSD_DAY: "micro-US-dollars",
    MeterName.TOOL_CALLS_DAY: "tool calls",
    MeterName.HIGH_RISK_DAY: "high-risk actions",
    MeterName.JOURNAL_BYTES: "journal bytes",
    MeterName.OVERRUN: "billed beyond the bound",
}


class Wire(msgspec.Struct, frozen=True):
    """A verdict as every dialect tells it.

    ``should_retry`` is what a client's own retry loop is told, None: nothing. ``members`` are the extension
    members of the problem (RFC 9457 §3.2), ``error_type`` the nearest type of OpenAI's errors.
    """

    word: str
    status: int
    title: str
    detail: str
    members: dict[str, object]
    error_type: str
    should_retry: bool | None = None
    retry_after_s: int | None = None


def describe(verdict: Verdict) -> Wire:
    """The row of the table for this verdict."""
    match verdict:
        case Allowed():
            members: dict[str, object] = {"action_id": verdict.action_id}
            return Wire("allowed", 200, "allowed", "The action was performed.", members, "none")
        case Denied():
            return _denied(verdict)
        case Throttled():
            return _throttled(verdict)
        case Queued():
            detail = f"Accepted and waiting at position {verdict.position}; ask again for its result."
            return Wire("queued", 202, "queued", detail, {"position": verdict.position}, "none")
        case BudgetExceeded():
            return _budget_exceeded(verdict)
        case ApprovalRequired():
            return _approval_required(verdict)
        case Suspended():
            return _suspended(verdict)
        case ProviderDegraded():
            return _provider_degraded(verdict)
        case UnknownOutcome():
            return Wire(
                "unknown_outcome",
                502,
                "the outcome at the upstream is not known",
                "The request was sent and its answer was lost: it may or may not have happened. Look at the "
                "upstream before doing it again.",
                {"action_id": verdict.action_id},
                "server_error",
                should_retry=False,
            )
        case _ as never:
            assert_never(never)


def verdict_headers(wire: Wire) -> Headers:
    """``Tenantry-Verdict``, and for refusals ``Retry-After`` and ``x-should-retry`` as the table says."""
    headers = [(b"tenantry-verdict", wire.word.encode())]
    if wire.retry_after_s is not None:
        headers.append((b"retry-after", str(wire.retry_after_s).encode()))
    if wire.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if wire.should_retry else b"false"))
    return headers


def problem_members(wire: Wire) -> dict[str, object]:
    """The members of the problem details object, ``verdict`` among them."""
    return {
        "type": PROBLEM_TYPE + wire.word,
        "title": wire.title,
        "status": wire.status,
        "detail": wire.detail,
        "verdict": wire.word,
        **wire.members,
    }


def problem_body(wire: Wire) -> bytes:
    """``application/problem+json``."""
    return msgspec.json.encode(problem_members(wire))


def openai_body(wire: Wire) -> bytes:
    """OpenAI's error object, with the problem's members beside it."""
    error = {
        "message": f"{wire.title}: {wire.detail}",
        "type": wire.error_type,
        "param": None,
        "code": wire.word,
    }
    return msgspec.json.encode({"error": error, **problem_members(wire)})


def _denied(verdict: Denied) -> Wire:
    policies = ", ".join(verdict.reason) or "no policy that permits it"
    detail = f"Refused by {policies}. Another try is refused alike until the policy is changed."
    members: dict[str, object] = {"policies": list(verdict.reason)}
    if verdict.errors:
        detail = f"Refused: a policy could not be evaluated, which is a refusal. Policies: {policies}."
        members["policy_errors"] = list(verdict.errors)
    return Wire("denied", 403, "denied by policy", detail, members, "permission_error", should_retry=False)


def _throttled(verdict: Throttled) -> Wire:
    seconds = _whole_seconds(verdict.retry_after_ms)
    what = "rate" if verdict.meter.name in _RATES else "limit"
    detail = f"The {what} of {_of(verdict.meter)} is reached. The same request may pass in {seconds} s."
    return Wire(
        "throttled",
        429,
        "throttled by a quota",
        detail,
        {"meter": _meter(verdict.meter), "retry_after_ms": verdict.retry_after_ms},
        "rate_limit_error",
        should_retry=True,
        retry_after_s=seconds,
    )


def _budget_exceeded(verdict: BudgetExceeded) -> Wire:
    again = f"It resets at {_utc(verdict.resets_at)}." if verdict.resets_at else "Only a person can raise it."
    detail = (
        f"The budget of {_of(verdict.meter)} does not hold what this may use: {verdict.requested} asked for, "
        f"{verdict.used} used and {verdict.reserved} reserved of {verdict.limit}. Nothing was used. {again}"
    )
    members: dict[str, object] = {
        "meter": _meter(verdict.meter),
        "limit": verdict.limit,
        "used": verdict.used,
        "reserved": verdict.reserved,
        "requested": verdict.requested,
        "resets_at": _utc(verdict.resets_at) if verdict.resets_at else None,
    }
    return Wire(
        "budget_exceeded",
        429,
        "stopped by a budget",
        detail,
        members,
        "insufficient_quota",
        should_retry=False,
    )


def _approval_required(verdict: ApprovalRequired) -> Wire:
    expires_at = _utc(verdict.expires_at)
    detail = (
        f"One of {', '.join(verdict.approvers)} must approve {verdict.approval_id} before {expires_at}. "
        "Repeat this very request with the same idempotency key after that."
    )
    members: dict[str, object] = {
        "approval_id": verdict.approval_id,
        "approvers": list(verdict.approvers),
        "expires_at": expires_at,
    }
    return Wire(
        "approval_required",
        403,
        "a person must approve it",
        detail,
        members,
        "permission_error",
        should_retry=False,
    )


def _suspended(verdict: Suspended) -> Wire:
    since = f" since {_utc(verdict.since)}" if verdict.since else ""
    reason = f" ({verdict.reason})" if verdict.reason else ""
    detail = (
        f"The {verdict.level} is {verdict.mode} by {verdict.by}{since}{reason}. "
        "It stays so until a person switches it back."
    )
    members: dict[str, object] = {
        "switch_id": verdict.switch_id,
        "mode": verdict.mode,
        "level": verdict.level,
        "by": verdict.by,
        "since": _utc(verdict.since) if verdict.since else None,
        "reason": verdict.reason,
    }
    return Wire(
        "suspended",
        423,
        "stopped by a switch",
        detail,
        members,
        "permission_error",
        should_retry=False,
    )


def _provider_degraded(verdict: ProviderDegraded) -> Wire:
    seconds = _whole_seconds(verdict.retry_after_ms)
    detail = (
        f"{verdict.provider} does not answer as it should; the platform is fine and nothing was sent. "
        f"Try again in {seconds} s."
    )
    return Wire(
        "provider_degraded",
        503,
        "the provider is degraded",
        detail,
        {"provider": verdict.provider, "retry_after_ms": verdict.retry_after_ms},
        "server_error",
        should_retry=True,
        retry_after_s=seconds,
    )


def _whole_seconds(milliseconds: int) -> int:
    """Rounded up, at least 1: a client that obeys never comes too early."""
    return min(_RETRY_AFTER_S_MAX, max(1, -(-milliseconds // 1000)))


def _of(meter: Meter) -> str:
    return f"{meter.level} {meter.subject_id} for {_UNITS[meter.name]}"


def _meter(meter: Meter) -> dict[str, str]:
    return {"level": meter.level, "subject_id": meter.subject_id, "name": meter.name}


def _utc(moment: dt.datetime) -> str:
    """RFC 3339 with ``Z``, to the millisecond."""
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
