"""Who asks: people and services prove themselves by API keys, before any use case runs."""

from __future__ import annotations

from tenantry.core.errors import TenantryError, UnauthenticatedError
from tenantry.core.principal import Principal
from tenantry.identity.keys import ApiKeys
from tenantry.identity.limiter import FailedAuthLimiter


class TooManyFailuresError(TenantryError):
    """This address has failed too often; `wait_ms` until it may try again."""

    def __init__(self, wait_ms: int) -> None:
        super().__init__("too many failed credentials from this address")
        self.wait_ms = wait_ms


class People:
    """Proves keys, behind the limiter of failed authentication."""

    def __init__(self, keys: ApiKeys, failures: FailedAuthLimiter) -> None:
        self._keys = keys
        self._failures = failures

    async def authenticate(self, token: str | None, address: str | None) -> Principal:
        """The principal of a key. `address` None: a local socket, which is not limited.

        Errors: `UnauthenticatedError`, `TooManyFailuresError`, `StorageUnavailableError`.
        """
        known = None if token is None else self._keys.find_cached(token)
        if known is not None:
            return known
        if address is not None:
            wait_ms = self._failures.check(address)
            if wait_ms:
                raise TooManyFailuresError(wait_ms)
        try:
            if token is None:
                raise UnauthenticatedError("send an API key")
            return await self._keys.authenticate(token)
        except UnauthenticatedError:
            if address is not None:
                self._failures.note_failure(address)
            raise
