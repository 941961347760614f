"""Checking policies before they hold: syntax, names, annotations, then Cedar's strict validator.

The validator refuses an unguarded optional attribute, an unknown one, and any comparison of different types.
What it says is told with layer, line and column, in words for the author.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import cedarpy
import msgspec

from tenantry.core.errors import InvalidInputError
from tenantry.policy.layers import GUARDRAIL, check_layer_name, is_name, layer_path
from tenantry.policy.parse import Policy, read_policies
from tenantry.policy.places import Place, find_named, place_of
from tenantry.policy.schema import GROUPS, DeclaredAction, all_actions, schema_for
from tenantry.policy.source import Fault, Statement, split_statements

PROBLEMS_MAX: Final = 100
MESSAGE_CHARS_MAX: Final = 400
_POLICY: Final = re.compile(r"for policy `policy[0-9]+`, ")
_IN_ACTION: Final = re.compile(r' for Action::"(?:[^"\\]|\\.)*"')

_UNMATCHED: Final = (
    "no action can ever match this policy's head: a group needs `action in`; a model call has a `Model` as "
    "resource, all else a `System`"
)


class Problem(msgspec.Struct, frozen=True):
    """One thing wrong with a layer; ``line`` and ``column`` count from 1."""

    layer: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.layer}:{self.line}:{self.column}: {self.message}"


class PolicyInvalidError(InvalidInputError):
    """A layer's text may not hold; ``path`` names the layer, ``problems`` all that was found."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}", path=layer_path(problems[0].layer))
        self.problems = problems


def check(layers: Mapping[str, str], actions: Mapping[str, DeclaredAction]) -> list[Problem]:
    """All that is wrong with a tenant's layers, in order of layer and place; empty: they may hold.

    At most `PROBLEMS_MAX`. Costs about 0.6 ms a policy; no I/O. Raises `InvalidInputError` for a layer's or
    an action's name that is none.
    """
    return _examine(layers, actions)[1]


def parse_layers(
    layers: Mapping[str, str], actions: Mapping[str, DeclaredAction]
) -> dict[str, tuple[Policy, ...]]:
    """The policies of each layer, in the order written. Raises `PolicyInvalidError`."""
    policies, problems = _examine(layers, actions)
    if problems:
        raise PolicyInvalidError(tuple(problems))
    return policies


def _examine(
    layers: Mapping[str, str], actions: Mapping[str, DeclaredAction]
) -> tuple[dict[str, tuple[Policy, ...]], list[Problem]]:
    known = all_actions(actions)
    parsed: dict[str, tuple[Policy, ...]] = {}
    faults: list[tuple[str, Fault]] = []
    for layer in sorted(layers):
        check_layer_name(layer)
        parsed[layer], found = _read_layer(layer, layers[layer], known)
        faults += ((layer, fault) for fault in found)
    faults += _validate(parsed, known)
    return parsed, _tell(faults, layers)


def _tell(faults: list[tuple[str, Fault]], layers: Mapping[str, str]) -> list[Problem]:
    """Faults as problems, each once, in order of layer and place."""
    problems: dict[Problem, None] = {}
    for layer, fault in sorted(faults, key=lambda item: (item[0], item[1].offset, item[1].message)):
        place = Place(1, 1) if fault.offset == 0 else place_of(layers[layer], fault.offset)
        problems.setdefault(Problem(layer, place.line, place.column, fault.message[:MESSAGE_CHARS_MAX]))
    return list(problems)[:PROBLEMS_MAX]


def _read_layer(
    layer: str, text: str, known: Mapping[str, DeclaredAction]
) -> tuple[tuple[Policy, ...], list[Fault]]:
    """The sound policies of one layer and what is wrong with the others."""
    statements, faults = split_statements(text)
    policies, unsound = read_policies(layer, statements)
    faults += unsound
    names: set[str] = set()
    for policy in policies:
        faults += _unknown_actions(policy, known)
        if policy.name in names:
            faults.append(Fault(policy.statement.start, f'@id("{policy.name}") stands twice in this layer'))
        names.add(policy.name)
    return tuple(policies), faults


def _unknown_actions(policy: Policy, known: Mapping[str, DeclaredAction]) -> list[Fault]:
    """A guardrail holds for every tenant and may name actions that this one lacks; nobody else may."""
    faults: list[Fault] = []
    for name, offset in policy.actions:
        if name in known or name in GROUPS:
            continue
        if policy.layer == GUARDRAIL and is_name(name):
            continue
        what = (
            f"group of actions; there are {', '.join(sorted(GROUPS))}"
            if "/" in name
            else "action of this tenant"
        )
        faults.append(Fault(offset, f'Action::"{name[:100]}" is no {what}'))
    return faults


def _validate(
    parsed: Mapping[str, tuple[Policy, ...]], known: Mapping[str, DeclaredAction]
) -> list[tuple[str, Fault]]:
    """What Cedar's strict validator finds; layers' faults found before are not told twice."""
    everything = [policy for policies in parsed.values() for policy in policies]
    mentioned = {
        name: known.get(name)
        for policy in everything
        if policy.layer == GUARDRAIL or not _unknown_actions(policy, known)
        for name, _ in policy.actions
        if name not in GROUPS and is_name(name)
    }
    schema = schema_for(mentioned)
    sound = [policy for policy in everything if not _unknown_actions(policy, known)]
    result = cedarpy.validate_policies(
        "\n".join(policy.statement.text for policy in sound), schema, release_gil=True
    )
    faults: list[tuple[str, Fault]] = []
    unmatched: dict[int, Fault] = {}
    explained: set[int] = set()
    for error in result.errors:
        number = int(error.policy_id.removeprefix("policy"))
        if "unable to find an applicable action" in error.error:
            unmatched[number] = Fault(sound[number].statement.start, _UNMATCHED)
            continue
        explained.add(number)
        faults.append((sound[number].layer, _validation_fault(sound[number].statement, error.error)))
    faults += [(sound[number].layer, unmatched[number]) for number in unmatched.keys() - explained]
    assert result.validation_passed or faults, "a refusal says why"
    return faults


def _validation_fault(statement: Statement, message: str) -> Fault:
    words = _IN_ACTION.sub("", _POLICY.sub("", message))
    if "unable to guarantee safety of access to optional attribute" in words:
        words += "; guard it with `context has ...`"
    return Fault(find_named(statement, message), words)
