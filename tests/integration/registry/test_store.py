"""The registry against the real database: what is declared comes back, and nothing half."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.support.cluster import connect_as
from tests.support.fixtures import MakeTenant
from tests.support.tenants import OPERATOR, ROOT_KEY, register_tenant

from tenantry.core.clock import SystemClock
from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.ids import TenantId
from tenantry.core.quota import Limits, QuotaClass
from tenantry.registry.documents import GUARDRAIL_NAME
from tenantry.registry.specs import (
    AgentSpec,
    FleetFile,
    HttpActionSpec,
    IntegrationSpec,
    ModelSpec,
    PolicySpec,
    ProviderSpec,
    SecretSpec,
    TenantSpec,
    ValueRef,
    WorkspaceSpec,
)
from tenantry.registry.store import (
    delete_spec,
    find_tenant,
    list_platform_specs,
    list_specs,
    list_tenants,
    load_facts,
    put_platform,
    put_spec,
    put_tenant,
    read_facts,
)
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.database import PoolSizes, Shard
from tenantry.storage.scope import Scopes, TenantScope

UPDATE = HttpActionSpec(risk="write", path="/tickets/{record_id}", input_schema={"type": "object"})
ACME = TenantSpec(
    display_name="Acmé \u2603",
    quota_class="standard",
    workspaces={
        "support": WorkspaceSpec(
            external_account_id="acct_1",
            policy=PolicySpec(text="// support"),
            limits=Limits(tool_calls_day=7),
        ),
        "plain": WorkspaceSpec(external_account_id="acct_2"),
    },
    agents={"triage": AgentSpec(workspace="support", agent_class="triage", policy_profile="careful")},
    policy=PolicySpec(text="// tenant"),
    profiles={"careful": PolicySpec(text="// careful")},
    integrations={
        "zendesk": IntegrationSpec(base_url="https://zendesk.example", actions={"ticket.update": UPDATE})
    },
    secrets={
        "zendesk-token": SecretSpec(
            workspace="support", system="zendesk", agent_classes=("triage",), value=ValueRef(env="ZENDESK")
        )
    },
    limits=Limits(cost_microusd_day=5),
    allow_unpriced=True,
)
FLEET = FleetFile(
    version=1,
    guardrails=PolicySpec(text="// guardrail"),
    quota_classes={"standard": QuotaClass(run=Limits(model_inflight=2)), "unused": QuotaClass()},
    tenants={},
    providers={"openai": ProviderSpec(base_url="https://provider.example/v1")},
    models={"meta/llama-3.1:70b": ModelSpec(provider="openai", context_window=8192, max_output_tokens=1024)},
)


def replaced(**changes: object) -> TenantSpec:
    return msgspec.structs.replace(ACME, **changes)


@pytest.fixture
async def fleet(scopes: Scopes) -> FleetFile:
    scope = scopes.platform(reason="test", operator="op_test")
    async with scope:
        await put_platform(scope, FLEET)
    return FLEET


@pytest.fixture
async def scope(scopes: Scopes, make_tenant: MakeTenant, fleet: FleetFile) -> TenantScope:
    del fleet
    made = await scopes.for_principal((await make_tenant()).admin)
    async with made:
        await put_tenant(made, ACME)
    return made


async def test_facts_are_what_was_declared(scope: TenantScope) -> None:
    facts = await load_facts(scope)
    assert facts.tenant_id == scope.tenant_id
    assert (facts.policy_version, facts.quota_class_name) == (1, "standard")
    assert facts.fleet_version >= 1
    assert facts.quota_class == FLEET.quota_classes["standard"]
    assert facts.workspaces == ACME.workspaces
    assert facts.agents == ACME.agents
    assert facts.integrations == ACME.integrations
    assert facts.actions == {"ticket.update": ("zendesk", UPDATE)}
    assert facts.providers == FLEET.providers
    assert facts.models == FLEET.models
    assert (facts.limits, facts.allow_unpriced) == (ACME.limits, True)
    assert facts.policies == {
        "guardrail": "// guardrail",
        "tenant": "// tenant",
        "workspace/support": "// support",
        "profile/careful": "// careful",
    }
    async with scope:
        assert await find_tenant(scope) == replaced(secrets={})
        assert await read_facts(scope) == facts


async def test_putting_the_same_changes_nothing(scope: TenantScope, scopes: Scopes) -> None:
    async with scope:
        assert not await put_tenant(scope, ACME)
        assert await put_tenant(scope, replaced(display_name="Acme"))
        assert await put_tenant(scope, replaced(display_name="Acme", limits=Limits()))
    platform = scopes.platform(reason="test", operator="op_test")
    async with platform:
        assert not await put_platform(platform, FLEET)
        assert list(await list_platform_specs(platform, "guardrail")) == [GUARDRAIL_NAME]
        assert await list_platform_specs(platform, "model") == FLEET.models


async def test_what_is_no_longer_declared_is_gone(scope: TenantScope) -> None:
    async with scope:
        assert await put_tenant(scope, replaced(agents={}, profiles={}, integrations={}, policy=None))
        assert await list_specs(scope, "agent") == {}
    facts = await load_facts(scope)
    assert (facts.agents, facts.actions) == ({}, {})
    assert set(facts.policies) == {"guardrail", "workspace/support"}


async def test_single_things_are_put_and_deleted_whole(scope: TenantScope) -> None:
    agent = AgentSpec(workspace="plain", agent_class="closer", policy_profile="careful")
    async with scope:
        assert await put_spec(scope, "agent", "closer", agent)
        assert not await put_spec(scope, "agent", "closer", agent)
        assert set(await list_specs(scope, "agent")) == {"triage", "closer"}
        assert await delete_spec(scope, "agent", "closer")
        assert not await delete_spec(scope, "agent", "closer")
    with pytest.raises(InvalidInputError, match="workspace"):
        async with scope:
            await delete_spec(scope, "workspace", "support")
    with pytest.raises(InvalidInputError, match="kind agent"):
        async with scope:
            await put_spec(scope, "agent", "x", ACME.workspaces["plain"])
    assert set((await load_facts(scope)).workspaces) == {"support", "plain"}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"display_name": ""}, "$.t.display_name"),
        ({"display_name": "a\0b"}, "$.t"),
        ({"display_name": "\ud800"}, "$.t"),
        ({"quota_class": "a b"}, "$.t.quota_class"),
        ({"workspaces": {"Support": WorkspaceSpec(external_account_id="x")}}, "$.t.workspaces.Support"),
        ({"workspaces": {}}, "$.t.agents.triage.workspace"),
        ({"profiles": {}}, "$.t.agents.triage.policy_profile"),
        ({"policy": PolicySpec(text="a\0")}, "$.t"),
        ({"policy": PolicySpec(file="p.cedar")}, "$.t.file"),
        ({"policy": PolicySpec(text="x" * 300_000)}, "$.t"),
        ({"limits": Limits(tool_calls_day=1.5)}, "$.t.limits.tool_calls_day"),  # type: ignore[arg-type]
        (
            {
                "integrations": ACME.integrations
                | {"b": IntegrationSpec(base_url="https://b.example", actions={"ticket.update": UPDATE})}
            },
            "$.t.integrations.b.actions.ticket.update",
        ),
        (
            {
                "integrations": {
                    "b": IntegrationSpec(base_url="https://b.example", actions={"../etc": UPDATE})
                }
            },
            "$.t.integrations.b.actions.../etc",
        ),
    ],
)
async def test_bad_declarations_are_named_and_change_nothing(
    changes: dict[str, object], path: str, scope: TenantScope
) -> None:
    before = await load_facts(scope)
    with pytest.raises(InvalidInputError) as refused:
        async with scope:
            await put_tenant(scope, replaced(**changes), path="$.t")
    assert refused.value.path == path
    assert await load_facts(scope) == before


def deep(levels: int) -> dict[str, object]:
    made: dict[str, object] = {}
    for _ in range(levels):
        made = {"a": made}
    return made


async def test_a_document_too_deep_is_refused(scope: TenantScope) -> None:
    action = HttpActionSpec(risk="read", input_schema=deep(20_000))
    integration = IntegrationSpec(base_url="https://z.example", actions={"a": action})
    with pytest.raises(InvalidInputError):
        async with scope:
            await put_tenant(scope, replaced(integrations={"z": integration}))


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"providers": {}}, "$.models.meta/llama-3.1:70b.provider"),
        ({"quota_classes": {"a b": QuotaClass()}}, "$.quota_classes.a b"),
        ({"quota_classes": {"\0": QuotaClass()}}, "$.quota_classes.\0"),
        ({"guardrails": PolicySpec(file="g.cedar")}, "$.guardrail.file"),
    ],
)
async def test_bad_fleet_parts_are_named(changes: dict[str, object], path: str, scopes: Scopes) -> None:
    platform = scopes.platform(reason="test", operator="op_test")
    with pytest.raises(InvalidInputError) as refused:
        async with platform:
            await put_platform(platform, msgspec.structs.replace(FLEET, **changes))
    assert refused.value.path == path


@pytest.mark.invariant(12)
async def test_two_tenants_with_the_same_names_stay_apart(
    scope: TenantScope, scopes: Scopes, make_tenant: MakeTenant
) -> None:
    other = await scopes.for_principal((await make_tenant()).admin)
    async with other:
        await put_tenant(other, replaced(policy=PolicySpec(text="// other"), agents={}))
    assert (await load_facts(other)).policies["tenant"] == "// other"
    assert (await load_facts(scope)).policies["tenant"] == "// tenant"
    async with other:
        assert not await delete_spec(other, "agent", "triage")
    assert "triage" in (await load_facts(scope)).agents


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "update tenantry.tenant_specs set spec = spec || '{\"rights\": \"all\"}' where kind = 'agent'",
            "rights",
        ),
        ("update tenantry.tenant_specs set spec = '[]' where kind = 'agent'", "object"),
        ("delete from tenantry.tenant_specs where kind = 'workspace' and name = 'support'", "workspace"),
        ("update tenantry.tenants set quota_class = 'gone'", "quota class"),
        ('update tenantry.tenants set spec = \'{"allow_unpriced": "yes"}\'', "bool"),
    ],
)
async def test_stored_specs_that_do_not_read_stop_that_tenant(
    change: str, message: str, scope: TenantScope, database: DatabaseTarget
) -> None:
    connection = await connect_as(database, database.admin)
    clause = " and" if " where " in change else " where"
    try:
        await connection.execute(f"{change}{clause} tenant_id = '{scope.tenant_id}'")
    finally:
        await connection.close()
    with pytest.raises(InvalidInputError, match=message):
        await load_facts(scope)


async def test_a_tenant_is_registered_from_nothing(scopes: Scopes, fleet: FleetFile) -> None:
    del fleet
    scope = await scopes.for_registration(OPERATOR, TenantId("from_nothing"))
    async with scope:
        assert await put_tenant(scope, ACME)
        await scope.ensure_data_key()
    sealed = scope.seal(b"x", table="secrets", row_id="1")
    later = await scopes.for_principal(OPERATOR, TenantId("from_nothing"))
    assert later.unseal(sealed, table="secrets", row_id="1") == b"x"
    # Until its scope row stands the tenant can do nothing.
    with pytest.raises(NotFoundError):
        await load_facts(later)
    platform = scopes.platform(reason="test", operator="op_test")
    async with platform:
        page = await list_tenants(platform, after="from_nothin", limit=1)
    assert [(row.tenant_id, row.display_name) for row in page] == [("from_nothing", ACME.display_name)]


async def test_facts_and_versions_come_from_one_snapshot(
    fresh_database: DatabaseTarget, clock: SystemClock
) -> None:
    """A writer changes the policy and its version together, over and over; a reader never sees them apart."""
    tenant = await register_tenant(fresh_database, clock)
    shard = await Shard.open(fresh_database, ROOT_KEY, PoolSizes(app=3, platform=1), clock)
    try:
        scopes = Scopes(shard, clock)
        platform = scopes.platform(reason="test", operator="op_test")
        async with platform:
            await put_platform(platform, FLEET)
        scope = await scopes.for_principal(tenant.admin)
        async with scope:
            await put_tenant(scope, replaced(policy=PolicySpec(text="1")))
        admin = await connect_as(fresh_database, fresh_database.admin)
        try:
            for version in range(2, 30):
                writing = admin.execute(
                    "with v as (update tenantry.scopes set policy_version = $1 where level = 0)"
                    " update tenantry.tenants"
                    " set spec = jsonb_set(spec, '{policy,text}', to_jsonb($1::text))",
                    version,
                )
                reader = await scopes.for_principal(tenant.admin)
                facts, _ = await asyncio.gather(load_facts(reader), writing)
                assert facts.policies["tenant"] == str(facts.policy_version)
        finally:
            await admin.close()
    finally:
        await shard.close()
