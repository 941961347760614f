"""The broker against the real database: who gets a credential, who does not, and how soon that changes."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from tests.support.cluster import connect_as
from tests.support.fixtures import MakeTenant

from tenantry.broker import broker as module
from tenantry.broker.broker import Broker
from tenantry.broker.secrets import (
    Credential,
    CredentialRefused,
    RefusalReason,
    SecretRequest,
    SecretValue,
)
from tenantry.broker.store import (
    SecretDeclaration,
    StoredSecret,
    find_newest,
    list_secrets,
    put_secret,
    revoke_secret,
    rotate_secret,
)
from tenantry.core.clock import SystemClock
from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.ids import WorkspaceId
from tenantry.registry.specs import WorkspaceSpec
from tenantry.registry.store import put_spec
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.errors import SealBrokenError
from tenantry.storage.scope import Scopes, TenantScope

SUPPORT = WorkspaceId("support")
OTHER = WorkspaceId("other")
ZENDESK = SecretDeclaration(SUPPORT, "zendesk-token", "zendesk", ("triage", "closer"), "mutate")
REQUEST = SecretRequest(SUPPORT, "triage", "zendesk", "zendesk-token", mutates=True)

NewScope = Callable[[], Awaitable[TenantScope]]


@pytest.fixture
def new_scope(scopes: Scopes, make_tenant: MakeTenant) -> NewScope:
    """A tenant with two workspaces, and the scope of its administrator."""

    async def make() -> TenantScope:
        tenant = await make_tenant()
        scope = await scopes.for_principal(tenant.admin)
        async with scope:
            for name in (SUPPORT, OTHER):
                await put_spec(scope, "workspace", name, WorkspaceSpec(external_account_id="a_1"))
        return scope

    return make


async def put(scope: TenantScope, value: str, declaration: SecretDeclaration = ZENDESK) -> int:
    async with scope:
        version, _ = await put_secret(scope, declaration, SecretValue(value))
    return version


def revealed(answer: Credential | CredentialRefused) -> str:
    assert isinstance(answer, Credential), answer
    return answer.value.reveal()


def refusal(answer: Credential | CredentialRefused) -> RefusalReason:
    assert isinstance(answer, CredentialRefused), answer
    return answer.reason


async def test_the_tenants_own_credential_is_handed_out(new_scope: NewScope, clock: SystemClock) -> None:
    scope = await new_scope()
    await put(scope, "sésame")
    broker = Broker(clock)
    for _ in range(3):
        answer = await broker.credential(scope, REQUEST)
        assert revealed(answer) == "sésame"
        assert isinstance(answer, Credential)
        assert answer.version == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"workspace_id": OTHER}, RefusalReason.ABSENT),
        ({"secret_name": "never-was"}, RefusalReason.ABSENT),
        ({"secret_name": "\0"}, RefusalReason.ABSENT),
        ({"secret_name": "\ud800"}, RefusalReason.ABSENT),
        ({"secret_name": "x" * 1_000_000}, RefusalReason.ABSENT),
        ({"workspace_id": "support/zendesk-token"}, RefusalReason.ABSENT),
        ({"workspace_id": ""}, RefusalReason.ABSENT),
        ({"agent_class": "runaway"}, RefusalReason.AGENT_CLASS),
        ({"agent_class": ""}, RefusalReason.AGENT_CLASS),
        ({"agent_class": "*"}, RefusalReason.AGENT_CLASS),
        ({"system": "jira"}, RefusalReason.SYSTEM),
        ({"system": "ZENDESK"}, RefusalReason.SYSTEM),
    ],
)
async def test_others_are_refused_with_the_reason(
    changes: dict[str, object], reason: RefusalReason, new_scope: NewScope, clock: SystemClock
) -> None:
    scope = await new_scope()
    await put(scope, "hunter2")
    broker = Broker(clock)
    for _ in range(2):
        answer = await broker.credential(scope, msgspec.structs.replace(REQUEST, **changes))
        assert refusal(answer) == reason
        assert "hunter2" not in repr(answer)


async def test_a_reading_secret_serves_no_mutation(new_scope: NewScope, clock: SystemClock) -> None:
    scope = await new_scope()
    await put(scope, "hunter2", msgspec.structs.replace(ZENDESK, capability="read"))
    broker = Broker(clock)
    assert refusal(await broker.credential(scope, REQUEST)) == RefusalReason.READ_ONLY
    reading = msgspec.structs.replace(REQUEST, mutates=False)
    assert revealed(await broker.credential(scope, reading)) == "hunter2"


@pytest.mark.invariant(12)
async def test_one_broker_keeps_tenants_apart(new_scope: NewScope, clock: SystemClock) -> None:
    broker = Broker(clock)
    ours, theirs, none = await new_scope(), await new_scope(), await new_scope()
    await put(ours, "ours")
    await put(theirs, "theirs")
    for _ in range(2):
        assert revealed(await broker.credential(ours, REQUEST)) == "ours"
        assert revealed(await broker.credential(theirs, REQUEST)) == "theirs"
        assert refusal(await broker.credential(none, REQUEST)) == RefusalReason.ABSENT
    broker.invalidate(ours.tenant_id)
    assert [entry.tenant_id for entry in broker._entries.values()] == [theirs.tenant_id, none.tenant_id]


@pytest.mark.invariant(12)
async def test_a_sealed_row_under_another_tenant_name_or_version_does_not_open(
    new_scope: NewScope, clock: SystemClock, database: DatabaseTarget
) -> None:
    ours, theirs = await new_scope(), await new_scope()
    await put(ours, "ours")
    await put(theirs, "hunter2")
    connection = await connect_as(database, database.admin)
    try:
        await connection.execute(
            "update tenantry.secrets s set sealed = o.sealed from tenantry.secrets o"
            " where s.tenant_id = $1 and o.tenant_id = $2",
            ours.tenant_id,
            theirs.tenant_id,
        )
        await connection.execute(
            "update tenantry.secrets set version = 2 where tenant_id = $1", theirs.tenant_id
        )
    finally:
        await connection.close()
    for scope in (ours, theirs):
        with pytest.raises(SealBrokenError) as broken:
            await Broker(clock).credential(scope, REQUEST)
        shown = "".join(
            traceback.TracebackException.from_exception(broken.value, capture_locals=True).format()
        )
        assert "hunter2" not in shown


@pytest.mark.invariant(8)
async def test_what_is_stored_and_cached_is_sealed(
    new_scope: NewScope, clock: SystemClock, database: DatabaseTarget
) -> None:
    scope = await new_scope()
    await put(scope, "hunter2-plain")
    broker = Broker(clock)
    await broker.credential(scope, REQUEST)
    (entry,) = broker._entries.values()
    assert entry.stored is not None
    assert entry.stored.sealed is not None
    assert b"hunter2" not in entry.stored.sealed
    assert broker._bytes_held == len(entry.stored.sealed)
    connection = await connect_as(database, database.admin)
    try:
        stored = await connection.fetchval(
            "select string_agg(s::text, '') from tenantry.secrets s where tenant_id = $1", scope.tenant_id
        )
    finally:
        await connection.close()
    assert b"hunter2-plain".hex() not in stored
    async with scope:
        assert "hunter2" not in repr(await list_secrets(scope))


async def test_a_rotation_with_overlap_hands_out_the_newest(new_scope: NewScope, clock: SystemClock) -> None:
    scope = await new_scope()
    broker = Broker(clock)
    await put(scope, "one")
    await broker.credential(scope, REQUEST)
    async with scope:
        assert await rotate_secret(scope, SUPPORT, "zendesk-token", SecretValue("two"), overlap=True) == 2
    broker.invalidate(scope.tenant_id)
    answer = await broker.credential(scope, REQUEST)
    assert revealed(answer) == "two"
    async with scope:
        versions = await list_secrets(scope)
    assert [(row.version, row.revoked_at is None, row.current) for row in versions] == [
        (1, True, False),
        (2, True, True),
    ]
    async with scope:
        assert await rotate_secret(scope, SUPPORT, "zendesk-token", SecretValue("three"), overlap=False) == 3
        versions = await list_secrets(scope)
    assert [(row.version, row.revoked_at is None) for row in versions] == [(1, False), (2, False), (3, True)]


async def test_revoking_the_newest_never_brings_an_older_back(
    new_scope: NewScope, clock: SystemClock, database: DatabaseTarget
) -> None:
    scope = await new_scope()
    await put(scope, "one")
    async with scope:
        await rotate_secret(scope, SUPPORT, "zendesk-token", SecretValue("two"), overlap=True)
        assert await revoke_secret(scope, SUPPORT, "zendesk-token", 2) == 1
        assert await revoke_secret(scope, SUPPORT, "zendesk-token", 2) == 0
    assert refusal(await Broker(clock).credential(scope, REQUEST)) == RefusalReason.REVOKED
    async with scope:
        assert await revoke_secret(scope, SUPPORT, "zendesk-token") == 1
    connection = await connect_as(database, database.admin)
    try:
        left = await connection.fetchval(
            "select count(sealed) from tenantry.secrets where tenant_id = $1", scope.tenant_id
        )
    finally:
        await connection.close()
    assert left == 0
    assert await put(scope, "one") == 3
    assert revealed(await Broker(clock).credential(scope, REQUEST)) == "one"


async def test_another_process_sees_a_revocation_within_a_second(
    new_scope: NewScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = await new_scope()
    await put(scope, "one")
    clock = SystemClock()
    start = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: start)
    elsewhere = Broker(clock)
    await elsewhere.credential(scope, REQUEST)
    async with scope:
        await revoke_secret(scope, SUPPORT, "zendesk-token")
    assert revealed(await elsewhere.credential(scope, REQUEST)) == "one"
    monkeypatch.setattr(clock, "monotonic", lambda: start + module.STALE_S_MAX + 0.001)
    assert refusal(await elsewhere.credential(scope, REQUEST)) == RefusalReason.REVOKED


async def test_putting_the_same_changes_nothing(new_scope: NewScope) -> None:
    scope = await new_scope()
    assert await put(scope, "one") == 1
    assert await put(scope, "one") == 1
    reordered = msgspec.structs.replace(ZENDESK, agent_classes=("closer", "triage", "closer"))
    assert await put(scope, "one", reordered) == 1
    assert await put(scope, "two") == 2
    assert await put(scope, "two", msgspec.structs.replace(ZENDESK, system="jira")) == 3


async def test_writers_at_once_count_versions_without_a_gap(scopes: Scopes, new_scope: NewScope) -> None:
    scope = await new_scope()

    async def write(number: int) -> int:
        own = await scopes.for_job(scope.tenant_id, "test")
        return await put(own, f"value {number}")

    assert sorted(await asyncio.gather(*(write(number) for number in range(8)))) == list(range(1, 9))


async def test_many_at_once_read_the_row_once(
    scopes: Scopes, new_scope: NewScope, clock: SystemClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = await new_scope()
    await put(scope, "one")
    reads = 0

    async def counted(own: TenantScope, workspace_id: WorkspaceId, name: str) -> StoredSecret | None:
        nonlocal reads
        reads += 1
        return await find_newest(own, workspace_id, name)

    monkeypatch.setattr(module, "find_newest", counted)
    broker = Broker(clock)

    async def use() -> str:
        own = await scopes.for_job(scope.tenant_id, "test")
        return revealed(await broker.credential(own, REQUEST))

    assert set(await asyncio.gather(*(use() for _ in range(64)))) == {"one"}
    assert reads == 1


async def test_one_that_is_cancelled_while_reading_stops_no_other(
    scopes: Scopes, new_scope: NewScope, clock: SystemClock
) -> None:
    scope = await new_scope()
    await put(scope, "one")
    broker = Broker(clock)
    own = [await scopes.for_job(scope.tenant_id, "test") for _ in range(2)]
    first, second = (asyncio.create_task(broker.credential(each, REQUEST)) for each in own)
    await asyncio.sleep(0)
    first.cancel()
    assert revealed(await second) == "one"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_memory_is_bounded_in_entries_and_bytes(
    new_scope: NewScope, clock: SystemClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = await new_scope()
    monkeypatch.setattr(module, "ENTRIES_MAX", 5)
    broker = Broker(clock)
    for number in range(20):
        await broker.credential(scope, msgspec.structs.replace(REQUEST, secret_name=f"absent-{number}"))
    assert len(broker._entries) == 5
    monkeypatch.setattr(module, "CACHED_BYTES_MAX", 2500)
    for number in range(4):
        await put(scope, "x" * 1000, msgspec.structs.replace(ZENDESK, name=f"big-{number}"))
        await broker.credential(scope, msgspec.structs.replace(REQUEST, secret_name=f"big-{number}"))
    assert broker._bytes_held <= 2500
    assert broker._bytes_held == sum(entry.bytes_held for entry in broker._entries.values())
    broker.invalidate(scope.tenant_id)
    assert (broker._bytes_held, len(broker._entries)) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"workspace_id": "nowhere"}, "$.workspace_id"),
        ({"workspace_id": "\0"}, "$.workspace_id"),
        ({"name": "a/b"}, "$.name"),
        ({"name": "\ud800"}, "$.name"),
        ({"system": ""}, "$.system"),
        ({"agent_classes": ()}, "$.agent_classes"),
        ({"agent_classes": ("ok", "*")}, "$.agent_classes[0]"),
        ({"agent_classes": tuple(f"c{n}" for n in range(65))}, "$.agent_classes"),
        ({"capability": "admin"}, "$.capability"),
    ],
)
async def test_bad_declarations_are_named(changes: dict[str, object], path: str, new_scope: NewScope) -> None:
    scope = await new_scope()
    with pytest.raises(InvalidInputError) as refused:
        await put(scope, "hunter2", msgspec.structs.replace(ZENDESK, **changes))
    assert refused.value.path == path


@pytest.mark.parametrize("name", ["never-was", "\0", "", "a/b", "\ud800"])
async def test_what_never_was_is_not_found(name: str, new_scope: NewScope) -> None:
    scope = await new_scope()
    await put(scope, "one")
    with pytest.raises(NotFoundError):
        async with scope:
            await rotate_secret(scope, SUPPORT, name, SecretValue("two"), overlap=True)
    with pytest.raises(NotFoundError):
        async with scope:
            await revoke_secret(scope, SUPPORT, name)
    for version in (0, -1, 2, 2**40):
        with pytest.raises(NotFoundError):
            async with scope:
                await revoke_secret(scope, SUPPORT, "zendesk-token", version)


async def test_pages_are_whole(new_scope: NewScope) -> None:
    scope = await new_scope()
    for workspace_id in (SUPPORT, OTHER):
        for name in ("a", "b"):
            declaration = msgspec.structs.replace(ZENDESK, workspace_id=workspace_id, name=name)
            await put(scope, "one", declaration)
            await put(scope, "two", declaration)
    after, found = ("", "", 0), []
    async with scope:
        while page := await list_secrets(scope, after=after, limit=3):
            found += [(row.workspace_id, row.name, row.version) for row in page]
            after = (page[-1].workspace_id, page[-1].name, page[-1].version)
        narrowed = await list_secrets(scope, OTHER)
    assert found == [(w, n, v) for w in (OTHER, SUPPORT) for n in "ab" for v in (1, 2)]
    assert {row.workspace_id for row in narrowed} == {OTHER}
