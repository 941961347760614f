"""The one table: every verdict's status, headers and bodies, held to golden files in tests/wire.

To renew a file after a change that is meant, delete it and run the test once; it fails, and writes the new one.
"""

from __future__ import annotations

import datetime as dt
import typing
from pathlib import Path

import msgspec
import pytest

from tenantry.core.ids import ActionId, ApprovalId, PolicyId, SwitchId
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
from tenantry.web.problems import (
    FAULT,
    NOT_FOUND,
    Problem,
    openai_problem_bytes,
    problem_bytes,
    unauthenticated,
)
from tenantry.web.verdicts import describe, openai_body, problem_body, verdict_headers

WIRE = Path(__file__).parents[2] / "wire"
NOON = dt.datetime(2026, 3, 1, 12, 0, 0, 500_000, tzinfo=dt.timezone(dt.timedelta(hours=2)))
VERDICTS: dict[str, Verdict] = {
    "allowed": Allowed(ActionId("act_1"), position=7),
    "denied": Denied((PolicyId("tenant/no_web@4"), PolicyId("guardrail/known_kind@1"))),
    "denied_by_an_error": Denied((PolicyId("tenant/no_web@4"),), errors=("tenant/odd: no such attribute",)),
    "denied_by_default": Denied(()),
    "throttled": Throttled(Meter("agent", "helper", MeterName.REQUESTS), 1_001),
    "throttled_by_a_gauge": Throttled(Meter("tenant", "acme", MeterName.MODEL_INFLIGHT), 0),
    "queued": Queued(12),
    "budget_exceeded": BudgetExceeded(
        Meter("tenant", "acme", MeterName.COST_MICROUSD_DAY), 100, 60, 30, 20, NOON
    ),
    "budget_exceeded_for_good": BudgetExceeded(Meter("run", "run_1", MeterName.OVERRUN), 0, 5, 0, 1, None),
    "approval_required": ApprovalRequired(ApprovalId("apr_1"), ("approver", "tenant_admin"), NOON),
    "suspended": Suspended(SwitchId("swt_1"), "killed", "workspace", "opr_1", NOON, "runaway"),
    "suspended_by_a_mode": Suspended(None, "read_only", "tenant", "prn_1", None),
    "provider_degraded": ProviderDegraded("example", 29_001),
    "unknown_outcome": UnknownOutcome(ActionId("act_1")),
}


def told(verdict: Verdict) -> bytes:
    wire = describe(verdict)
    headers = [f"{name.decode()}: {value.decode()}" for name, value in verdict_headers(wire)]
    value = {
        "status": wire.status,
        "headers": headers,
        "problem": msgspec.Raw(problem_body(wire)),
        "openai": msgspec.Raw(openai_body(wire)),
    }
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts_on_the_wire(name: str) -> None:
    golden = WIRE / f"verdict_{name}.json"
    now = told(VERDICTS[name])
    if not golden.exists():
        golden.write_bytes(now)
        pytest.fail(f"{golden.name} was missing and is written; read it")
    assert now == golden.read_bytes()


def test_every_verdict_has_a_golden_file() -> None:
    members = {type(verdict) for verdict in VERDICTS.values()}
    assert members == set(typing.get_args(Verdict))
    written = {path.stem.removeprefix("verdict_") for path in WIRE.glob("verdict_*.json")}
    assert written == set(VERDICTS)


def test_the_table_is_the_contracts() -> None:
    rows = {
        "allowed": (200, None, None),
        "denied": (403, False, None),
        "throttled": (429, True, 2),
        "queued": (202, None, None),
        "budget_exceeded": (429, False, None),
        "approval_required": (403, False, None),
        "suspended": (423, False, None),
        "provider_degraded": (503, True, 30),
        "unknown_outcome": (502, False, None),
    }
    for word, row in rows.items():
        wire = describe(VERDICTS[word])
        assert wire.word == word
        assert (wire.status, wire.should_retry, wire.retry_after_s) == row


def test_what_people_wrote_never_reaches_a_header() -> None:
    hostile = "x\r\nset-cookie: a=b"
    for verdict in (
        Suspended(SwitchId(hostile), hostile, hostile, hostile, None, hostile),
        ProviderDegraded(hostile, 10**15),
        Denied((PolicyId(hostile),)),
    ):
        for name, value in verdict_headers(describe(verdict)):
            assert b"\r" not in name + value
            assert b"\n" not in name + value
    assert dict(verdict_headers(describe(ProviderDegraded("x", 10**15))))[b"retry-after"] == b"86400"


PROBLEMS: dict[str, Problem] = {
    "not_found": NOT_FOUND,
    "internal_error": FAULT,
    "unauthenticated": unauthenticated(),
    "invalid_input": Problem(400, "invalid_input", "the request is not valid", "too long", "$.a[0]"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_on_the_wire(name: str) -> None:
    golden = WIRE / f"problem_{name}.json"
    problem = PROBLEMS[name]
    value = {
        "problem": msgspec.Raw(problem_bytes(problem)),
        "openai": msgspec.Raw(openai_problem_bytes(problem)),
    }
    now = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    if not golden.exists():
        golden.write_bytes(now)
        pytest.fail(f"{golden.name} was missing and is written; read it")
    assert now == golden.read_bytes()


def test_not_found_names_nothing() -> None:
    assert set(msgspec.json.decode(problem_bytes(NOT_FOUND))) == {"type", "title", "status"}
