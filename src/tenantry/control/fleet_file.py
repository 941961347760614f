"""The fleet file: read strictly, completed and checked as a whole; nothing here touches a database.

Errors name the field as a JSON path in the file (``$.tenants.acme.agents.triage.workspace``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from tenantry.broker.store import SecretDeclaration, check_declaration
from tenantry.control.scopes import check_limits, tenant_layers
from tenantry.core.errors import InvalidInputError
from tenantry.core.ids import WorkspaceId, parse_tenant_id
from tenantry.core.quota import QuotaClass
from tenantry.policy.layers import GUARDRAIL
from tenantry.policy.schema import READY_PROFILES, DeclaredAction, guardrail_text, profile_text
from tenantry.policy.validate import check
from tenantry.registry.documents import (
    check_tenant,
    decode_document,
    encode_document,
    parse_platform_name,
)
from tenantry.registry.specs import FleetFile, IntegrationSpec, PolicySpec, SecretSpec, TenantSpec, ValueRef
from tenantry.registry.store import check_storable

TENANTS_MAX: Final = 1_000
_SHIPPED_MARK: Final = "\n// ---- the fleet's own ----\n"


def read_fleet(document: bytes) -> FleetFile:
    """A fleet file as JSON, policies' files read in. Raises `InvalidInputError`; nothing is checked further."""
    try:
        text = document.decode()
    except UnicodeDecodeError:
        raise InvalidInputError("the fleet file is not UTF-8") from None
    try:
        return decode_document(text, FleetFile, path="$")
    except InvalidInputError as error:
        if "[...]" not in error.path:
            raise
        fault = _find_fault(msgspec.json.decode(document), FleetFile, "$")
        raise fault or error from None


def _find_fault(value: object, kind: object, path: str) -> InvalidInputError | None:
    """The first fault of a decoded value, with the names of members that the decoder leaves out."""
    try:
        msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        words = str(error).partition(" - at `$")[0]
    else:
        return None
    members: dict[str, object] = {}
    if get_origin(kind) is dict and isinstance(value, dict):
        members = dict.fromkeys(value, get_args(kind)[1])
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        hints = get_type_hints(kind, include_extras=True)
        members = {name: hints[name] for name in kind.__struct_fields__ if name in value}
    for name, member in members.items():
        assert isinstance(value, dict), "it has members"
        fault = _find_fault(value[name], member, f"{path}.{name}")
        if fault is not None:
            return fault
    return InvalidInputError(words, path=path)


def complete(fleet: FleetFile) -> FleetFile:
    """The file with what the platform ships: its guardrails, and ready profiles that agents name."""
    tenants = {}
    for tenant_id, spec in fleet.tenants.items():
        ready = {
            agent.policy_profile: PolicySpec(text=profile_text(agent.policy_profile))
            for agent in spec.agents.values()
            if agent.policy_profile in READY_PROFILES and agent.policy_profile not in spec.profiles
        }
        tenants[tenant_id] = msgspec.structs.replace(spec, profiles={**spec.profiles, **ready})
    own = fleet.guardrails.text or ""
    guardrails = PolicySpec(text=guardrail_text() + _SHIPPED_MARK + own, file=fleet.guardrails.file)
    return msgspec.structs.replace(fleet, tenants=tenants, guardrails=guardrails)


def own_guardrails(text: str) -> str:
    """The fleet's own part of completed guardrails."""
    return text.partition(_SHIPPED_MARK)[2]


def validate(fleet: FleetFile, *, known_secrets: Mapping[str, frozenset[str]]) -> None:
    """Check a completed file as a whole; `known_secrets` are names that a tenant has already.

    Cost: about 0.6 ms a policy; run it in a thread. Raises `InvalidInputError` for the first fault.
    """
    if len(fleet.tenants) > TENANTS_MAX:
        raise InvalidInputError(f"a fleet file holds at most {TENANTS_MAX} tenants", path="$.tenants")
    _check_platform(fleet)
    for tenant_id, spec in fleet.tenants.items():
        path = f"$.tenants.{tenant_id}"
        parse_tenant_id(tenant_id, path=path)
        if spec.quota_class not in fleet.quota_classes:
            raise InvalidInputError("no quota class of that name is declared", path=f"{path}.quota_class")
        _check_texts(spec, path=path)
        check_tenant(spec, path=path)
        check_storable(spec, path=path)
        check_limits(spec.limits, path=f"{path}.limits")
        for name, workspace in spec.workspaces.items():
            check_limits(workspace.limits, path=f"{path}.workspaces.{name}.limits")
        for name, agent in spec.agents.items():
            check_limits(agent.limits, path=f"{path}.agents.{name}.limits")
        for name, integration in spec.integrations.items():
            known = known_secrets.get(tenant_id, frozenset())
            _check_integration(name, integration, spec, known, path=f"{path}.integrations.{name}")
        for name, secret in spec.secrets.items():
            _check_secret(name, secret, path=f"{path}.secrets.{name}")
        check_policies(spec, fleet.guardrails.text or "", path=path)


def check_policies(spec: TenantSpec, guardrails: str, *, path: str) -> None:
    """Check a tenant's layers together with the guardrails. Raises `InvalidInputError` for the first fault."""
    problems = check({GUARDRAIL: guardrails, **tenant_layers(spec)}, declared_actions(spec.integrations))
    if not problems:
        return
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    place = f"line {first.line}, column {first.column}: {first.message}{more}"
    raise InvalidInputError(place, path=layer_field(first.layer, path=path))


def declared_actions(integrations: Mapping[str, IntegrationSpec]) -> dict[str, DeclaredAction]:
    """What policy knows of a tenant's actions."""
    return {
        name: DeclaredAction(kind="tool", risk=spec.risk, web=spec.url_from_input is not None)
        for integration in integrations.values()
        for name, spec in integration.actions.items()
    }


def layer_field(layer: str, *, path: str) -> str:
    """Where a layer's text stands in the file; `path` is its tenant's."""
    head, _, name = layer.partition("/")
    match head:
        case "guardrail":
            return "$.guardrails"
        case "workspace":
            return f"{path}.workspaces.{name}.policy"
        case "profile":
            return f"{path}.profiles.{name}"
        case _:
            return f"{path}.policy"


def _check_platform(fleet: FleetFile) -> None:
    if fleet.guardrails.file is not None:
        raise InvalidInputError("a policy's file is read in before it is sent", path="$.guardrails.file")
    encode_document(fleet.guardrails, path="$.guardrails")
    for name, quota_class in fleet.quota_classes.items():
        path = f"$.quota_classes.{name}"
        parse_platform_name(name, path=path)
        for level in QuotaClass.__struct_fields__:
            check_limits(getattr(quota_class, level), path=f"{path}.{level}")
    for name, provider in fleet.providers.items():
        parse_platform_name(name, path=f"$.providers.{name}")
        encode_document(provider, path=f"$.providers.{name}")
        _check_url(provider.base_url, path=f"$.providers.{name}.base_url")
        if provider.credential is not None:
            _check_reference(provider.credential, path=f"$.providers.{name}.credential")
    for name, model in fleet.models.items():
        parse_platform_name(name, path=f"$.models.{name}")
        encode_document(model, path=f"$.models.{name}")
        if model.provider not in fleet.providers:
            raise InvalidInputError("no provider of that name is declared", path=f"$.models.{name}.provider")
        if model.max_output_tokens > model.context_window:
            raise InvalidInputError(
                "an output is not larger than the context window", path=f"$.models.{name}.max_output_tokens"
            )


def _check_texts(spec: TenantSpec, *, path: str) -> None:
    policies = {f"{path}.policy": spec.policy}
    policies |= {f"{path}.workspaces.{name}.policy": w.policy for name, w in spec.workspaces.items()}
    policies |= {f"{path}.profiles.{name}": profile for name, profile in spec.profiles.items()}
    for where, policy in policies.items():
        if policy is None:
            continue
        if policy.file is not None:
            raise InvalidInputError("a policy's file is read in before it is sent", path=f"{where}.file")
        if policy.text is None:
            raise InvalidInputError("a policy has a text or a file", path=where)


def _check_integration(
    name: str, integration: IntegrationSpec, spec: TenantSpec, known: frozenset[str], *, path: str
) -> None:
    _check_url(integration.base_url, path=f"{path}.base_url")
    for action_name, action in integration.actions.items():
        where = f"{path}.actions.{action_name}"
        if action.url_from_input is not None and action.path:
            raise InvalidInputError("a fetch takes its whole URL from its input", path=f"{where}.path")
        if action.url_from_input is None and not action.path.startswith("/"):
            raise InvalidInputError("a path begins with /", path=f"{where}.path")
    if integration.auth is None:
        return
    secret = spec.secrets.get(integration.auth.secret)
    if secret is None and integration.auth.secret not in known:
        raise InvalidInputError("no secret of that name is declared", path=f"{path}.auth.secret")
    if secret is not None and secret.system != name:
        raise InvalidInputError(
            f"the secret is for the system {secret.system}, not for this one", path=f"{path}.auth.secret"
        )


def _check_secret(name: str, secret: SecretSpec, *, path: str) -> None:
    _check_reference(secret.value, path=f"{path}.value")
    declaration = SecretDeclaration(
        WorkspaceId(secret.workspace), name, secret.system, secret.agent_classes, secret.capability
    )
    try:
        check_declaration(declaration)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), path=path + error.path.removeprefix("$")) from None


def _check_url(url: str, *, path: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidInputError("is not a URL", path=path) from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0 or not url.isprintable():
        raise InvalidInputError("a URL is http://host/... or https://host/...", path=path)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidInputError("a base URL holds no user, query or fragment", path=path)


def _check_reference(reference: ValueRef, *, path: str) -> None:
    if (reference.env is None) == (reference.file is None):
        raise InvalidInputError("a value comes from env or from file, exactly one of them", path=path)
