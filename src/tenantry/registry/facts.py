"""A tenant's configuration as one immutable value, valid for one pair of versions.

Everything that `authorize`, the broker and the adapters need to know of a tenant is loaded together and carries the
versions that `begin` checks, so that nothing decided on old facts ever begins.
"""

from __future__ import annotations

import msgspec

from tenantry.core.ids import AgentId, TenantId
from tenantry.core.quota import Limits, QuotaClass
from tenantry.registry.specs import (
    AgentSpec,
    HttpActionSpec,
    IntegrationSpec,
    ModelSpec,
    ProviderSpec,
    WorkspaceSpec,
)


class TenantFacts(msgspec.Struct, frozen=True):
    """``policy_version`` and ``fleet_version`` stand in the tenant's scope row and the fleet's row.

    ``policies`` maps a layer (``guardrail``, ``tenant``, ``workspace/NAME``, ``profile/NAME``) to its Cedar text.
    ``actions`` maps an action's name to its integration's name and declaration.
    """

    tenant_id: TenantId
    policy_version: int
    fleet_version: int
    quota_class_name: str
    quota_class: QuotaClass
    allow_unpriced: bool
    workspaces: dict[str, WorkspaceSpec]
    agents: dict[AgentId, AgentSpec]
    integrations: dict[str, IntegrationSpec]
    actions: dict[str, tuple[str, HttpActionSpec]]
    providers: dict[str, ProviderSpec]
    models: dict[str, ModelSpec]
    policies: dict[str, str]
    limits: Limits = Limits()
