"""The fleet file against the real database: applied once, applied again, refused whole."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.integration.control.support import READS, VALUES, Control, fleet_file, person
from tests.support.tenants import OPERATOR

from tenantry.broker.broker import Broker
from tenantry.broker.secrets import Credential, SecretRequest
from tenantry.control.errors import PolicyFrozenError
from tenantry.core.clock import SystemClock
from tenantry.core.errors import ForbiddenError, InvalidInputError
from tenantry.core.ids import TenantId, WorkspaceId
from tenantry.core.principal import Role
from tenantry.gate.views import build_engine
from tenantry.registry.store import load_facts

Doc = dict[str, Any]


async def test_what_is_applied_stands_and_again_changes_nothing(control: Control) -> None:
    first = await control.apply(fleet_file(), VALUES)
    assert first.changed
    assert {tenant.tenant_id: tenant.changed for tenant in first.tenants} == {"borealis": True, "dunes": True}
    assert any(c.path == "$.tenants.borealis" and c.change == "added" for c in first.changes)
    assert "tk-borealis" not in repr(first) and "sk-acme" not in repr(first)
    entries = await control.value("select count(*) from tenantry.journal")

    again = await control.apply(fleet_file(), VALUES)
    assert not again.changed
    assert again.changes == []
    assert not any(tenant.changed for tenant in again.tenants)
    assert [t.policy_version for t in again.tenants] == [t.policy_version for t in first.tenants]
    assert await control.value("select count(*) from tenantry.journal") == entries
    without_values = await control.apply(fleet_file())
    assert not without_values.changed

    scope = await control.scopes.for_principal(OPERATOR, TenantId("borealis"))
    facts = await load_facts(scope)
    build_engine(facts)
    assert set(facts.policies) == {"guardrail", "tenant", "profile/open"}
    limits = await control.value(
        "select tool_calls_day_limit from tenantry.scopes where tenant_id = 'dunes' and level = 0"
    )
    assert limits == 7


async def test_credentials_reach_the_broker(control: Control) -> None:
    await control.apply(fleet_file(), VALUES)
    broker = Broker(SystemClock())
    scope = await control.scopes.for_principal(OPERATOR, TenantId("borealis"))
    request = SecretRequest(WorkspaceId("support"), "support", "zendesk", "token", mutates=True)
    own = await broker.credential(scope, request)
    platform = await broker.platform_credential(scope, "acme")
    assert isinstance(own, Credential) and own.value.reveal() == "tk-borealis"
    assert isinstance(platform, Credential) and platform.value.reveal() == "sk-acme"
    stored = await control.value("select string_agg(spec::text, '') from tenantry.platform_specs")
    assert "sk-acme" not in stored

    result = await control.apply(fleet_file(), {**VALUES, "providers.acme.credential": "sk-new"})
    assert [c.path for c in result.changes] == ["$.providers.acme.credential"]
    assert result.changes[0].after == "(hidden)"
    rotated = await Broker(SystemClock()).platform_credential(scope, "acme")
    assert isinstance(rotated, Credential) and rotated.value.reveal() == "sk-new" and rotated.version == 2


async def test_a_change_raises_the_version_of_its_tenant_only(control: Control) -> None:
    first = await control.apply(fleet_file(), VALUES)
    document = fleet_file()
    document["tenants"]["dunes"]["policy"] = {"text": READS}
    diff = await control.fleet.diff(OPERATOR, msgspec.json.encode(document), {})
    assert [(c.path, c.change) for c in diff] == [("$.tenants.dunes.policy", "added")]
    result = await control.apply(document)
    versions = {str(t.tenant_id): t.policy_version for t in first.tenants}
    after = {str(t.tenant_id): t.policy_version for t in result.tenants}
    assert after["dunes"] == versions["dunes"] + 1
    assert after["borealis"] == versions["borealis"]
    history = await control.value("select count(*) from tenantry.policy_versions where tenant_id = 'dunes'")
    assert history == 2


async def test_an_export_applies_to_the_same_fleet(control: Control) -> None:
    await control.apply(fleet_file(), VALUES)
    exported = msgspec.to_builtins(await control.fleet.export(OPERATOR))
    assert "tk-borealis" not in repr(exported)
    result = await control.apply(exported)
    assert result.changes == []


async def test_a_class_reaches_tenants_that_the_file_leaves_out(control: Control) -> None:
    await control.apply(fleet_file(), VALUES)
    document = fleet_file()
    del document["tenants"]["dunes"]
    document["quota_classes"]["small"]["tenant"]["journal_bytes"] = 5_000
    await control.apply(document)
    limit = await control.value(
        "select journal_bytes_limit from tenantry.scopes where tenant_id = 'dunes' and level = 0"
    )
    assert limit == 5_000
    del document["quota_classes"]["small"]
    document["tenants"]["borealis"]["quota_class"] = "large"
    with pytest.raises(InvalidInputError, match="leaves out") as caught:
        await control.apply(document)
    assert caught.value.path == "$.quota_classes"


async def test_a_frozen_tenant_stops_the_file_before_anything_is_written(control: Control) -> None:
    await control.apply(fleet_file(), VALUES)
    connection = await control.admin()
    await connection.execute(
        "update tenantry.scopes set frozen = true where tenant_id = 'dunes' and level = 0"
    )
    await connection.close()
    assert not (await control.apply(fleet_file(), VALUES)).changed
    document = fleet_file()
    document["tenants"]["dunes"]["policy"] = {"text": READS}
    document["tenants"]["borealis"]["display_name"] = "New name"
    with pytest.raises(PolicyFrozenError, match="dunes"):
        await control.apply(document)
    name = await control.value("select display_name from tenantry.tenants where tenant_id = 'borealis'")
    assert name == "Borealis"


async def test_two_at_once_end_as_one(control: Control) -> None:
    results = await asyncio.gather(*(control.apply(fleet_file(), VALUES) for _ in range(3)))
    assert all(len(result.tenants) == 2 for result in results)
    assert not (await control.apply(fleet_file(), VALUES)).changed


def change(path: str, value: object) -> Callable[[Doc], None]:
    """Set one field of the file; the last part may be new."""

    def do(document: Doc) -> None:
        *parents, last = path.split("/")
        place: Any = document
        for parent in parents:
            place = place[parent]
        place[last] = value

    return do


def drop(path: str) -> Callable[[Doc], None]:
    def do(document: Doc) -> None:
        *parents, last = path.split("/")
        place: Any = document
        for parent in parents:
            place = place[parent]
        del place[last]

    return do


B = "tenants/borealis"
BAD: list[tuple[str, Callable[[Doc], None]]] = [
    ("$", change("unknown", 1)),
    ("$.version", change("version", 2)),
    ("$", drop("guardrails")),
    ("$.guardrails", change("guardrails", {"text": "permit ("})),
    ("$.guardrails.file", change("guardrails", {"file": "g.cedar"})),
    ("$.quota_classes.small.tenant", change("quota_classes/small/tenant", {"tokens": 1})),
    (
        "$.quota_classes.small.tenant.tool_calls_day",
        change("quota_classes/small/tenant/tool_calls_day", "many"),
    ),
    ("$.tenants.borealis.agents.triage", change("tenants/borealis/agents/triage/colour", "red")),
    (
        "$.tenants.borealis.integrations.zendesk.actions.ticket.update.risk",
        change("tenants/borealis/integrations/zendesk/actions/ticket.update/risk", "mild"),
    ),
    (
        "$.tenants.borealis.secrets.token.agent_classes",
        change("tenants/borealis/secrets/token/agent_classes", []),
    ),
    (
        "$.tenants.borealis.secrets.token.agent_classes[0]",
        change("tenants/borealis/secrets/token/agent_classes", ["A B"]),
    ),
    ("$.quota_classes.small.tenant.tool_calls_day", change("quota_classes/small/tenant/tool_calls_day", -1)),
    (
        "$.quota_classes.small.tenant.tool_calls_day",
        change("quota_classes/small/tenant/tool_calls_day", 2**53 + 1),
    ),
    ("$.quota_classes.a b", change("quota_classes/a b", {})),
    ("$.providers.acme.base_url", change("providers/acme/base_url", "ftp://x")),
    ("$.providers.acme.base_url", change("providers/acme/base_url", "http://u:p@x/")),
    ("$.providers.acme.base_url", change("providers/acme/base_url", "http://x:99999/")),
    ("$.providers.acme.credential", change("providers/acme/credential", {})),
    ("$.providers.acme.credential", change("providers/acme/credential", {"env": "A", "file": "b"})),
    ("$.models.tiny.provider", change("models/tiny/provider", "nobody")),
    ("$.models.tiny.max_output_tokens", change("models/tiny/max_output_tokens", 9_000)),
    ("$.models.tiny.context_window", change("models/tiny/context_window", -1)),
    ("$.tenants.Borealis", change("tenants/Borealis", fleet_file()["tenants"]["dunes"])),
    ("$.tenants.x'; drop", change("tenants/x'; drop", fleet_file()["tenants"]["dunes"])),
    (f"$.{B}.display_name".replace("/", "."), change(f"{B}/display_name", "")),
    (f"$.{B}".replace("/", "."), change(f"{B}/display_name", "a\0b")),
    (f"$.{B}.quota_class".replace("/", "."), change(f"{B}/quota_class", "huge")),
    ("$.tenants.borealis.agents.triage.workspace", change(f"{B}/agents/triage/workspace", "nowhere")),
    ("$.tenants.borealis.agents.triage.policy_profile", change(f"{B}/agents/triage/policy_profile", "no")),
    (
        "$.tenants.borealis.agents.triage.limits.tool_calls_day",
        change(f"{B}/agents/triage/limits", {"tool_calls_day": -5}),
    ),
    (
        "$.tenants.borealis.agents.A!",
        change(f"{B}/agents/A!", fleet_file()["tenants"]["borealis"]["agents"]["triage"]),
    ),
    ("$.tenants.borealis.policy", change(f"{B}/policy", {"text": "permit (principal, action, resource)"})),
    ("$.tenants.borealis.policy", change(f"{B}/policy", {})),
    ("$.tenants.borealis.policy.file", change(f"{B}/policy", {"file": "x"})),
    (
        "$.tenants.borealis.workspaces.support.policy",
        change(
            f"{B}/workspaces/support/policy",
            {"text": '@id("x") permit (principal, action == Action::"no.such", resource);'},
        ),
    ),
    ("$.tenants.borealis.profiles.mine", change(f"{B}/profiles", {"mine": {"text": "nonsense"}})),
    (
        "$.tenants.borealis.integrations.zendesk.base_url",
        change(f"{B}/integrations/zendesk/base_url", "tickets"),
    ),
    (
        "$.tenants.borealis.integrations.zendesk.auth.secret",
        change(f"{B}/integrations/zendesk/auth/secret", "gone"),
    ),
    ("$.tenants.borealis.integrations.zendesk.auth.secret", change(f"{B}/secrets/token/system", "other")),
    (
        "$.tenants.borealis.integrations.zendesk.actions.ticket.update.path",
        change(f"{B}/integrations/zendesk/actions/ticket.update/path", "x"),
    ),
    ("$.tenants.borealis.secrets.token.workspace", change(f"{B}/secrets/token/workspace", "nowhere")),
    ("$.tenants.borealis.secrets.token.value", change(f"{B}/secrets/token/value", {})),
    (
        "$.tenants.borealis.secrets.more.value",
        change(f"{B}/secrets/more", {**fleet_file()["tenants"]["borealis"]["secrets"]["token"]}),
    ),
]


async def test_a_bad_file_names_its_field_and_writes_nothing(control: Control) -> None:
    for path, break_it in BAD:
        document = copy.deepcopy(fleet_file())
        break_it(document)
        with pytest.raises(InvalidInputError) as caught:
            await control.apply(document, VALUES)
        assert caught.value.path.startswith(path), (path, caught.value.path)
    assert await control.value("select count(*) from tenantry.directory_tenants") == 0
    assert await control.value("select count(*) from tenantry.platform_specs") == 0


BAD_VALUES: list[tuple[dict[str, str], str]] = [
    ({}, "$.tenants.borealis.secrets.token.value"),
    ({"tenants.borealis.secrets.token": "x"}, "$.providers.acme.credential"),
    ({**VALUES, "tenants.nobody.secrets.token": "x"}, "$.tenants.nobody.secrets.token"),
    ({**VALUES, "tenants.borealis.secrets.token": ""}, "$.tenants.borealis.secrets.token"),
    ({**VALUES, "tenants.borealis.secrets.token": "a\0"}, "$.tenants.borealis.secrets.token"),
    ({**VALUES, "tenants.borealis.secrets.token": "\ud800"}, "$.tenants.borealis.secrets.token"),
]


async def test_values_are_checked_like_the_file(control: Control) -> None:
    for values, path in BAD_VALUES:
        with pytest.raises(InvalidInputError) as caught:
            await control.apply(fleet_file(), values)
        assert caught.value.path == path
    assert await control.value("select count(*) from tenantry.directory_tenants") == 0


async def test_what_is_no_file_is_refused(control: Control) -> None:
    for document in (b"", b"[]", b"{", b"\xff", b"null", b'{"version": 1}', b"[" * 100_000):
        with pytest.raises(InvalidInputError):
            await control.fleet.apply(OPERATOR, document, {})


async def test_only_operators_apply(control: Control) -> None:
    for role in set(Role) - {Role.OPERATOR}:
        with pytest.raises(ForbiddenError):
            await control.apply(fleet_file(), VALUES, principal=person("borealis", role))
        with pytest.raises(ForbiddenError):
            await control.fleet.export(person("borealis", role))
