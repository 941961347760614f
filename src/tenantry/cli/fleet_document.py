"""A fleet file as the platform takes it: YAML read strictly, ``${NAME}`` replaced, policies' files read in.

Secret values never enter the document: they are gathered beside it, by the path of the reference that names them.
Errors name the place in the file as a JSON path.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from tenantry.core.errors import InvalidInputError
from tenantry.settings import find_variable

FILE_BYTES_MAX: Final = 4 * 1024 * 1024
POLICY_BYTES_MAX: Final = 256 * 1024
VALUE_BYTES_MAX: Final = 64 * 1024
DEPTH_MAX: Final = 40
_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^}]*)\}")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class FleetDocument(msgspec.Struct, frozen=True):
    """``fleet`` is the file as plain values; ``values`` the secrets that it refers to.

    Their keys are ``providers.P.credential`` and ``tenants.T.secrets.S``.
    """

    fleet: dict[str, Any]
    values: dict[str, str]


class _Loader(yaml.SafeLoader):
    """YAML as far as it is JSON: no aliases, no dates, no doubled keys, true and false only."""

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401 - as the library has it
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]  # the stub lacks it
            raise yaml.MarkedYAMLError(None, None, "aliases are not taken", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - as the library has it
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(None, None, "a key is text", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `on`, `no`, 1:30 and dates as other things than the text they look like.
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?[0-9]+\.[0-9]+(?:[eE][-+]?[0-9]+)?", "-+0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def read_fleet_file(path: Path, *, with_values: bool) -> FleetDocument:
    """Read a fleet file. Errors: `InvalidInputError`, with the place in the file.

    `with_values` False: the secrets' values are not looked at.
    """
    text = _read(path, FILE_BYTES_MAX, where="$")
    try:
        loaded = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader, and narrower
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise InvalidInputError(f"{path}: {at}{error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidInputError(f"{path} is not YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise InvalidInputError(f"{path} holds no fleet: it is a mapping with version, tenants and the like")
    fleet = _replaced(loaded, "$", 0)
    values: dict[str, str] = {}
    for key, place, reference in _references(fleet):
        if with_values:
            values[key] = _value(reference, place, path.parent)
    _read_policies(fleet, path.parent)
    return FleetDocument(fleet, values)


def _read(path: Path, bytes_max: int, *, where: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(bytes_max + 1)
        text = content.decode()
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}", path=where) from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is not UTF-8", path=where) from None
    if len(content) > bytes_max:
        raise InvalidInputError(f"{path} is longer than {bytes_max} bytes", path=where)
    return text


def _replaced(value: Any, path: str, depth: int) -> Any:  # noqa: ANN401 - JSON
    if depth > DEPTH_MAX:
        raise InvalidInputError("is nested too deeply", path=path)
    match value:
        case dict():
            return {key: _replaced(inner, f"{path}.{key}", depth + 1) for key, inner in value.items()}
        case list():
            return [_replaced(inner, f"{path}[{place}]", depth + 1) for place, inner in enumerate(value)]
        case str():
            return _REFERENCE.sub(lambda found: _variable(found, path), value)
        case _:
            return value


def _variable(found: re.Match[str], path: str) -> str:
    name = found[1]
    if name is None:
        return "${"
    if _NAME.fullmatch(name) is None:
        raise InvalidInputError("${NAME} names an environment variable; write $${ for the signs", path=path)
    value = find_variable(name)
    if value is None:
        raise InvalidInputError(f"the environment variable {name} is not set", path=path)
    return value


def _references(fleet: dict[str, Any]) -> Iterator[tuple[str, str, object]]:
    """Every reference to a secret's value: its key, its place, itself."""
    for name, provider in _mapping(fleet, "providers"):
        if provider.get("credential") is not None:
            key = f"providers.{name}.credential"
            yield key, f"$.{key}", provider["credential"]
    for tenant_id, tenant in _mapping(fleet, "tenants"):
        for name, secret in _mapping(tenant, "secrets"):
            if secret.get("value") is not None:
                key = f"tenants.{tenant_id}.secrets.{name}"
                yield key, f"$.{key}.value", secret["value"]


def _value(reference: object, place: str, folder: Path) -> str:
    match reference:
        case {"env": str(name)}:
            value = find_variable(name)
            if value is None:
                raise InvalidInputError(f"the environment variable {name} is not set", path=place)
            return value
        case {"file": str(name)}:
            return _read(folder / name, VALUE_BYTES_MAX, where=place).removesuffix("\n")
        case _:
            raise InvalidInputError("a value comes from env or from file, exactly one of them", path=place)


def _read_policies(fleet: dict[str, Any], folder: Path) -> None:
    """Put the text of each policy's file in the file's place."""
    _inline(fleet, "guardrails", "$", folder)
    for tenant_id, tenant in _mapping(fleet, "tenants"):
        path = f"$.tenants.{tenant_id}"
        _inline(tenant, "policy", path, folder)
        for name, workspace in _mapping(tenant, "workspaces"):
            _inline(workspace, "policy", f"{path}.workspaces.{name}", folder)
        profiles = tenant.get("profiles")
        if isinstance(profiles, dict):
            for name in profiles:
                _inline(profiles, name, f"{path}.profiles", folder)


def _inline(parent: dict[str, Any], key: str, path: str, folder: Path) -> None:
    policy = parent.get(key)
    if isinstance(policy, dict) and isinstance(policy.get("file"), str):
        if policy.get("text") is not None:
            raise InvalidInputError("a policy has a text or a file, not both", path=f"{path}.{key}")
        parent[key] = {"text": _read(folder / policy["file"], POLICY_BYTES_MAX, where=f"{path}.{key}.file")}


def _mapping(parent: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mappings inside a mapping; what is none is left for the platform to refuse."""
    inner = parent.get(key)
    if isinstance(inner, dict):
        yield from ((name, value) for name, value in inner.items() if isinstance(value, dict))
