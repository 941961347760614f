"""The platform's own credentials at model providers: sealed under the root key, the same for every tenant."""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping
from typing import Final

import msgspec

from tenantry.broker.secrets import Credential, SecretValue
from tenantry.storage.scope import TenantScope
from tenantry.storage.seal import KeyRing
from tenantry.storage.statements import Statement, load_statements

TABLE: Final = "provider_credential"


class CredentialDocument(msgspec.Struct, frozen=True):
    """What stands in `platform_specs`: ``sealed`` is base64, ``version`` counts from 1."""

    sealed: str
    version: int


def seal_credential(keyring: KeyRing, provider: str, value: SecretValue, *, before: str | None) -> str:
    """The document of a provider's credential; the one `before` where the value is the same."""
    version = 1
    if before is not None:
        held = open_credential(keyring, provider, before)
        if held.value == value:
            return before
        version = held.version + 1
    sealed = keyring.seal_platform(value.reveal().encode(), table=TABLE, row_id=f"{provider}/{version}")
    document = CredentialDocument(base64.b64encode(sealed).decode(), version)
    return msgspec.json.encode(document).decode()


def open_credential(keyring: KeyRing, provider: str, document: str) -> Credential:
    """The credential in a document. Errors: `SealBrokenError`."""
    held = msgspec.json.decode(document, type=CredentialDocument)
    row_id = f"{provider}/{held.version}"
    value = keyring.unseal_platform(base64.b64decode(held.sealed), table=TABLE, row_id=row_id)
    return Credential(held.version, SecretValue(value.decode()))


async def find_credential(scope: TenantScope, provider: str) -> str | None:
    """A provider's document; one statement inside the caller's ``async with scope:``."""
    row = await scope.fetch_one(_statements()["find_provider_credential"], provider)
    return None if row is None else str(row["document"])


@functools.cache
def _statements() -> Mapping[str, Statement]:
    return load_statements("tenantry.broker", "store.sql")
