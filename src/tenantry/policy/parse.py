"""One policy as we know it: its name, its effect, what it asks for. Its conditions are Cedar's alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

import cedarpy
import msgspec

from tenantry.core.decision import Obligations
from tenantry.policy.layers import GUARDRAIL, RESERVED_NAMES, is_name
from tenantry.policy.obligations import (
    APPROVAL,
    NO_OBLIGATIONS,
    RETENTION_DAYS,
    parse_approvers,
    parse_retention_days,
)
from tenantry.policy.places import syntax_fault
from tenantry.policy.source import Fault, Statement

REASON_CHARS_MAX: Final = 300
# Levels of Cedar's JSON form, two for an expression inside another: 100 expressions, as its own tools bound.
_JSON_LEVELS_MAX: Final = 210
_ANNOTATIONS: Final = frozenset({"id", "reason", APPROVAL, RETENTION_DAYS})
_JSON_STRING: Final = re.compile(r'"(?:\\.|[^"\\])*+"')
_JSON_SHUT: Final = re.compile(r"[^][{}]+")


class Policy(msgspec.Struct, frozen=True):
    """One policy: where it stands, what it asks for, and its text for Cedar.

    ``actions`` are the actions and groups that it names, with their offsets; ``mentions_record`` and
    ``mentions_principal`` say whether the answer can depend on those two.
    """

    layer: str
    name: str
    effect: Literal["permit", "forbid"]
    obligations: Obligations
    reason: str | None
    statement: Statement
    actions: tuple[tuple[str, int], ...]
    mentions_record: bool
    mentions_principal: bool


class _Head(msgspec.Struct, frozen=True):
    """What we read of Cedar's JSON form of a policy; of its conditions only which names stand in them."""

    effect: Literal["permit", "forbid"]
    conditions: msgspec.Raw
    annotations: dict[str, str | None] = {}


class _Form(msgspec.Struct, frozen=True, rename="camel"):
    """Cedar's JSON form of a text: policies by number (``policy0``), in the order written."""

    static_policies: dict[str, _Head]
    templates: dict[str, msgspec.Raw]


_FORM: Final = msgspec.json.Decoder(_Form)


def read_policies(layer: str, statements: list[Statement]) -> tuple[list[Policy], list[Fault]]:
    """Read a layer's measured statements: the sound ones, and what is wrong with the others.

    One parse for all when all is well; only to say which one is at fault is each parsed alone.
    """
    policies: list[Policy] = []
    faults: list[Fault] = []
    for statement, head in zip(statements, _heads(statements), strict=True):
        if isinstance(head, Fault):
            faults.append(head)
            continue
        try:
            policies.append(_policy(layer, statement, head))
        except ValueError as error:
            faults.append(Fault(statement.start, str(error)))
    return policies, faults


def _heads(statements: list[Statement]) -> list[_Head | Fault]:
    """What Cedar reads, a head or a fault for each statement."""
    try:
        form = cedarpy.policies_to_json_str("\n".join(statement.text for statement in statements))
    except ValueError:
        return [_head(statement) for statement in statements]
    if _json_levels(form) <= _JSON_LEVELS_MAX:
        tree = _FORM.decode(form)
        if not tree.templates and len(tree.static_policies) == len(statements):
            return [tree.static_policies[f"policy{number}"] for number in range(len(statements))]
    return [_head(statement) for statement in statements]


def _head(statement: Statement) -> _Head | Fault:
    """Read one statement alone, to find what is wrong and where."""
    try:
        form = cedarpy.policies_to_json_str(statement.text)
    except ValueError as error:
        return syntax_fault(statement, str(error))
    if _json_levels(form) > _JSON_LEVELS_MAX:
        message = (
            "more than 100 expressions inside one another; use a set with `contains`, or several policies"
        )
        return Fault(statement.start, message)
    tree = _FORM.decode(form)
    if tree.templates or len(tree.static_policies) != 1:
        return Fault(statement.start, "templates (`?principal`, `?resource`) are not supported")
    return tree.static_policies["policy0"]


def _policy(layer: str, statement: Statement, head: _Head) -> Policy:
    """Raises ValueError, in words for the author, for a name or an annotation that is wrong."""
    notes = {key: value or "" for key, value in head.annotations.items()}
    conditions = bytes(head.conditions)
    return Policy(
        layer=layer,
        name=_name(notes),
        effect=head.effect,
        obligations=_obligations(layer, head.effect, notes),
        reason=_reason(notes),
        statement=statement,
        actions=_named_actions(statement),
        mentions_record=b'"record_id"' in conditions,
        mentions_principal=b'"principal_id"' in conditions,
    )


def _json_levels(form: str) -> int:
    """How deep Cedar's JSON form nests, without recursion; 0 when it is too short to nest too deep."""
    if form.count("{") + form.count("[") <= _JSON_LEVELS_MAX:
        return 0
    level = deepest = 0
    for sign in _JSON_SHUT.sub("", _JSON_STRING.sub("", form)):
        level += 1 if sign in "[{" else -1
        deepest = max(deepest, level)
    return deepest


def _name(notes: Mapping[str, str]) -> str:
    if "id" not in notes:
        msg = 'every policy needs a name: @id("words_like_this")'
        raise ValueError(msg)
    name = notes["id"]
    if not is_name(name):
        msg = (
            f"@id is 1 to 63 of a-z, 0-9, _, . and -, and begins with a letter or a digit, not {name[:100]!a}"
        )
        raise ValueError(msg)
    if name in RESERVED_NAMES:
        msg = f'@id("{name}") is the platform\'s own; choose another'
        raise ValueError(msg)
    return name


def _obligations(layer: str, effect: str, notes: Mapping[str, str]) -> Obligations:
    unknown = sorted(notes.keys() - _ANNOTATIONS)
    if unknown:
        known = ", ".join(f"@{name}" for name in sorted(_ANNOTATIONS))
        msg = f"no such annotation: @{unknown[0][:100]}; there are {known}"
        raise ValueError(msg)
    if layer == GUARDRAIL and effect == "permit":
        msg = "guardrails only forbid; a permit belongs in a tenant's layers"
        raise ValueError(msg)
    asked = {APPROVAL, RETENTION_DAYS} & notes.keys()
    if not asked:
        return NO_OBLIGATIONS
    if effect == "forbid":
        msg = f"a forbid cannot ask for anything; @{min(asked)} belongs on a permit"
        raise ValueError(msg)
    return Obligations(
        approvers=parse_approvers(notes[APPROVAL]) if APPROVAL in notes else frozenset(),
        retention_days=parse_retention_days(notes[RETENTION_DAYS]) if RETENTION_DAYS in notes else None,
    )


def _reason(notes: Mapping[str, str]) -> str | None:
    reason = notes.get("reason")
    if reason is not None and not (reason.isprintable() and 1 <= len(reason) <= REASON_CHARS_MAX):
        msg = f"@reason is one line of 1 to {REASON_CHARS_MAX} printable characters"
        raise ValueError(msg)
    return reason


def _named_actions(statement: Statement) -> tuple[tuple[str, int], ...]:
    """Every `Action::"name"`. Names never need an escape, so one that holds any names nothing we know."""
    tokens = statement.tokens
    return tuple(
        (name.text[1:-1], name.start)
        for entity, colons, name in zip(tokens, tokens[1:], tokens[2:], strict=False)
        if entity.text == "Action" and colons.text == "::" and name.kind == "string"
    )
