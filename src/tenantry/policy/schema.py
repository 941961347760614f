"""The Cedar schema that a tenant's policies are checked against: the fixed part and the actions they name.

Every action has the same context type, so the schema needs only the actions that policies mention by name,
and one stand-in for all others of each kind of resource. Checking costs the same with ten actions or ten
thousand.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Final, Literal, get_args

import cedarpy
import msgspec

from tenantry.core.action import ActionKind, Risk
from tenantry.core.errors import InvalidInputError
from tenantry.core.ids import parse_name

_PACKAGE: Final = "tenantry.policy"

KINDS: Final[frozenset[str]] = frozenset(get_args(ActionKind))
RISKS: Final[frozenset[str]] = frozenset(risk.word for risk in Risk)
WEB_GROUP: Final = "reach/web"
GROUPS: Final[frozenset[str]] = frozenset(
    {WEB_GROUP} | {f"kind/{kind}" for kind in KINDS} | {f"risk/{risk}" for risk in RISKS}
)
READY_PROFILES: Final[tuple[str, ...]] = ("no_external_web", "open", "read_only", "regulated_support")


class DeclaredAction(msgspec.Struct, frozen=True):
    """What policy knows of an action before it happens.

    ``web``: its input names the address it goes to, so it reaches the open web.
    """

    kind: ActionKind
    risk: Literal["read", "draft", "write", "high_risk"]
    web: bool = False

    def groups(self) -> tuple[str, ...]:
        """The groups of actions that it is in."""
        groups = (f"kind/{self.kind}", f"risk/{self.risk}")
        return (*groups, WEB_GROUP) if self.web else groups


# Actions of the platform itself, which every tenant has. They are `read`: calling a model or opening a run
# changes nothing by itself, and whatever the run then does is an action of its own.
FIXED_ACTIONS: Final[Mapping[str, DeclaredAction]] = {
    "model.call": DeclaredAction(kind="model", risk="read"),
    "run.start": DeclaredAction(kind="run", risk="read"),
}


def all_actions(
    actions: Mapping[str, DeclaredAction],
) -> dict[str, DeclaredAction]:
    """The tenant's actions and the fixed ones. Raises `InvalidInputError` for a taken or misshapen name."""
    for name, action in actions.items():
        path = f"$.actions[{name[:100]!r}]"
        parse_name(name, path=path)
        if name in FIXED_ACTIONS and action != FIXED_ACTIONS[name]:
            raise InvalidInputError(
                f"the action name {name!r} belongs to the platform; choose another", path=path
            )
        if action.kind not in KINDS or action.risk not in RISKS:
            raise InvalidInputError(f"action {name!r} has an unknown kind or risk", path=path)
    return {**actions, **FIXED_ACTIONS}


def schema_for(mentioned: Mapping[str, DeclaredAction | None]) -> cedarpy.Schema:
    """The parsed schema with the actions that policies mention.

    None marks an action that this tenant does not have, which a guardrail may still speak of. Costs a parse,
    about 1 ms.
    """
    every_group = sorted(GROUPS)
    lines = [
        _fixed_schema(),
        _declare("stand-in/system", every_group, ("System",)),
        _declare("stand-in/model", every_group, ("Model",)),
    ]
    for name in sorted(mentioned):
        action = mentioned[name]
        if action is None:
            lines.append(_declare(name, every_group, ("System", "Model")))
        else:
            lines.append(_declare(name, action.groups(), (resource_type(action.kind),)))
    return cedarpy.Schema.from_str("\n".join(lines))


def resource_type(kind: str) -> str:
    """`Model` for model calls, `System` for all else."""
    return "Model" if kind == "model" else "System"


def action_entities(actions: Mapping[str, DeclaredAction]) -> str:
    """The actions and their groups as Cedar's JSON entities."""
    return json.dumps(
        [
            {
                "uid": {"type": "Action", "id": name},
                "attrs": {},
                "parents": [{"type": "Action", "id": group} for group in action.groups()],
            }
            for name, action in sorted(actions.items())
        ]
    )


def guardrail_text() -> str:
    """The guardrails that ship with the platform, as Cedar text."""
    return _read("guardrails.cedar")


def profile_text(name: str) -> str:
    """A profile that ships with the platform, as Cedar text. Raises `InvalidInputError` for another."""
    if name not in READY_PROFILES:
        msg = f"no ready profile {name[:100]!r}; there are {', '.join(READY_PROFILES)}"
        raise InvalidInputError(msg)
    return _read(f"profiles/{name}.cedar")


def _declare(name: str, groups: tuple[str, ...] | list[str], resources: tuple[str, ...]) -> str:
    parents = ", ".join(json.dumps(group) for group in groups)
    return (
        f"action {json.dumps(name)} in [{parents}] appliesTo "
        f"{{ principal: [Agent], resource: [{', '.join(resources)}], context: Context }};"
    )


@functools.cache
def _fixed_schema() -> str:
    return _read("tenantry.cedarschema")


def _read(resource: str) -> str:
    return importlib.resources.files(_PACKAGE).joinpath(resource).read_text("utf-8")
