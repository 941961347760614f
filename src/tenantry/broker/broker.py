"""The broker: an adapter asks for one action's credential, and gets it or a reason why not (DESIGN §12).

The tenant is the scope's and nothing else's; workspace, agent class, system and capability are checked on
every use, against a row that is at most one second old. Rows are cached sealed: a value is opened for one use
and then dropped.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from tenantry.broker.platform import find_credential, open_credential
from tenantry.broker.secrets import (
    Credential,
    CredentialRefused,
    RefusalReason,
    SecretRequest,
    SecretValue,
)
from tenantry.broker.store import StoredSecret, find_newest, row_id
from tenantry.core.clock import Clock
from tenantry.core.errors import InvalidInputError
from tenantry.core.ids import TenantId, parse_name
from tenantry.storage.scope import TenantScope

# How long a rotation or revocation made by another process may go unseen.
STALE_S_MAX: Final = 1.0
ENTRIES_MAX: Final = 10_000
CACHED_BYTES_MAX: Final = 32 * 1024 * 1024
PROVIDERS_MAX: Final = 1_000


class _Entry:
    """One secret's newest version, read at `read_at` (monotonic seconds); `lock`: one caller reads it."""

    __slots__ = ("lock", "read_at", "stored", "tenant_id")

    def __init__(self, tenant_id: TenantId) -> None:
        self.tenant_id = tenant_id
        self.lock = asyncio.Lock()
        self.stored: StoredSecret | None = None
        self.read_at = float("-inf")

    @property
    def bytes_held(self) -> int:
        return len(self.stored.sealed) if self.stored is not None and self.stored.sealed is not None else 0


class Broker:
    """Hands out credentials. One for a process; bounded memory, no value in the clear."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes_held = 0
        self._platform: OrderedDict[str, tuple[str | None, float]] = OrderedDict()
        self._platform_lock = asyncio.Lock()

    async def credential(self, scope: TenantScope, request: SecretRequest) -> Credential | CredentialRefused:
        """The current version of the secret asked for, or why not.

        Enters `scope` itself when it must read, so the scope is not in use. Cost: ~10 us, and one transaction
        where the cached row is older than a second. Errors: `StorageUnavailableError`; `SealBrokenError`.
        """
        try:
            parse_name(request.workspace_id)
            parse_name(request.secret_name)
        except InvalidInputError:
            return CredentialRefused(RefusalReason.ABSENT, request.secret_name)
        key = scope.key("secrets", request.workspace_id, request.secret_name)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(scope.tenant_id)
            if len(self._entries) > ENTRIES_MAX:
                self._drop(next(iter(self._entries)))
        else:
            self._entries.move_to_end(key)
        assert entry.tenant_id == scope.tenant_id, "a cache entry of another tenant"
        if not self._is_fresh(entry):
            async with entry.lock:
                if not self._is_fresh(entry):
                    await self._read(scope, request, key, entry)
        # INVARIANT 12: what is handed out was sealed for this very tenant; another's would not open.
        return _judge(scope, request, entry.stored)

    async def platform_credential(self, scope: TenantScope, provider: str) -> Credential | CredentialRefused:
        """The platform's own credential at a model provider, the same for every tenant.

        Enters `scope` itself when it must read. Cost and errors: as `credential`.
        """
        known = self._platform.get(provider)
        if known is None or self._clock.monotonic() - known[1] > STALE_S_MAX:
            async with self._platform_lock:
                known = self._platform.get(provider)
                read_at = self._clock.monotonic()
                if known is None or read_at - known[1] > STALE_S_MAX:
                    async with scope:
                        known = (await find_credential(scope, provider), read_at)
                    self._platform[provider] = known
                    self._platform.move_to_end(provider)
                    if len(self._platform) > PROVIDERS_MAX:
                        self._platform.popitem(last=False)
        document = known[0]
        if document is None:
            return CredentialRefused(RefusalReason.ABSENT, provider)
        return open_credential(scope.shard.keyring, provider, document)

    def invalidate(self, tenant_id: TenantId) -> None:
        """Forget what is cached of a tenant: after a rotation, a revocation, or when it leaves."""
        for key in [key for key, entry in self._entries.items() if entry.tenant_id == tenant_id]:
            self._drop(key)

    def _is_fresh(self, entry: _Entry) -> bool:
        return self._clock.monotonic() - entry.read_at <= STALE_S_MAX

    async def _read(self, scope: TenantScope, request: SecretRequest, key: str, entry: _Entry) -> None:
        read_at = self._clock.monotonic()
        async with scope:
            stored = await find_newest(scope, request.workspace_id, request.secret_name)
        held = self._entries.get(key) is entry
        before = entry.bytes_held
        entry.stored, entry.read_at = stored, read_at
        if held:
            self._bytes_held += entry.bytes_held - before
        while self._bytes_held > CACHED_BYTES_MAX:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        self._bytes_held -= self._entries.pop(key).bytes_held


def _judge(
    scope: TenantScope, request: SecretRequest, stored: StoredSecret | None
) -> Credential | CredentialRefused:
    reason = _reason_against(request, stored)
    if reason is not None or stored is None or stored.sealed is None:
        return CredentialRefused(reason or RefusalReason.ABSENT, request.secret_name)
    sealed_to = row_id(request.workspace_id, request.secret_name, stored.version)
    value = SecretValue(scope.unseal(stored.sealed, table="secrets", row_id=sealed_to).decode())
    return Credential(stored.version, value)


def _reason_against(request: SecretRequest, stored: StoredSecret | None) -> RefusalReason | None:
    if stored is None:
        return RefusalReason.ABSENT
    if stored.revoked or stored.sealed is None:
        return RefusalReason.REVOKED
    if request.system != stored.system:
        return RefusalReason.SYSTEM
    if request.agent_class not in stored.agent_classes:
        return RefusalReason.AGENT_CLASS
    if request.mutates and stored.capability != "mutate":
        return RefusalReason.READ_ONLY
    return None
