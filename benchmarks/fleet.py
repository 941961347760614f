"""The tenants that the benchmarks use, declared as a fleet file declares them.

Each has one workspace, one agent and about ten policies over four layers, and a limit on every meter at every
level, so that nothing which `begin` does for a real tenant is left out.
"""

from __future__ import annotations

from typing import Final

from tenantry.core.quota import Limits, QuotaClass
from tenantry.policy.schema import guardrail_text, profile_text
from tenantry.registry.specs import (
    AgentSpec,
    FleetFile,
    HttpActionSpec,
    IntegrationSpec,
    ModelSpec,
    PolicySpec,
    ProviderSpec,
    TenantSpec,
    ValueRef,
    WorkspaceSpec,
)

CLASS: Final = "measured"
PROFILE: Final = "regulated_support"
WORKSPACE: Final = "support"
AGENT: Final = "triage"
SYSTEM: Final = "zendesk"
ACTION: Final = "ticket.update"
PROVIDER: Final = "example"
MODEL: Final = "example-small"
PROVIDER_KEY: Final = "sk-example-benchmarks-000001"

_TENANT_POLICY: Final = """
@id("registered")
permit (principal, action, resource);

@id("no_writes_for_readers")
forbid (principal, action in Action::"risk/write", resource)
when { principal.agent_class == "reader" };

@id("no_closed_books")
forbid (principal, action in Action::"risk/write", resource == System::"books")
when { context.labels.contains("untrusted") };

@id("no_strange_hosts")
forbid (principal, action in Action::"reach/web", resource)
when { context has destination && context.destination like "*.blocked.example" };
"""
_WORKSPACE_POLICY: Final = '@id("no_archive") forbid (principal, action, resource == System::"archive");'

# Present at every level, and out of reach: a benchmark measures the meters, not their refusals.
_LIMITS: Final = Limits(
    requests_per_minute=60_000_000,
    requests_burst=60_000_000,
    concurrent_runs=1_000_000,
    model_inflight=1_000_000,
    model_tokens_minute=10**15,
    model_tokens_day=10**15,
    cost_microusd_day=10**15,
    tool_calls_day=10**15,
    high_risk_day=10**15,
    journal_bytes=10**15,
)
QUOTA: Final = QuotaClass(tenant=_LIMITS, workspace=_LIMITS, agent=_LIMITS, run=_LIMITS)


def make_fleet(provider_url: str | None = None) -> FleetFile:
    """Guardrails, the quota class and, when it has an address, a model provider; the tenants come one by one."""
    providers, models = {}, {}
    if provider_url is not None:
        providers[PROVIDER] = ProviderSpec(
            base_url=provider_url, allow_private=True, credential=ValueRef(env="EXAMPLE_PROVIDER_KEY")
        )
        models[MODEL] = ModelSpec(
            provider=PROVIDER,
            context_window=128_000,
            max_output_tokens=1_000,
            input_microusd_per_mtok=150_000,
            output_microusd_per_mtok=600_000,
        )
    return FleetFile(
        version=1,
        guardrails=PolicySpec(text=guardrail_text()),
        quota_classes={CLASS: QUOTA},
        tenants={},
        providers=providers,
        models=models,
    )


def make_tenant() -> TenantSpec:
    """One tenant; its system is never called: the adapter of `world.py` answers in its place."""
    return TenantSpec(
        display_name="Measured",
        quota_class=CLASS,
        workspaces={
            WORKSPACE: WorkspaceSpec(external_account_id="zd_77", policy=PolicySpec(text=_WORKSPACE_POLICY))
        },
        agents={AGENT: AgentSpec(workspace=WORKSPACE, agent_class="support", policy_profile=PROFILE)},
        policy=PolicySpec(text=_TENANT_POLICY),
        profiles={PROFILE: PolicySpec(text=profile_text(PROFILE))},
        integrations={
            SYSTEM: IntegrationSpec(
                base_url="https://tickets.example",
                actions={ACTION: HttpActionSpec(risk="write", method="PUT", path="/tickets/{record_id}")},
            )
        },
    )
