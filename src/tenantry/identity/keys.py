"""API keys: who asks, as proven by a token (`key_format.py` has its shape).

Authentication is two look-ups by digest: the directory says whose key it is, then the key's row is read in a
scope of that tenant alone. The public id in the token is never looked up, so a token that names another's id
and one that names nobody's take the same way to the same refusal; a revoked key leaves the directory and is
as one that never was. For a token that is nobody's the second look-up is made too, in vain, so that the time
tells nothing.

A proven token is remembered for at most five seconds, which is how long another process's revocation may go
unseen.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import msgspec

from tenantry.core.clock import Clock
from tenantry.core.errors import InvalidInputError, NotFoundError, UnauthenticatedError
from tenantry.core.ids import KeyId, PrincipalId, TenantId, WorkspaceId, new_id
from tenantry.core.principal import Principal, Role
from tenantry.identity.key_format import ParsedKey, is_key_id, new_key, parse_key
from tenantry.storage.connect import Row
from tenantry.storage.directory import Directory
from tenantry.storage.scope import Scopes, TenantScope
from tenantry.storage.statements import Statement, load_statements

REMEMBERED_S: Final = 5.0
REMEMBERED_MAX: Final = 10_000
KEYS_IN_FORCE_MAX: Final = 1_000
PAGE_MAX: Final = 1_000


class ApiKeyRow(msgspec.Struct, frozen=True):
    """What people see of a key; times are aware UTC. `role` is as stored, even one that has no rights."""

    key_id: KeyId
    prefix: str
    principal_id: PrincipalId
    role: str
    workspace_id: WorkspaceId | None
    created_at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    last_used_at: dt.datetime | None


class _Proven(msgspec.Struct, frozen=True):
    principal: Principal
    until: float
    expires_at: dt.datetime | None


class ApiKeys:
    """Proves, makes, revokes and lists keys. One for a process; bounded memory, no token kept."""

    def __init__(self, scopes: Scopes, directory: Directory, clock: Clock) -> None:
        self._scopes = scopes
        self._directory = directory
        self._clock = clock
        self._proven: OrderedDict[bytes, _Proven] = OrderedDict()

    async def authenticate(self, token: str) -> Principal:
        """The principal whose token this is; ~5 us when it was proven lately, else about five round trips.

        Errors: `UnauthenticatedError`, alike for all that can be wrong; `StorageUnavailableError`.
        """
        parsed = parse_key(token)
        if parsed is None:
            raise _refusal()
        found = self._find_proven(parsed)
        if found is not None:
            return found
        asked_at = self._clock.monotonic()
        principal, expires_at = await self._look_up(parsed)
        self._proven[parsed.key_sha256] = _Proven(principal, asked_at + REMEMBERED_S, expires_at)
        self._proven.move_to_end(parsed.key_sha256)
        if len(self._proven) > REMEMBERED_MAX:
            self._proven.popitem(last=False)
        return principal

    def find_cached(self, token: str) -> Principal | None:
        """The principal of a token that was proven in the last seconds; None: `authenticate` must look."""
        parsed = parse_key(token)
        return None if parsed is None else self._find_proven(parsed)

    async def create(
        self,
        scope: TenantScope,
        *,
        role: Role,
        workspace_id: WorkspaceId | None = None,
        expires_at: dt.datetime | None = None,
    ) -> tuple[Principal, str]:
        """A new key of the scope's tenant: its principal, and the token, which is nowhere else.

        Runs inside the caller's ``async with scope:`` and takes effect with it. Cost: three statements.
        Errors: `InvalidInputError` that names the field: an operator's role, a workspace that is not
        declared, an expiry that is past, or too many keys in force.
        """
        if role is Role.OPERATOR:
            raise InvalidInputError("an operator's key belongs to no tenant", path="$.role")
        if expires_at is not None and (expires_at.tzinfo is None or expires_at <= self._clock.now()):
            raise InvalidInputError("an expiry is a time to come, with its zone", path="$.expires_at")
        statements = _statements()
        room = await scope.fetch_one(statements["room_for_key"], scope.tenant_id, workspace_id)
        assert room is not None
        if not room["workspace_stands"]:
            raise InvalidInputError("no workspace of that name is declared", path="$.workspace_id")
        if room["in_force"] >= KEYS_IN_FORCE_MAX:
            raise InvalidInputError(f"a tenant has at most {KEYS_IN_FORCE_MAX} keys in force; revoke some")
        token = new_key(self._clock)
        parsed = parse_key(token)
        assert parsed is not None, "a new key has its shape"
        principal = Principal(
            principal_id=PrincipalId(new_id("prn", self._clock)),
            key_id=parsed.key_id,
            role=role,
            tenant_id=scope.tenant_id,
            workspace_id=workspace_id,
        )
        await scope.execute(
            statements["add_key"],
            scope.tenant_id,
            parsed.key_id,
            parsed.key_sha256,
            parsed.prefix,
            principal.principal_id,
            role.value,
            workspace_id,
            expires_at,
        )
        await self._directory.add_key(scope, parsed.key_sha256)
        return principal, token

    async def revoke(
        self, scope: TenantScope, key_id: str, *, workspace_id: WorkspaceId | None = None
    ) -> None:
        """Revoke a key of the tenant's, or of one workspace's alone; again is no error.

        Runs inside the caller's ``async with scope:``. This process forgets the key at once, others within
        five seconds. Cost: two statements. Errors: `NotFoundError`, for another tenant's key as for none.
        """
        row = None
        if is_key_id(key_id):
            row = await scope.fetch_one(_statements()["revoke_key"], scope.tenant_id, key_id, workspace_id)
        if row is None:
            raise NotFoundError("there is no such key")
        await self._directory.remove_key(scope, row["key_sha256"])
        self._proven.pop(row["key_sha256"], None)

    async def list_keys(
        self,
        scope: TenantScope,
        *,
        workspace_id: WorkspaceId | None = None,
        after: str = "",
        limit: int = 100,
    ) -> list[ApiKeyRow]:
        """A page of the tenant's keys by id, after the one given; at most 1,000; in the caller's block."""
        if after and not is_key_id(after):
            raise InvalidInputError("the cursor is not one that a list gave", path="$.after")
        rows = await scope.fetch_all(
            _statements()["list_keys"],
            scope.tenant_id,
            workspace_id,
            after,
            max(1, min(limit, PAGE_MAX)),
        )
        return [ApiKeyRow(**{field: row[field] for field in ApiKeyRow.__struct_fields__}) for row in rows]

    def _find_proven(self, parsed: ParsedKey) -> Principal | None:
        proven = self._proven.get(parsed.key_sha256)
        if proven is None:
            return None
        expired = proven.expires_at is not None and proven.expires_at <= self._clock.now()
        if expired or proven.until <= self._clock.monotonic():
            del self._proven[parsed.key_sha256]
            return None
        self._proven.move_to_end(parsed.key_sha256)
        return proven.principal

    async def _look_up(self, parsed: ParsedKey) -> tuple[Principal, dt.datetime | None]:
        found = await self._directory.find_tenant_by_key(parsed.key_sha256)
        if found is None or found[0] is None:
            # For nobody's token this finds nothing, and takes the time that an answer takes.
            row = await self._directory.find_operator(parsed.key_sha256)
            if found is None or row is None:
                raise _refusal()
            return _principal(parsed, row, Role.OPERATOR.value, tenant_id=None)
        tenant_id = found[0]
        try:
            scope = await self._scopes.for_job(tenant_id, "authenticate")
        except NotFoundError:
            raise _refusal() from None
        async with scope:
            row = await scope.fetch_one(_statements()["authenticate"], tenant_id, parsed.key_sha256)
        if row is None or row["role"] == Role.OPERATOR.value:
            raise _refusal()
        return _principal(parsed, row, row["role"], tenant_id=tenant_id)


def _principal(
    parsed: ParsedKey, row: Row, role: str, *, tenant_id: TenantId | None
) -> tuple[Principal, dt.datetime | None]:
    try:
        known = Role(role)
    except ValueError:
        raise _refusal() from None
    assert row["key_id"] == parsed.key_id, "a digest belongs to one token"
    narrowed = None if tenant_id is None else row["workspace_id"]
    return Principal(row["principal_id"], row["key_id"], known, tenant_id, narrowed), row["expires_at"]


def _refusal() -> UnauthenticatedError:
    return UnauthenticatedError("the API key is not valid here; ask an administrator for one")


@functools.cache
def _statements() -> Mapping[str, Statement]:
    return load_statements("tenantry.identity", "keys.sql")
