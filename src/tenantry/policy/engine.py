"""The engine: one Cedar evaluation over all layers of a request, then the rules that Cedar does not have.

A request is allowed only if all of these hold; whatever else happens, it is denied:
 1. it can be read, and its action is one of the tenant's, of the kind and risk declared;
 2. no policy failed to evaluate (Cedar alone skips a `forbid` that fails);
 3. Cedar allows: at least one permit is satisfied and no forbid is;
 4. every layer that holds a permit has one satisfied, so that a lower layer narrows and never widens;
 5. the approvals that satisfied permits ask for can be given by one person.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final, Generic, TypeVar

import cedarpy
import msgspec

from tenantry.core.decision import Decision, Obligations
from tenantry.core.ids import PolicyId
from tenantry.policy.layers import (
    GUARDRAIL,
    NO_PERMIT,
    PROFILE,
    REQUEST,
    TENANT,
    WORKSPACE,
    applicable_layers,
    policy_id,
)
from tenantry.policy.obligations import NO_OBLIGATIONS, join_obligations
from tenantry.policy.parse import Policy
from tenantry.policy.request import PolicyRequest, canonical_bytes, find_flaw
from tenantry.policy.schema import DeclaredAction, action_entities, all_actions, resource_type
from tenantry.policy.validate import parse_layers

__all__ = ["PolicyEngine", "PolicyRequest"]

CACHED_RULINGS_MAX: Final = 1_024
CACHED_BUNDLES_MAX: Final = 64
CACHED_AGENTS_MAX: Final = 256

_NUMBERED: Final = re.compile(r"policy([0-9]+)")
_FAILED: Final = re.compile(r"error while evaluating policy `policy([0-9]+)`: (.*)", re.DOTALL)

K = TypeVar("K")
V = TypeVar("V")


class _Lru(Generic[K, V]):
    """The most recently used entries, at most ``size``; 0 keeps none."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[K, V] = OrderedDict()

    def find(self, key: K) -> V | None:
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self._entries[key] = value
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)


class _Bundle(msgspec.Struct, frozen=True):
    """The policies of one combination of layers, parsed together: Cedar numbers them in this order."""

    parsed: cedarpy.PolicySet
    policies: tuple[Policy, ...]
    ids: tuple[PolicyId, ...]
    permit_layers: tuple[str, ...]
    by_record: bool
    by_principal: bool


class _Ruling(msgspec.Struct, frozen=True):
    """A decision without the request that it answers."""

    allowed: bool
    reason: tuple[PolicyId, ...]
    errors: tuple[str, ...] = ()
    obligations: Obligations = NO_OBLIGATIONS


class PolicyEngine:
    """One tenant's policies under one version, parsed once; deterministic, no I/O, never waits.

    ``layers`` maps a layer to its Cedar text, ``actions`` an action's name to its declaration;
    `FIXED_ACTIONS` are added. Raises `PolicyInvalidError` with every problem, line and column. Building costs
    about 0.6 ms a policy: beside other work, build it in a thread. Memory: at most ``cached_rulings``
    answers, 64 combinations of layers, 256 agents.
    """

    def __init__(
        self,
        layers: Mapping[str, str],
        policy_version: int,
        actions: Mapping[str, DeclaredAction],
        *,
        cached_rulings: int = CACHED_RULINGS_MAX,
    ) -> None:
        self.policy_version = policy_version
        self._layers = parse_layers(layers, actions)
        self._actions = all_actions(actions)
        self._entities = cedarpy.Entities.from_json_str(action_entities(self._actions))
        self._bundles: _Lru[tuple[str, str], _Bundle] = _Lru(CACHED_BUNDLES_MAX)
        self._agents: _Lru[tuple[str, ...], cedarpy.Entities] = _Lru(CACHED_AGENTS_MAX)
        self._rulings: _Lru[tuple[object, ...], _Ruling] = _Lru(cached_rulings)

    def decide(self, request: PolicyRequest) -> Decision:
        """Allow or deny, with the policies that decided. Never raises; whatever fails is a deny.

        ``reason`` names, for allow, every satisfied permit; for deny the forbids that matched and the
        policies that failed, else each layer whose permits were not satisfied (``layer/no_permit@version``),
        else what is wrong with the request (``request/...@version``). Costs 10 us when cached, about 1 us a
        policy when not.
        """
        canonical = b""
        try:
            canonical = canonical_bytes(request)
            ruling = self._rule(request)
        except Exception as error:  # noqa: BLE001  # no failure of ours or of Cedar's may ever mean allow
            ruling = self._refuse("failed", f"{type(error).__name__} while deciding")
        return Decision(
            effect="allow" if ruling.allowed else "deny",
            reason=ruling.reason,
            errors=ruling.errors,
            policy_version=self.policy_version,
            obligations=ruling.obligations,
            request=canonical,
        )

    def explain(self, reason: Iterable[PolicyId]) -> tuple[str, ...]:
        """The authors' words (`@reason`) for the policies of a decision, where they gave any."""
        words = {
            policy_id(policy.layer, policy.name, self.policy_version): policy.reason
            for policies in self._layers.values()
            for policy in policies
        }
        return tuple(text for name in reason if (text := words.get(name)) is not None)

    def _rule(self, request: PolicyRequest) -> _Ruling:
        flaw = find_flaw(request) or self._mismatch(request)
        if flaw is not None:
            return self._refuse(flaw)
        bundle = self._bundle(request)
        key = _key(request, bundle)
        ruling = self._rulings.find(key)
        if ruling is None:
            ruling = self._evaluate(request, bundle)
            if not ruling.errors:
                self._rulings.put(key, ruling)
        return ruling

    def _mismatch(self, request: PolicyRequest) -> str | None:
        """How a request differs from its action's declaration: a weaker risk would match weaker policies."""
        declared = self._actions.get(request.action)
        if declared is None:
            return "unknown_action"
        if (request.kind, request.risk) != (declared.kind, declared.risk):
            return "not_as_declared"
        if (request.model is None) == (declared.kind == "model"):
            return "no_model" if request.model is None else "not_as_declared"
        return None

    def _refuse(self, flaw: str, *errors: str) -> _Ruling:
        return _Ruling(allowed=False, reason=(policy_id(REQUEST, flaw, self.policy_version),), errors=errors)

    def _bundle(self, request: PolicyRequest) -> _Bundle:
        """The policies that hold for a request; unknown layers share an entry, so names fill no cache."""
        _, _, workspace, profile = applicable_layers(request.workspace_id, request.policy_profile)
        key = (
            workspace if workspace in self._layers else WORKSPACE,
            profile if profile in self._layers else PROFILE,
        )
        bundle = self._bundles.find(key)
        if bundle is None:
            bundle = self._parse((GUARDRAIL, TENANT, *key))
            self._bundles.put(key, bundle)
        return bundle

    def _parse(self, layers: Iterable[str]) -> _Bundle:
        """The policies of some layers as one set; about 0.1 ms a policy.

        Parsed from one text, since Cedar numbers policies by place only then: a set with policies added to it
        numbers them otherwise.
        """
        policies = tuple(policy for layer in layers for policy in self._layers.get(layer, ()))
        parsed = cedarpy.PolicySet.from_str("\n".join(policy.statement.text for policy in policies))
        assert len(parsed) == len(policies), "each statement is one policy"
        return _Bundle(
            parsed=parsed,
            policies=policies,
            ids=tuple(policy_id(policy.layer, policy.name, self.policy_version) for policy in policies),
            permit_layers=tuple(
                dict.fromkeys(policy.layer for policy in policies if policy.effect == "permit")
            ),
            by_record=any(policy.mentions_record for policy in policies),
            by_principal=any(policy.mentions_principal for policy in policies),
        )

    def _agent(self, request: PolicyRequest) -> cedarpy.Entities:
        """The entities of a request: all actions in their groups; the agent, in its workspace and tenant."""
        key = (
            request.tenant_id,
            request.workspace_id,
            request.agent_id,
            request.agent_class,
            request.policy_profile,
            request.trust_zone,
            request.external_account_id,
        )
        entities = self._agents.find(key)
        if entities is None:
            workspace = {"type": "Workspace", "id": request.workspace_id}
            tenant = {"type": "Tenant", "id": request.tenant_id}
            attributes = {
                "agent_class": request.agent_class,
                "workspace": request.workspace_id,
                "profile": request.policy_profile,
                "trust_zone": request.trust_zone,
                "external_account_id": request.external_account_id,
            }
            agent = {"type": "Agent", "id": request.agent_id}
            entities = self._entities.with_added_json_str(
                json.dumps(
                    [
                        {"uid": agent, "attrs": attributes, "parents": [workspace]},
                        {"uid": workspace, "attrs": {}, "parents": [tenant]},
                    ]
                )
            )
            self._agents.put(key, entities)
        return entities

    def _evaluate(self, request: PolicyRequest, bundle: _Bundle) -> _Ruling:
        context: dict[str, object] = {
            "kind": request.kind,
            "risk": request.risk,
            "record_id": request.target_record_id,
            "principal_id": request.principal_id,
            "labels": request.labels,
        }
        if request.destination is not None:
            context["destination"] = request.destination
        if request.model is not None:
            context["model"] = request.model
        resource = request.target_system if request.model is None else request.model
        answer = cedarpy.is_authorized(
            {
                "principal": {"type": "Agent", "id": request.agent_id},
                "action": {"type": "Action", "id": request.action},
                "resource": {"type": resource_type(request.kind), "id": resource},
                "context": context,
            },
            bundle.parsed,
            self._agent(request),
        )
        matched = _matched(bundle, answer.diagnostics)
        errors = answer.diagnostics.errors
        if errors or answer.decision is cedarpy.Decision.NoDecision:
            return self._failed(bundle, matched, errors)
        if answer.allowed:
            return self._allowed(bundle, matched)
        if matched:
            return _Ruling(allowed=False, reason=tuple(bundle.ids[number] for number in matched))
        return self._unpermitted(bundle.permit_layers or (TENANT,))

    def _allowed(self, bundle: _Bundle, matched: list[int]) -> _Ruling:
        """Cedar allows: all satisfied permits are known, so layers and obligations can be held to them."""
        permits = [bundle.policies[number] for number in matched]
        assert permits and all(permit.effect == "permit" for permit in permits)  # noqa: PT018
        satisfied = {permit.layer for permit in permits}
        if len(satisfied) < len(bundle.permit_layers):
            return self._unpermitted(layer for layer in bundle.permit_layers if layer not in satisfied)
        reason = tuple(bundle.ids[number] for number in matched)
        obligations = join_obligations(permit.obligations for permit in permits)
        if obligations is None:
            conflict = policy_id(REQUEST, "no_common_approver", self.policy_version)
            return _Ruling(allowed=False, reason=(conflict, *reason))
        return _Ruling(allowed=True, reason=reason, obligations=obligations)

    def _unpermitted(self, layers: Iterable[str]) -> _Ruling:
        reason = tuple(policy_id(layer, NO_PERMIT, self.policy_version) for layer in layers)
        return _Ruling(allowed=False, reason=reason)

    def _failed(self, bundle: _Bundle, matched: list[int], errors: list[str]) -> _Ruling:
        """Some policy failed, or Cedar did: those that failed decided, with the forbids that matched."""
        culprits = {number for number in matched if bundle.policies[number].effect == "forbid"}
        told: list[str] = []
        for error in errors:
            failed = _FAILED.fullmatch(error)
            if failed is None:
                told.append(error)
            else:
                number = int(failed.group(1))
                culprits.add(number)
                told.append(f"{bundle.ids[number]}: {failed.group(2)}")
        if not culprits:
            return self._refuse("failed", *(sorted(told) or ["no decision"]))
        reason = tuple(bundle.ids[number] for number in sorted(culprits))
        return _Ruling(allowed=False, reason=reason, errors=tuple(sorted(told)))


def _matched(bundle: _Bundle, diagnostics: cedarpy.Diagnostics) -> list[int]:
    """The numbers of the policies that Cedar names as deciding, in order.

    Cedar's own reading of `@id` must agree with ours for each, or the numbers mean something else.
    """
    names = diagnostics.id_annotations_by_reason
    numbers: list[int] = []
    for given in diagnostics.reasons:
        numbered = _NUMBERED.fullmatch(given)
        assert numbered is not None, "policies are numbered"
        number = int(numbered.group(1))
        assert names.get(given) == bundle.policies[number].name, "numbers and names agree"
        numbers.append(number)
    return sorted(numbers)


def _key(request: PolicyRequest, bundle: _Bundle) -> tuple[object, ...]:
    """All that the answer can depend on under one version. Kind and risk follow from the action."""
    return (
        request.tenant_id,
        request.workspace_id,
        request.agent_id,
        request.agent_class,
        request.policy_profile,
        request.trust_zone,
        request.external_account_id,
        request.action,
        request.target_system,
        request.destination,
        request.model,
        frozenset(request.labels),
        request.target_record_id if bundle.by_record else None,
        request.principal_id if bundle.by_principal else None,
    )
