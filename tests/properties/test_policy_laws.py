"""Laws of policy, over generated layers and requests, with plain Cedar as the judge where it has a word."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policy.samples import ACTIONS, model_call, request

from tenantry.core.decision import Decision, Obligations
from tenantry.policy.engine import PolicyEngine
from tenantry.policy.obligations import join_obligations
from tenantry.policy.request import PolicyRequest, canonical_bytes

LAYERS = ("tenant", "workspace/ops", "profile/careful")
CONDITIONS = (
    "true",
    "false",
    'context.risk == "write"',
    'action in Action::"kind/tool"',
    'principal.agent_class == "support"',
    'context.labels.contains("untrusted")',
    'context has destination && context.destination like "*.example.com"',
    'context.record_id == "zd_1"',
    'resource == System::"zendesk"',
    'context.principal_id == "prn_1"',
)
FAILS = 'Agent::"ghost".agent_class == "x"'
ANNOTATIONS = ("", '@approval("tenant_admin")', '@approval("tenant_admin,approver")', '@retention_days("7")')


class Rule(msgspec.Struct, frozen=True):
    effect: str
    condition: str
    note: str = ""


def text(rules: Sequence[Rule]) -> str:
    return "\n".join(
        f'@id("p{n}") {rule.note if rule.effect == "permit" else ""} '
        f"{rule.effect} (principal, action, resource) when {{ {rule.condition} }};"
        for n, rule in enumerate(rules)
    )


@functools.lru_cache(maxsize=512)
def built(layers: tuple[tuple[str, tuple[Rule, ...]], ...], cached_rulings: int) -> PolicyEngine:
    return PolicyEngine(
        {name: text(rules) for name, rules in layers}, 7, ACTIONS, cached_rulings=cached_rulings
    )


def decide(layers: dict[str, tuple[Rule, ...]], asked: PolicyRequest, cached_rulings: int = 16) -> Decision:
    return built(tuple(sorted(layers.items())), cached_rulings).decide(asked)


rules = st.builds(
    Rule,
    effect=st.sampled_from(["permit", "permit", "permit", "forbid"]),
    condition=st.sampled_from(CONDITIONS),
    note=st.sampled_from(ANNOTATIONS),
)
rule_sets = st.lists(rules, max_size=4).map(tuple)
layer_sets = st.fixed_dictionaries({"tenant": rule_sets}, optional=dict.fromkeys(LAYERS[1:], rule_sets))
requests = st.builds(
    lambda action, labels, destination, record, principal, model: (
        model_call(labels=labels)
        if model
        else request(
            action,
            labels=labels,
            destination=destination,
            target_record_id=record,
            principal_id=principal,
        )
    ),
    action=st.sampled_from(sorted(ACTIONS)),
    labels=st.lists(st.sampled_from(["untrusted", "pii", "a"]), max_size=3).map(tuple),
    destination=st.sampled_from([None, "docs.example.com", "evil.test"]),
    record=st.sampled_from(["zd_1", "zd_2"]),
    principal=st.sampled_from(["prn_1", "prn_2"]),
    model=st.booleans(),
)


@given(layer_sets, rule_sets, st.sampled_from(LAYERS), requests)
def test_a_layer_that_is_added_never_widens(
    layers: dict[str, tuple[Rule, ...]], added: tuple[Rule, ...], where: str, asked: PolicyRequest
) -> None:
    without = {name: policies for name, policies in layers.items() if name != where}
    if not any(rule.effect == "permit" for policies in without.values() for rule in policies):
        return  # nothing is permitted yet, so the first permit is not a widening by a lower layer
    if decide(without, asked).effect == "deny":
        assert decide({**without, where: added}, asked).effect == "deny"


@given(layer_sets, st.sampled_from(LAYERS), st.sampled_from(CONDITIONS), requests)
def test_a_forbid_wins_wherever_it_stands(
    layers: dict[str, tuple[Rule, ...]], where: str, condition: str, asked: PolicyRequest
) -> None:
    alone: dict[str, tuple[Rule, ...]] = {"tenant": (Rule("permit", condition),)}
    if decide(alone, asked).effect == "deny":
        return
    forbidding = {**layers, where: (*layers.get(where, ()), Rule("forbid", condition))}
    decision = decide(forbidding, asked)
    assert decision.effect == "deny"
    assert f"{where}/p{len(forbidding[where]) - 1}@7" in decision.reason


@given(layer_sets, st.sampled_from(LAYERS), st.sampled_from(["permit", "forbid"]), requests)
def test_any_error_denies(
    layers: dict[str, tuple[Rule, ...]], where: str, effect: str, asked: PolicyRequest
) -> None:
    broken = {**layers, where: (*layers.get(where, ()), Rule(effect, FAILS))}
    decision = decide(broken, asked)
    assert decision.effect == "deny"
    assert f"{where}/p{len(broken[where]) - 1}@7" in decision.reason
    assert len(decision.errors) == 1


@given(layer_sets, st.sampled_from(LAYERS), requests)
def test_a_second_permit_never_loosens_an_obligation(
    layers: dict[str, tuple[Rule, ...]], where: str, asked: PolicyRequest
) -> None:
    before = decide(layers, asked)
    if before.effect == "deny":
        return
    after = decide({**layers, where: (*layers.get(where, ()), Rule("permit", "true"))}, asked)
    assert after.effect == "allow"
    assert after.obligations == before.obligations


@given(layer_sets, requests)
def test_an_allow_is_explained_by_permits_of_every_layer_that_has_one(
    layers: dict[str, tuple[Rule, ...]], asked: PolicyRequest
) -> None:
    decision = decide(layers, asked)
    assert decision.reason
    if decision.effect == "allow":
        named = {name.rpartition("/")[0] for name in decision.reason}
        permitting = {
            name for name, policies in layers.items() if any(rule.effect == "permit" for rule in policies)
        }
        assert named == permitting


@given(layer_sets, st.lists(requests, min_size=1, max_size=6))
def test_cached_and_uncached_answers_are_one(
    layers: dict[str, tuple[Rule, ...]], asked: list[PolicyRequest]
) -> None:
    for one in asked * 2:
        assert decide(layers, one) == decide(layers, one, cached_rulings=0)
        assert decide(layers, one).request == canonical_bytes(one)


@given(st.permutations(["untrusted", "pii", "a"]), layer_sets)
def test_the_order_of_labels_means_nothing(labels: list[str], layers: dict[str, tuple[Rule, ...]]) -> None:
    assert decide(layers, request(labels=tuple(labels))) == decide(
        layers, request(labels=("a", "pii", "untrusted"))
    )


@given(st.text(), st.text(), st.lists(st.text(), max_size=3), st.text())
def test_no_text_makes_the_engine_raise(record: str, system: str, labels: list[str], agent: str) -> None:
    asked = request(target_record_id=record, target_system=system, labels=tuple(labels), agent_id=agent)
    decision = decide({"tenant": (Rule("forbid", "true"), Rule("permit", "true"))}, asked)
    assert decision.effect == "deny"


roles = st.frozensets(st.sampled_from(["tenant_admin", "approver"]))
asks = st.builds(Obligations, approvers=roles, retention_days=st.none() | st.integers(1, 400))


@given(st.lists(asks, max_size=4), asks)
def test_joining_more_obligations_only_tightens(some: list[Obligations], more: Obligations) -> None:
    before, after = join_obligations(some), join_obligations([*some, more])
    if before is None:
        assert after is None
        return
    if after is None:
        assert not before.approvers & more.approvers
        return
    if before.approvers:
        assert after.approvers
        assert after.approvers <= before.approvers
    if before.retention_days is not None:
        assert after.retention_days is not None
        assert after.retention_days <= before.retention_days
    assert join_obligations(reversed([*some, more])) == after
