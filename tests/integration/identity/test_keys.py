"""API keys against the real database: what proves, what does not, and what an attacker can tell."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from pathlib import Path

import pytest
from tests.support.cluster import connect_as
from tests.support.fixtures import MakeTenant
from tests.support.tenants import TestTenant

from tenantry.core.clock import SystemClock
from tenantry.core.errors import InvalidInputError, NotFoundError, UnauthenticatedError
from tenantry.core.ids import TenantId, WorkspaceId
from tenantry.core.principal import Principal, Right, Role
from tenantry.identity import keys as module
from tenantry.identity.key_format import new_key, parse_key
from tenantry.identity.keys import ApiKeys
from tenantry.identity.operator_keys import ensure_operator_key, revoke_operator_key
from tenantry.identity.rights import require
from tenantry.registry.specs import WorkspaceSpec
from tenantry.registry.store import put_spec
from tenantry.storage.connect import DatabaseTarget, Row
from tenantry.storage.database import Shard
from tenantry.storage.directory import Directory
from tenantry.storage.errors import StatementError
from tenantry.storage.scope import Scopes


class CountingDirectory(Directory):
    """The real directory, which also notes what was asked of it."""

    def __init__(self, shard: Shard) -> None:
        super().__init__(shard)
        self.asked: list[str] = []

    async def find_tenant_by_key(self, key_sha256: bytes) -> tuple[TenantId | None, bool] | None:
        self.asked.append("tenant")
        return await super().find_tenant_by_key(key_sha256)

    async def find_operator(self, key_sha256: bytes) -> Row | None:
        self.asked.append("operator")
        return await super().find_operator(key_sha256)


@pytest.fixture
def directory(shard: Shard) -> CountingDirectory:
    return CountingDirectory(shard)


@pytest.fixture
def keys(scopes: Scopes, directory: CountingDirectory, clock: SystemClock) -> ApiKeys:
    return ApiKeys(scopes, directory, clock)


@pytest.fixture
def other_process(scopes: Scopes, shard: Shard, clock: SystemClock) -> ApiKeys:
    return ApiKeys(scopes, Directory(shard), clock)


async def make_key(
    keys: ApiKeys, scopes: Scopes, tenant: TestTenant, role: Role = Role.DEVELOPER, **options: object
) -> tuple[Principal, str]:
    scope = await scopes.for_principal(tenant.admin)
    async with scope:
        return await keys.create(scope, role=role, **options)  # type: ignore[arg-type]


async def declare_workspace(scopes: Scopes, tenant: TestTenant) -> None:
    scope = await scopes.for_principal(tenant.admin)
    async with scope:
        await put_spec(scope, "workspace", tenant.workspace_id, WorkspaceSpec(external_account_id="a_1"))


async def test_a_key_proves_its_principal(
    keys: ApiKeys, other_process: ApiKeys, scopes: Scopes, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    principal, token = await make_key(keys, scopes, tenant)
    assert (principal.tenant_id, principal.role) == (tenant.tenant_id, Role.DEVELOPER)
    assert keys.find_cached(token) is None
    assert await keys.authenticate(token) == principal
    assert keys.find_cached(token) == principal
    assert await other_process.authenticate(token) == principal
    require(principal, Right.RUN_START, tenant.tenant_id)


@pytest.mark.invariant(8)
async def test_neither_token_nor_secret_part_is_stored(
    keys: ApiKeys, scopes: Scopes, make_tenant: MakeTenant, database: DatabaseTarget
) -> None:
    tenant = await make_tenant()
    _, token = await make_key(keys, scopes, tenant)
    connection = await connect_as(database, database.admin)
    try:
        stored = str(
            await connection.fetch("select * from tenantry.api_keys where tenant_id = $1", tenant.tenant_id)
        )
    finally:
        await connection.close()
    assert token.split("_", 2)[2] not in stored
    assert token[:16] in stored


@pytest.mark.invariant(12)
async def test_a_key_of_one_tenant_opens_nothing_of_another(
    keys: ApiKeys, scopes: Scopes, make_tenant: MakeTenant
) -> None:
    ours, theirs = await make_tenant(), await make_tenant()
    _, token = await make_key(keys, scopes, ours, Role.TENANT_ADMIN)
    their_principal, _ = await make_key(keys, scopes, theirs)
    principal = await keys.authenticate(token)
    answers = []
    for named in (theirs.tenant_id, TenantId("never_was"), TenantId("Not A Tenant")):
        with pytest.raises(NotFoundError) as refused:
            await scopes.for_principal(principal, named)
        answers.append(str(refused.value))
        with pytest.raises(NotFoundError):
            require(principal, Right.TENANT_READ, named)
    assert len(set(answers)) == 1
    scope = await scopes.for_principal(principal)
    async with scope:
        assert {row.key_id for row in await keys.list_keys(scope)} == {principal.key_id}
    foreign_or_absent = []
    for key_id in (their_principal.key_id, "0" * 12, "x", "\0", "\ud800", "' or true --"):
        with pytest.raises(NotFoundError) as unknown:
            async with scope:
                await keys.revoke(scope, key_id)
        foreign_or_absent.append(str(unknown.value))
    assert len(set(foreign_or_absent)) == 1


@pytest.mark.invariant(12)
async def test_guessing_ids_tells_nothing(
    keys: ApiKeys, directory: CountingDirectory, scopes: Scopes, make_tenant: MakeTenant, clock: SystemClock
) -> None:
    """A wrong secret after a real id, after no id, and a revoked key: the same look-ups, the same words."""
    tenant = await make_tenant()
    principal, token = await make_key(keys, scopes, tenant)
    revoked, revoked_token = await make_key(keys, scopes, tenant)
    scope = await scopes.for_principal(tenant.admin)
    async with scope:
        await keys.revoke(scope, revoked.key_id)
    stranger = new_key(clock)
    guesses = [f"tnk_{principal.key_id}_{stranger[17:]}", stranger, revoked_token]
    seen = []
    for guess in guesses:
        directory.asked.clear()
        with pytest.raises(UnauthenticatedError) as refused:
            await keys.authenticate(guess)
        seen.append((tuple(directory.asked), str(refused.value)))
    assert len(set(seen)) == 1
    assert seen[0][0] == ("tenant", "operator")
    assert (await keys.authenticate(token)).key_id == principal.key_id


@pytest.mark.parametrize(
    "token",
    [
        "",
        "tnk_",
        "\0",
        "\ud800",
        "A" * 1_000_000,
        "tnk_0123456789AB_" + "\u0430" * 43,
        "Bearer x",
        "eyJ.e30.",
    ],
)
async def test_a_token_of_another_shape_reaches_no_database(
    token: str, keys: ApiKeys, directory: CountingDirectory
) -> None:
    with pytest.raises(UnauthenticatedError):
        await keys.authenticate(token)
    assert keys.find_cached(token) is None
    assert directory.asked == []


async def test_a_revocation_is_seen_at_once_here_and_soon_elsewhere(
    keys: ApiKeys,
    other_process: ApiKeys,
    scopes: Scopes,
    make_tenant: MakeTenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tenant = await make_tenant()
    principal, token = await make_key(keys, scopes, tenant)
    await keys.authenticate(token)
    await other_process.authenticate(token)
    scope = await scopes.for_principal(tenant.admin)
    for _ in range(2):
        async with scope:
            await keys.revoke(scope, principal.key_id)
    with pytest.raises(UnauthenticatedError):
        await keys.authenticate(token)
    assert await other_process.authenticate(token) == principal
    later = SystemClock()
    moment = later.monotonic() + module.REMEMBERED_S
    monkeypatch.setattr(other_process._clock, "monotonic", lambda: moment)
    with pytest.raises(UnauthenticatedError):
        await other_process.authenticate(token)
    async with scope:
        (row,) = await keys.list_keys(scope)
    assert row.revoked_at is not None


async def test_an_expiry_is_kept_to_the_moment(
    keys: ApiKeys,
    scopes: Scopes,
    make_tenant: MakeTenant,
    monkeypatch: pytest.MonkeyPatch,
    clock: SystemClock,
) -> None:
    tenant = await make_tenant()
    ends = clock.now() + dt.timedelta(seconds=2)
    _, token = await make_key(keys, scopes, tenant, expires_at=ends)
    await keys.authenticate(token)
    monkeypatch.setattr(keys._clock, "now", lambda: ends)
    assert keys.find_cached(token) is None


async def test_an_expired_key_is_refused_by_the_database_too(
    keys: ApiKeys, scopes: Scopes, make_tenant: MakeTenant, database: DatabaseTarget
) -> None:
    tenant = await make_tenant()
    _, token = await make_key(keys, scopes, tenant)
    connection = await connect_as(database, database.admin)
    try:
        await connection.execute(
            "update tenantry.api_keys set expires_at = tenantry.now() where tenant_id = $1", tenant.tenant_id
        )
    finally:
        await connection.close()
    with pytest.raises(UnauthenticatedError):
        await keys.authenticate(token)


@pytest.mark.parametrize("role", ["", "root", "operator", "TENANT_ADMIN"])
async def test_a_row_with_a_role_that_is_no_tenants_proves_nothing(
    role: str, keys: ApiKeys, scopes: Scopes, make_tenant: MakeTenant, database: DatabaseTarget
) -> None:
    tenant = await make_tenant()
    _, token = await make_key(keys, scopes, tenant)
    connection = await connect_as(database, database.admin)
    try:
        await connection.execute(
            "update tenantry.api_keys set role = $2 where tenant_id = $1", tenant.tenant_id, role
        )
    finally:
        await connection.close()
    with pytest.raises(UnauthenticatedError):
        await keys.authenticate(token)


async def test_last_use_is_noted_once_a_minute(
    keys: ApiKeys, other_process: ApiKeys, scopes: Scopes, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    _, token = await make_key(keys, scopes, tenant)
    scope = await scopes.for_principal(tenant.admin)

    async def last_used() -> dt.datetime | None:
        async with scope:
            (row,) = await keys.list_keys(scope)
        return row.last_used_at

    assert await last_used() is None
    await keys.authenticate(token)
    noted = await last_used()
    assert noted is not None
    await other_process.authenticate(token)
    assert await last_used() == noted


async def test_many_at_once_agree(keys: ApiKeys, scopes: Scopes, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    principal, token = await make_key(keys, scopes, tenant)
    assert set(await asyncio.gather(*(keys.authenticate(token) for _ in range(32)))) == {principal}


async def test_what_cannot_be_made_is_named(
    keys: ApiKeys, scopes: Scopes, make_tenant: MakeTenant, clock: SystemClock
) -> None:
    tenant = await make_tenant()
    naive = dt.datetime(2999, 1, 1)  # noqa: DTZ001 - the error is the point
    for options, path in (
        ({"role": Role.OPERATOR}, "$.role"),
        ({"workspace_id": WorkspaceId("nowhere")}, "$.workspace_id"),
        ({"expires_at": clock.now()}, "$.expires_at"),
        ({"expires_at": naive}, "$.expires_at"),
    ):
        with pytest.raises(InvalidInputError) as refused:
            await make_key(keys, scopes, tenant, **options)
        assert refused.value.path == path


async def test_a_narrowed_key_keeps_its_workspace(
    keys: ApiKeys, scopes: Scopes, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    await declare_workspace(scopes, tenant)
    _, token = await make_key(keys, scopes, tenant, workspace_id=tenant.workspace_id)
    wide, _ = await make_key(keys, scopes, tenant)
    principal = await keys.authenticate(token)
    assert principal.workspace_id == tenant.workspace_id
    scope = await scopes.for_principal(tenant.admin)
    async with scope:
        (row,) = await keys.list_keys(scope, workspace_id=tenant.workspace_id)
        assert row.key_id == principal.key_id
        assert len(await keys.list_keys(scope)) == 2
    with pytest.raises(NotFoundError):
        async with scope:
            await keys.revoke(scope, wide.key_id, workspace_id=tenant.workspace_id)


async def test_keys_in_force_are_bounded_and_pages_are_whole(
    keys: ApiKeys, scopes: Scopes, make_tenant: MakeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEYS_IN_FORCE_MAX", 3)
    tenant = await make_tenant()
    made = [(await make_key(keys, scopes, tenant))[0].key_id for _ in range(3)]
    with pytest.raises(InvalidInputError, match="at most 3"):
        await make_key(keys, scopes, tenant)
    scope = await scopes.for_principal(tenant.admin)
    found: list[str] = []
    async with scope:
        while page := await keys.list_keys(scope, after=found[-1] if found else "", limit=2):
            found += [row.key_id for row in page]
    assert found == sorted(made)
    with pytest.raises(InvalidInputError):
        async with scope:
            await keys.list_keys(scope, after="\0")


async def test_a_creation_that_is_rolled_back_proves_nothing(
    keys: ApiKeys, scopes: Scopes, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    scope = await scopes.for_principal(tenant.admin)
    token = ""
    with contextlib.suppress(ZeroDivisionError):
        async with scope:
            _, token = await keys.create(scope, role=Role.VIEWER)
            raise ZeroDivisionError
    assert parse_key(token) is not None
    with pytest.raises(UnauthenticatedError):
        await keys.authenticate(token)


async def test_memory_is_bounded(
    keys: ApiKeys, scopes: Scopes, make_tenant: MakeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMEMBERED_MAX", 2)
    tenant = await make_tenant()
    tokens = [(await make_key(keys, scopes, tenant))[1] for _ in range(4)]
    for token in tokens:
        await keys.authenticate(token)
    assert [keys.find_cached(token) is not None for token in tokens] == [False, False, True, True]


async def test_the_operators_key_is_made_once_and_kept(
    keys: ApiKeys, directory: CountingDirectory, scopes: Scopes, tmp_path: Path, clock: SystemClock
) -> None:
    path = tmp_path / "operator.key"

    async def start() -> Principal:
        scope = scopes.platform(reason="first start", operator="bootstrap")
        async with scope:
            return await ensure_operator_key(scope, directory, path, clock)

    first = await start()
    assert path.stat().st_mode & 0o777 == 0o600
    token = path.read_text().strip()
    assert await start() == first == await keys.authenticate(token)
    assert (first.role, first.tenant_id) == (Role.OPERATOR, None)
    assert path.read_text().strip() == token

    scope = scopes.platform(reason="the key leaked", operator=first.principal_id)
    async with scope:
        await revoke_operator_key(scope, directory, first.key_id)
    with pytest.raises(UnauthenticatedError):
        await ApiKeys(scopes, directory, clock).authenticate(token)
    second = await start()
    assert second.key_id != first.key_id
    assert await keys.authenticate(path.read_text().strip()) == second
    for key_id in ("0" * 12, "\0", ""):
        with pytest.raises(NotFoundError):
            async with scope:
                await revoke_operator_key(scope, directory, key_id)


async def test_a_start_that_died_before_its_commit_is_taken_up(
    keys: ApiKeys, directory: CountingDirectory, scopes: Scopes, tmp_path: Path, clock: SystemClock
) -> None:
    path = tmp_path / "operator.key"
    scope = scopes.platform(reason="first start", operator="bootstrap")
    with contextlib.suppress(ZeroDivisionError):
        async with scope:
            await ensure_operator_key(scope, directory, path, clock)
            raise ZeroDivisionError
    token = path.read_text().strip()
    with pytest.raises(UnauthenticatedError):
        await keys.authenticate(token)
    async with scope:
        operator = await ensure_operator_key(scope, directory, path, clock)
    assert await keys.authenticate(token) == operator


@pytest.mark.parametrize("content", [b"", b"\n", b"tnk_\n", b"\xff" * 60, b"A" * 5000])
async def test_a_file_that_holds_no_key_is_named(
    content: bytes, directory: CountingDirectory, scopes: Scopes, tmp_path: Path, clock: SystemClock
) -> None:
    path = tmp_path / "operator.key"
    path.touch(mode=0o600)
    path.write_bytes(content)
    scope = scopes.platform(reason="first start", operator="bootstrap")
    with pytest.raises(InvalidInputError, match=r"operator\.key"):
        async with scope:
            await ensure_operator_key(scope, directory, path, clock)
    assert path.read_bytes() == content


@pytest.mark.invariant(12)
async def test_a_tenant_cannot_make_itself_an_operator(
    keys: ApiKeys, directory: CountingDirectory, scopes: Scopes, make_tenant: MakeTenant, clock: SystemClock
) -> None:
    """Nor note its own digest for another tenant, nor take another's digest out of the directory."""
    ours, theirs = await make_tenant(), await make_tenant()
    _, their_token = await make_key(keys, scopes, theirs)
    scope = await scopes.for_principal(ours.admin)
    add, parsed = directory._statements["add_key"], parse_key(new_key(clock))
    assert parsed is not None
    for named in (None, theirs.tenant_id):
        with pytest.raises(StatementError):
            async with scope:
                await scope.execute(add, parsed.key_sha256, named)
    their_key = parse_key(their_token)
    assert their_key is not None
    async with scope:
        await directory.remove_key(scope, their_key.key_sha256)
    assert (await keys.authenticate(their_token)).tenant_id == theirs.tenant_id
