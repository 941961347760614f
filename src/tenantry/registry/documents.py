"""Specs as JSON documents: strict both ways, and nothing that the database could choke on gets through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeVar

import msgspec

from tenantry.core.errors import InvalidInputError
from tenantry.core.ids import parse_name
from tenantry.core.quota import Limits, QuotaClass
from tenantry.registry.specs import (
    AgentSpec,
    IntegrationSpec,
    ModelSpec,
    PolicySpec,
    ProviderSpec,
    Spec,
    TenantSpec,
    WorkspaceSpec,
)

DOCUMENT_BYTES_MAX: Final = 256 * 1024
_PLATFORM_NAME_BYTES_MAX: Final = 200

TenantKind = Literal["workspace", "agent", "profile", "integration"]
PlatformKind = Literal["guardrail", "quota_class", "provider", "model"]
# A fleet has one guardrail text; it stands under this name.
GUARDRAIL_NAME: Final = "guardrail"

TenantThing = WorkspaceSpec | AgentSpec | PolicySpec | IntegrationSpec
PlatformThing = PolicySpec | QuotaClass | ProviderSpec | ModelSpec

TENANT_KINDS: Final[Mapping[TenantKind, type[TenantThing]]] = {
    "workspace": WorkspaceSpec,
    "agent": AgentSpec,
    "profile": PolicySpec,
    "integration": IntegrationSpec,
}
PLATFORM_KINDS: Final[Mapping[PlatformKind, type[PlatformThing]]] = {
    "guardrail": PolicySpec,
    "quota_class": QuotaClass,
    "provider": ProviderSpec,
    "model": ModelSpec,
}

T = TypeVar("T")


class TenantBase(Spec, frozen=True):
    """What stands in `tenants.spec`: the tenant's own policy layer and limits, beside its columns."""

    policy: PolicySpec | None = None
    limits: Limits = Limits()
    allow_unpriced: bool = False


def base_of(spec: TenantSpec) -> TenantBase:
    """The part of a tenant's declaration that has no rows of its own."""
    return TenantBase(policy=spec.policy, limits=spec.limits, allow_unpriced=spec.allow_unpriced)


def encode_document(spec: msgspec.Struct, *, path: str) -> str:
    """JSON text of a spec, at most 256 KiB, checked by decoding it again.

    Raises `InvalidInputError` that names the field under `path`: an unresolved ``file`` of a policy, NUL, a
    lone surrogate, a value of the wrong type or range, or a document too large or too deep.
    """
    policy = spec if isinstance(spec, PolicySpec) else getattr(spec, "policy", None)
    if policy is not None and policy.file is not None:
        raise InvalidInputError("a policy's file is read in before it is stored", path=f"{path}.file")
    try:
        document = msgspec.json.encode(spec)
    except UnicodeEncodeError:
        raise InvalidInputError("text holds a character that UTF-8 cannot write", path=path) from None
    except (msgspec.MsgspecError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidInputError(f"cannot be written as JSON: {error}", path=path) from error
    if len(document) > DOCUMENT_BYTES_MAX:
        raise InvalidInputError(f"is longer than {DOCUMENT_BYTES_MAX} bytes as JSON", path=path)
    if b"\\u0000" in document:
        raise InvalidInputError("text holds a NUL character", path=path)
    text = document.decode()
    decode_document(text, type(spec), path=path)
    return text


def decode_document(document: str, kind: type[T], *, path: str) -> T:
    """A spec from its JSON text, strictly. Raises `InvalidInputError` that names the field under `path`."""
    try:
        return msgspec.json.decode(document, type=kind, strict=True)
    except (msgspec.MsgspecError, RecursionError) as error:
        words, _, where = str(error).partition(" - at `$")
        field = where.rstrip("`")
        raise InvalidInputError(words, path=f"{path}{field}") from error


def parse_platform_name(name: str, *, path: str) -> str:
    """Names of models, providers and classes: 1 to 200 printable ASCII characters without space.

    Raises `InvalidInputError`.
    """
    if not name or len(name) > _PLATFORM_NAME_BYTES_MAX or not all("!" <= letter <= "~" for letter in name):
        raise InvalidInputError("a name is 1 to 200 printable ASCII characters without space", path=path)
    return name


def check_tenant(spec: TenantSpec, *, path: str = "$") -> None:
    """Check what the types cannot: names, and that each name referred to is declared in the same tenant.

    Raises `InvalidInputError` that names the field under `path`.
    """
    named: dict[str, tuple[str, ...]] = {
        "workspaces": tuple(spec.workspaces),
        "agents": tuple(spec.agents),
        "profiles": tuple(spec.profiles),
        "integrations": tuple(spec.integrations),
        "secrets": tuple(spec.secrets),
    }
    for section, names in named.items():
        for name in names:
            parse_name(name, path=f"{path}.{section}.{name}")
    for name, agent in spec.agents.items():
        _refer(agent.workspace, spec.workspaces, "workspace", f"{path}.agents.{name}.workspace")
        _refer(agent.policy_profile, spec.profiles, "profile", f"{path}.agents.{name}.policy_profile")
    for name, secret in spec.secrets.items():
        _refer(secret.workspace, spec.workspaces, "workspace", f"{path}.secrets.{name}.workspace")
    check_actions(spec.integrations, path=path)


def check_actions(integrations: dict[str, IntegrationSpec], *, path: str = "$") -> None:
    """An action's name is unique in its tenant, and its shape is a name's. Raises `InvalidInputError`."""
    owners: dict[str, str] = {}
    for name, integration in integrations.items():
        for action in integration.actions:
            where = f"{path}.integrations.{name}.actions.{action}"
            parse_name(action, path=where)
            owner = owners.setdefault(action, name)
            if owner != name:
                raise InvalidInputError(f"the integration {owner} declares this action already", path=where)


def _refer(name: str, declared: dict[str, T], thing: str, path: str) -> None:
    if name not in declared:
        raise InvalidInputError(f"no {thing} of that name is declared in this tenant", path=path)
