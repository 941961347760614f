"""What the fleet file declares: one struct a thing, unknown fields refused.

The same structs are stored as JSON in `platform_specs` and `tenant_specs`. Money is micro-US-dollars (int), times
are milliseconds, sizes bytes. A secret's value never stands here; it is named by reference.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from tenantry.core.quota import Limits, QuotaClass

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
RiskWord = Literal["read", "draft", "write", "high_risk"]


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of every declared thing."""


class ValueRef(Spec, frozen=True):
    """Where a value comes from when the file is applied: an environment variable or a file. Exactly one is set."""

    env: str | None = None
    file: str | None = None


class ProviderSpec(Spec, frozen=True):
    """A model provider that speaks the OpenAI protocol. ``credential`` is the platform's own key."""

    base_url: str
    credential: ValueRef | None = None
    allow_private: bool = False
    connect_timeout_ms: Count = 5_000
    first_byte_timeout_ms: Count = 60_000
    idle_timeout_ms: Count = 60_000
    connections_max: Count = 256


class ModelSpec(Spec, frozen=True):
    """A model. A model with no price is unpriced, not free: denied unless ``allow_unpriced`` in the tenant.

    Prices are micro-US-dollars per million tokens; ``cached_input`` defaults to ``input``.
    """

    provider: str
    context_window: Count
    max_output_tokens: Count
    upstream_name: str | None = None
    input_microusd_per_mtok: Count | None = None
    cached_input_microusd_per_mtok: Count | None = None
    output_microusd_per_mtok: Count | None = None

    @property
    def is_priced(self) -> bool:
        """Whether both prices are known."""
        return self.input_microusd_per_mtok is not None and self.output_microusd_per_mtok is not None


class PolicySpec(Spec, frozen=True):
    """Cedar text in one layer; ``file`` is resolved to ``text`` when the fleet file is read."""

    text: str | None = None
    file: str | None = None


class WorkspaceSpec(Spec, frozen=True):
    """A workspace: the tenant's customer account, its trust zone and limits of its own."""

    external_account_id: str
    trust_zone: str = "standard"
    policy: PolicySpec | None = None
    limits: Limits = Limits()


class AgentSpec(Spec, frozen=True):
    """An agent. ``models`` and ``actions`` only document intent; policy decides."""

    workspace: str
    agent_class: str
    policy_profile: str
    version: str = "1"
    limits: Limits = Limits()


class SecretSpec(Spec, frozen=True):
    """A secret of a workspace, for one system; ``capability`` read or mutate; never the value itself."""

    workspace: str
    system: str
    agent_classes: tuple[str, ...]
    value: ValueRef
    capability: Literal["read", "mutate"] = "read"


class AuthSpec(Spec, frozen=True):
    """How the adapter presents the tenant's credential to an integration."""

    secret: str
    scheme: Literal["bearer", "basic", "header"] = "bearer"
    header: str = "Authorization"


class HttpActionSpec(Spec, frozen=True):
    """One plain HTTP action; ``path`` may hold ``{record_id}``.

    ``url_from_input`` names an input field that is the whole URL (a fetch); then ``path`` is empty, and the
    destination is what policy decides on.
    """

    risk: RiskWord
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    path: str = ""
    url_from_input: str | None = None
    deadline_ms: Count = 30_000
    response_bytes_max: Count = 1_048_576
    idempotency_header: str | None = None
    input_schema: dict[str, object] | None = None
    data_classes: tuple[str, ...] = ()
    retries_read: bool = False


class IntegrationSpec(Spec, frozen=True):
    """An upstream system of a tenant.

    ``allow_private`` lets it live on a private or loopback address and is the operator's to grant;
    ``allowed_hosts`` widens the allow-list beyond the host of ``base_url``.
    """

    base_url: str
    actions: dict[str, HttpActionSpec]
    auth: AuthSpec | None = None
    allow_private: bool = False
    allowed_hosts: tuple[str, ...] = ()
    redirects_max: Count = 3
    connections_max: Count = 64


class TenantSpec(Spec, frozen=True):
    """A tenant as declared."""

    display_name: str
    quota_class: str
    workspaces: dict[str, WorkspaceSpec]
    agents: dict[str, AgentSpec] = {}
    policy: PolicySpec | None = None
    profiles: dict[str, PolicySpec] = {}
    integrations: dict[str, IntegrationSpec] = {}
    secrets: dict[str, SecretSpec] = {}
    limits: Limits = Limits()
    allow_unpriced: bool = False


class FleetFile(Spec, frozen=True):
    """The whole file: ``tenantry apply FILE``."""

    version: Literal[1]
    guardrails: PolicySpec
    quota_classes: dict[str, QuotaClass]
    tenants: dict[str, TenantSpec]
    providers: dict[str, ProviderSpec] = {}
    models: dict[str, ModelSpec] = {}
