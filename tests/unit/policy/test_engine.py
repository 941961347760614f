from __future__ import annotations

import cedarpy
import msgspec
import pytest
from tests.unit.policy.samples import ACTIONS, OPEN, altered, engine, model_call, request

from tenantry.core.decision import Obligations
from tenantry.core.errors import InvalidInputError
from tenantry.policy.engine import PolicyEngine
from tenantry.policy.schema import DeclaredAction, guardrail_text

# Sound for the validator, and an error whenever it is evaluated: no such agent is ever known.
BROKEN = '@id("broken") forbid (principal, action, resource) when { Agent::"ghost".agent_class == "x" };'
OVERFLOW = """@id("overflow") permit (principal, action, resource)
when { if context.risk == "write" then 9223372036854775807 + 1 > 0 else true };"""


def test_allow_names_every_satisfied_permit_in_order_of_layer() -> None:
    policy = engine(tenant=OPEN, workspace__ops=OPEN, profile__careful=OPEN, profile__other=OPEN)
    decision = policy.decide(request())
    assert decision.effect == "allow"
    assert decision.reason == ("tenant/open@3", "workspace/ops/open@3", "profile/careful/open@3")
    assert decision.errors == ()
    assert decision.policy_version == 3


def test_nothing_is_allowed_where_nothing_is_permitted() -> None:
    assert engine().decide(request()).reason == ("tenant/no_permit@3",)
    assert engine(guardrail=guardrail_text()).decide(request()).effect == "deny"


def test_a_lower_layer_narrows_what_a_higher_one_allows() -> None:
    reads = '@id("reads") permit (principal, action in Action::"risk/read", resource);'
    policy = engine(tenant=OPEN, workspace__ops=reads)
    assert policy.decide(request("ticket.read")).effect == "allow"
    decision = policy.decide(request("ticket.update"))
    assert (decision.effect, decision.reason) == ("deny", ("workspace/ops/no_permit@3",))


def test_a_lower_layer_never_widens() -> None:
    reads = '@id("reads") permit (principal, action in Action::"risk/read", resource);'
    decision = engine(tenant=reads, profile__careful=OPEN).decide(request("ticket.update"))
    assert (decision.effect, decision.reason) == ("deny", ("tenant/no_permit@3",))


def test_every_layer_that_lacks_a_permit_is_named() -> None:
    reads = '@id("reads") permit (principal, action in Action::"risk/read", resource);'
    decision = engine(tenant=reads, workspace__ops=reads, profile__careful=reads).decide(request())
    assert decision.reason == (
        "tenant/no_permit@3",
        "workspace/ops/no_permit@3",
        "profile/careful/no_permit@3",
    )


def test_a_layer_of_forbids_alone_asks_for_no_permit() -> None:
    forbids = '@id("no_web") forbid (principal, action in Action::"reach/web", resource);'
    policy = engine(tenant=OPEN, profile__careful=forbids)
    assert policy.decide(request()).effect == "allow"
    decision = policy.decide(request("web.fetch", destination="example.com"))
    assert (decision.effect, decision.reason) == ("deny", ("profile/careful/no_web@3",))


def test_layers_of_other_workspaces_and_profiles_do_not_hold() -> None:
    never = '@id("never") forbid (principal, action, resource);'
    policy = engine(tenant=OPEN, workspace__other=never, profile__other=never)
    assert policy.decide(request()).effect == "allow"
    assert policy.decide(request(workspace_id="other")).reason == ("workspace/other/never@3",)
    assert policy.decide(request(policy_profile="other")).reason == ("profile/other/never@3",)


def test_a_forbid_that_fails_denies_though_cedar_alone_allows() -> None:
    policy = engine(tenant=OPEN + BROKEN)
    bundle = policy._bundle(request())
    alone = cedarpy.is_authorized(
        {
            "principal": {"type": "Agent", "id": "triage"},
            "action": {"type": "Action", "id": "ticket.update"},
            "resource": {"type": "System", "id": "zendesk"},
            "context": {},
        },
        bundle.parsed,
        "[]",
    )
    assert alone.allowed
    decision = policy.decide(request())
    assert decision.effect == "deny"
    assert decision.reason == ("tenant/broken@3",)
    assert decision.errors == ('tenant/broken@3: entity `Agent::"ghost"` does not exist',)


def test_a_permit_that_fails_denies_beside_one_that_holds() -> None:
    policy = engine(tenant=OPEN, workspace__ops=OVERFLOW)
    assert policy.decide(request("ticket.read")).effect == "allow"
    decision = policy.decide(request("ticket.update"))
    assert decision.effect == "deny"
    assert decision.reason == ("workspace/ops/overflow@3",)
    assert "integer overflow" in decision.errors[0]


def test_an_error_is_told_beside_the_forbid_that_matched() -> None:
    never = '@id("never") forbid (principal, action, resource);'
    decision = engine(tenant=OPEN + BROKEN, profile__careful=never).decide(request())
    assert decision.reason == ("tenant/broken@3", "profile/careful/never@3")
    assert len(decision.errors) == 1


def test_errors_of_layers_that_do_not_hold_change_nothing() -> None:
    assert engine(tenant=OPEN, profile__other=BROKEN).decide(request()).effect == "allow"


def test_a_permit_without_approval_does_not_cancel_one_with_it() -> None:
    asks = '@id("asks") @approval("tenant_admin,approver") permit (principal, action, resource);'
    decision = engine(tenant=OPEN + asks, profile__careful=OPEN).decide(request())
    assert decision.obligations == Obligations(approvers=frozenset({"tenant_admin", "approver"}))


def test_the_strictest_obligation_of_each_kind_wins_over_all_layers() -> None:
    policy = engine(
        tenant='@id("a") @approval("tenant_admin, approver") @retention_days("90")'
        " permit (principal, action, resource);",
        profile__careful='@id("b") @approval("tenant_admin") @retention_days("7")'
        " permit (principal, action, resource);",
    )
    decision = policy.decide(request())
    assert decision.obligations == Obligations(approvers=frozenset({"tenant_admin"}), retention_days=7)


def test_approvals_that_no_one_person_can_give_deny() -> None:
    policy = engine(
        tenant='@id("a") @approval("tenant_admin") permit (principal, action, resource);',
        profile__careful='@id("b") @approval("approver") permit (principal, action, resource);',
    )
    decision = policy.decide(request())
    assert decision.effect == "deny"
    assert decision.reason == ("request/no_common_approver@3", "tenant/a@3", "profile/careful/b@3")
    assert decision.obligations == Obligations()


@pytest.mark.parametrize(
    ("condition", "allowed"),
    [
        ('principal.agent_class == "support"', True),
        ('principal.workspace == "ops" && principal.profile == "careful"', True),
        ('principal.trust_zone == "restricted"', False),
        ('principal.external_account_id == "acc_7"', True),
        ('principal == Agent::"triage"', True),
        ('principal in Workspace::"ops" && principal in Tenant::"borealis"', True),
        ('principal in Tenant::"dunes"', False),
        ('resource == System::"zendesk"', True),
        ('resource == Model::"zendesk"', False),
        ('action in Action::"kind/tool" && action in Action::"risk/write"', True),
        ('action in Action::"reach/web"', False),
        ('context.kind == "tool" && context.risk == "write"', True),
        ('context.record_id like "zd_*"', True),
        ('context.principal_id == "prn_1"', True),
        ('context.labels.contains("pii")', True),
        ("context has destination || context has model", False),
    ],
)
def test_a_policy_can_speak_of_all_that_the_schema_declares(*, condition: str, allowed: bool) -> None:
    policy = engine(tenant=f'@id("it") permit (principal, action, resource) when {{ {condition} }};')
    decision = policy.decide(request(labels=("untrusted", "pii")))
    assert decision.effect == ("allow" if allowed else "deny")
    assert decision.errors == ()


def test_destinations_and_models_are_decided_on() -> None:
    policy = engine(
        tenant="""
        @id("hosts") permit (principal, action in Action::"reach/web", resource)
        when { context has destination && context.destination like "*.example.com" };
        @id("models") permit (principal, action == Action::"model.call", resource == Model::"gpt-small");
        """
    )
    assert policy.decide(request("web.fetch", destination="docs.example.com")).effect == "allow"
    assert policy.decide(request("web.fetch", destination="evil.test")).effect == "deny"
    assert policy.decide(request("web.fetch")).effect == "deny"
    assert policy.decide(model_call()).effect == "allow"
    assert policy.decide(model_call(model="gpt-large")).effect == "deny"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"action": "ticket.delete"}, "request/unknown_action@3"),
        ({"action": "kind/tool"}, "request/unknown_action@3"),
        ({"action": "stand-in/system"}, "request/unknown_action@3"),
        ({"action": ""}, "request/unknown_action@3"),
        ({"risk": "read"}, "request/not_as_declared@3"),
        ({"risk": "harmless"}, "request/not_as_declared@3"),
        ({"kind": "model"}, "request/not_as_declared@3"),
        ({"model": "gpt-small"}, "request/not_as_declared@3"),
        ({"target_record_id": "a\0b"}, "request/unreadable@3"),
        ({"labels": ("pii\0",)}, "request/unreadable@3"),
        ({"agent_id": "\ud800"}, "request/unreadable@3"),
        ({"destination": "\udfff.example.com"}, "request/unreadable@3"),
        ({"target_record_id": "x" * 2_049}, "request/too_large@3"),
        ({"target_record_id": "x" * 5_000_000}, "request/too_large@3"),
        ({"target_system": "x" * 256}, "request/too_large@3"),
        ({"labels": tuple(str(n) for n in range(65))}, "request/too_large@3"),
        ({"labels": ("x" * 256,)}, "request/too_large@3"),
        ({"labels": None}, "request/failed@3"),
        ({"agent_id": None}, "request/failed@3"),
        ({"principal_id": 7}, "request/failed@3"),
        ({"target_record_id": ["a"]}, "request/failed@3"),
    ],
)
def test_what_cannot_be_decided_on_is_denied_and_never_raises(
    changes: dict[str, object], reason: str
) -> None:
    decision = engine(tenant=OPEN).decide(altered(changes))
    assert (decision.effect, decision.reason) == ("deny", (reason,))


def test_a_model_call_without_a_model_is_denied() -> None:
    assert engine(tenant=OPEN).decide(model_call(model=None)).reason == ("request/no_model@3",)


@pytest.mark.parametrize(
    "hostile",
    [
        '"',
        '\\"',
        "a\nb",
        "Agent::",
        '"},"type":"System',
        "é\U0001f600",
        "{}",
        "/",
        "",
        "'; --",
        "\u202e",
        "\x7f",
    ],
)
def test_ids_of_any_letters_mean_themselves(hostile: str) -> None:
    policy = engine(
        tenant='@id("one") permit (principal == Agent::"triage", action, resource == System::"zendesk");',
    )
    assert policy.decide(request(target_record_id=hostile, external_account_id=hostile)).effect == "allow"
    assert policy.decide(request(agent_id=hostile)).effect == "deny"
    assert policy.decide(request(target_system=hostile)).effect == "deny"
    assert policy.decide(request(workspace_id=hostile, policy_profile=hostile)).errors == ()


def test_a_workspace_cannot_borrow_a_layer_by_its_name() -> None:
    policy = engine(tenant=OPEN, workspace__ops='@id("no") forbid (principal, action, resource);')
    for name in ("ops/", "/ops", "../workspace/ops", "OPS", "ops\n"):
        assert policy.decide(request(workspace_id=name)).reason == ("tenant/open@3",)


def test_ids_of_many_policies_keep_to_their_layers() -> None:
    tenant = "".join(f'@id("p{n}") permit (principal, action, resource);\n' for n in range(40))
    own = "".join(
        f'@id("p{n}") forbid (principal, action, resource) when {{ context.record_id == "r{n}" }};'
        for n in range(40)
    )
    policy = engine(tenant=tenant, profile__careful=own)
    for n in (0, 9, 10, 39):
        assert policy.decide(request(target_record_id=f"r{n}")).reason == (f"profile/careful/p{n}@3",)


def test_the_request_is_kept_in_canonical_form() -> None:
    policy = engine(tenant=OPEN)
    kept = policy.decide(request(labels=("b", "a", "b"))).request
    assert kept == policy.decide(request(labels=("a", "b"))).request
    fields = msgspec.json.decode(kept)
    assert list(fields) == sorted(fields)
    assert fields["labels"] == ["a", "b"]
    assert (fields["run_id"], fields["target_record_id"]) == ("run_1", "zd_99102")
    assert policy.decide(request(run_id="run_2")).request != kept


def test_a_cached_answer_keeps_the_request_it_answers() -> None:
    policy = engine(tenant=OPEN)
    policy.decide(request(target_record_id="a"))
    assert (
        msgspec.json.decode(policy.decide(request(target_record_id="b")).request)["target_record_id"] == "b"
    )
    assert len(policy._rulings) == 1


def test_records_and_principals_part_answers_only_where_policies_mention_them() -> None:
    spelled = '@id("it") permit (principal, action, resource) when { context["record\\u{5f}id"] == "a" };'
    policy = engine(tenant=spelled)
    assert policy.decide(request(target_record_id="a")).effect == "allow"
    assert policy.decide(request(target_record_id="b")).effect == "deny"
    policy = engine(tenant=OPEN, profile__careful=spelled.replace("record", "principal"))
    assert policy.decide(request(principal_id="a")).effect == "allow"
    assert policy.decide(request(principal_id="b")).effect == "deny"


def test_answers_with_errors_are_not_kept() -> None:
    policy = engine(tenant=OPEN + BROKEN)
    policy.decide(request())
    assert len(policy._rulings) == 0


def test_caches_are_bounded() -> None:
    policy = engine(tenant=OPEN, cached_rulings=8)
    for n in range(300):
        name = f"w{n}"
        policy.decide(request(agent_id=name, workspace_id=name, policy_profile=name))
    assert len(policy._rulings) == 8
    assert len(policy._agents) == 256
    assert len(policy._bundles) == 1


def test_without_a_cache_nothing_is_kept() -> None:
    policy = engine(tenant=OPEN, cached_rulings=0)
    assert policy.decide(request()).effect == "allow"
    assert len(policy._rulings) == 0


def test_an_engine_failure_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(cedarpy, "is_authorized", fail)
    decision = engine(tenant=OPEN).decide(request())
    assert (decision.effect, decision.reason) == ("deny", ("request/failed@3",))
    assert decision.errors == ("RuntimeError while deciding",)


def test_policies_numbered_otherwise_than_believed_deny() -> None:
    policy = engine(tenant=OPEN, profile__careful='@id("other") permit (principal, action, resource);')
    bundle = policy._bundle(request())
    swapped = msgspec.structs.replace(bundle, policies=bundle.policies[::-1])
    policy._bundles.put(("workspace", "profile/careful"), swapped)
    assert policy.decide(request()).reason == ("request/failed@3",)


def test_the_authors_words_are_found_again() -> None:
    policy = engine(tenant='@id("a") @reason("Closed on Sundays.") forbid (principal, action, resource);')
    assert policy.explain(policy.decide(request()).reason) == ("Closed on Sundays.",)
    assert policy.explain(engine(tenant=OPEN).decide(request()).reason) == ()


@pytest.mark.parametrize(
    "actions",
    [
        {"Kind/tool": DeclaredAction(kind="tool", risk="read")},
        {"kind/tool": DeclaredAction(kind="tool", risk="read")},
        {'x"; action y': DeclaredAction(kind="tool", risk="read")},
        {"model.call": DeclaredAction(kind="tool", risk="read")},
        {"x": DeclaredAction(kind="tool", risk="harmless")},  # type: ignore[arg-type]
        {"": DeclaredAction(kind="tool", risk="read")},
    ],
)
def test_actions_with_names_that_mean_something_else_are_refused(
    actions: dict[str, DeclaredAction],
) -> None:
    with pytest.raises(InvalidInputError, match="name|unknown"):
        PolicyEngine({"tenant": OPEN}, 1, actions)


@pytest.mark.parametrize(
    "layer", ["", "run", "workspace", "workspace/", "profile/A b", "profile/a/b", "Tenant"]
)
def test_layers_that_do_not_exist_are_refused(layer: str) -> None:
    with pytest.raises(InvalidInputError):
        PolicyEngine({layer: OPEN}, 1, ACTIONS)
