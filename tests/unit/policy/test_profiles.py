from __future__ import annotations

import importlib.resources

import pytest
from tests.unit.policy.samples import ACTIONS, OPEN, model_call, request

from tenantry.core.errors import InvalidInputError
from tenantry.core.principal import Role
from tenantry.policy.engine import PolicyEngine
from tenantry.policy.schema import (
    FIXED_ACTIONS,
    GROUPS,
    KINDS,
    READY_PROFILES,
    RISKS,
    DeclaredAction,
    guardrail_text,
    profile_text,
)
from tenantry.policy.validate import check


def ready(profile: str, actions: dict[str, DeclaredAction] = ACTIONS) -> PolicyEngine:
    layers = {"guardrail": guardrail_text(), "tenant": OPEN, "profile/careful": profile_text(profile)}
    return PolicyEngine(layers, 1, actions)


@pytest.mark.parametrize("profile", READY_PROFILES)
def test_ready_profiles_and_guardrails_hold_for_any_tenant(profile: str) -> None:
    layers = {"guardrail": guardrail_text(), f"profile/{profile}": profile_text(profile)}
    assert check(layers, {}) == []
    assert check(layers, ACTIONS) == []


def test_every_profile_file_is_listed() -> None:
    folder = importlib.resources.files("tenantry.policy").joinpath("profiles")
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.cedar" for name in READY_PROFILES]


@pytest.mark.parametrize("name", ["", "closed", "../guardrails", "open.cedar"])
def test_no_other_profile_is_read(name: str) -> None:
    with pytest.raises(InvalidInputError, match="no ready profile"):
        profile_text(name)


@pytest.mark.parametrize(
    ("profile", "allowed"),
    [
        (
            "open",
            {"ticket.read", "ticket.draft", "ticket.update", "account.close", "web.fetch", "model.call"},
        ),
        ("read_only", {"ticket.read", "web.fetch", "model.call"}),
        ("no_external_web", {"ticket.read", "ticket.draft", "ticket.update", "account.close", "model.call"}),
        (
            "regulated_support",
            {"ticket.read", "ticket.draft", "ticket.update", "account.close", "model.call"},
        ),
    ],
)
def test_what_each_ready_profile_allows(profile: str, allowed: set[str]) -> None:
    policy = ready(profile)
    requests = [request(name) for name in ACTIONS if name != "web.fetch"]
    requests += [request("web.fetch", destination="example.com"), model_call()]
    assert {it.action for it in requests if policy.decide(it).effect == "allow"} == allowed


def test_regulated_support_asks_a_person_after_untrusted_input_and_for_high_risk() -> None:
    policy = ready("regulated_support")
    admin, approver = Role.TENANT_ADMIN.value, Role.APPROVER.value

    def approvers(action: str, *labels: str) -> frozenset[str]:
        return policy.decide(request(action, labels=labels)).obligations.approvers

    assert approvers("ticket.update") == frozenset()
    assert approvers("ticket.update", "untrusted") == {admin, approver}
    assert approvers("ticket.draft", "untrusted") == frozenset()
    assert approvers("account.close") == {admin}
    assert policy.decide(request()).obligations.retention_days == 30


def test_no_web_says_so_in_words() -> None:
    policy = ready("no_external_web")
    decision = policy.decide(request("web.fetch", destination="example.com"))
    assert decision.reason == ("profile/careful/no_web@1",)
    assert policy.explain(decision.reason) == ("This agent may not reach the open web.",)


def test_the_web_without_a_destination_is_stopped_by_a_guardrail() -> None:
    decision = ready("open").decide(request("web.fetch"))
    assert decision.reason == ("guardrail/web_names_its_destination@1",)


def test_guardrails_stop_unknown_risks_and_kinds_even_if_the_engine_let_them_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = ready("open")
    monkeypatch.setattr(policy, "_mismatch", lambda _: None)
    decision = policy.decide(request(risk="harmless", kind="magic"))
    assert decision.reason == ("guardrail/known_risk@1", "guardrail/known_kind@1")


def test_the_schema_and_the_guardrails_name_the_words_of_the_core() -> None:
    folder = importlib.resources.files("tenantry.policy")
    schema = folder.joinpath("tenantry.cedarschema").read_text("utf-8")
    assert all(f'"{group}"' in schema for group in GROUPS)
    guardrails = guardrail_text()
    assert all(f'"{word}"' in guardrails for word in KINDS | RISKS)


def test_the_platforms_own_actions_are_every_tenants() -> None:
    assert set(FIXED_ACTIONS) == {"model.call", "run.start"}
    decision = ready("open", {}).decide(request("run.start", kind="run", risk="read"))
    assert decision.effect == "allow"
