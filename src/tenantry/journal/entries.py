"""What a journal row's sealed columns hold: `content` what was asked, `output` what came of it.

Both are 16 bytes of salt and then MessagePack, sealed under the tenant's data key with the action's id as row
id. The salt stands outside the seal: the log's leaf commits to the whole, so when the data key is destroyed a
leaf tells nobody what it stood for, and what nobody can open any more can still be proven.
"""

from __future__ import annotations

import hashlib
from typing import Final, Self, TypeVar

import msgspec

from tenantry.core.action import OutcomeStatus
from tenantry.core.errors import TenantryError
from tenantry.core.labels import NO_LABELS, Label, Labels
from tenantry.storage.scope import TenantScope
from tenantry.storage.seal import SEAL_OVERHEAD_BYTES

SALT_BYTES: Final = 16
# What an entry is longer than the bytes in it: salt, seal, and MessagePack's lengths.
ENTRY_OVERHEAD_BYTES: Final = SALT_BYTES + SEAL_OVERHEAD_BYTES + 64

CONTENT_TABLE: Final = "journal"
OUTPUT_TABLE: Final = "journal_output"


class JournalBrokenError(TenantryError):
    """An entry opens under its tenant's key, and what is in it does not read: written by another version."""


class JournalContent(msgspec.Struct, frozen=True, array_like=True):
    """What was asked: the envelope's canonical bytes, the action's input, the canonical policy request."""

    envelope: bytes
    input: bytes
    request: bytes

    def encode(self, scope: TenantScope, action_id: str, *, salt: bytes) -> bytes:
        """Bytes for `journal.content`; `salt` is 16 random bytes. Costs about 3 us."""
        return _encode(self, scope, CONTENT_TABLE, action_id, salt)

    @classmethod
    def decode(cls, scope: TenantScope, action_id: str, content: bytes) -> Self:
        """What `encode` wrote for this tenant and action. Errors: `SealBrokenError`; `JournalBrokenError`."""
        return _decode(cls, scope, CONTENT_TABLE, action_id, content)


class JournalOutput(msgspec.Struct, frozen=True, array_like=True):
    """What came of it: the answer as recorded, so that it can be given again. ``output`` None: not known."""

    status: OutcomeStatus
    content_type: str
    http_status: int | None
    detail: str | None
    labels: tuple[Label, ...]
    output: bytes | None

    @property
    def label_set(self) -> Labels:
        """The labels as the rest of the platform speaks of them."""
        return frozenset(self.labels) if self.labels else NO_LABELS

    def encode(self, scope: TenantScope, action_id: str, *, salt: bytes) -> bytes:
        """Bytes for `journal.output`; likewise."""
        return _encode(self, scope, OUTPUT_TABLE, action_id, salt)

    @classmethod
    def decode(cls, scope: TenantScope, action_id: str, output: bytes) -> Self:
        """What `encode` wrote; likewise."""
        return _decode(cls, scope, OUTPUT_TABLE, action_id, output)


class AdminContent(msgspec.Struct, frozen=True, array_like=True):
    """What a person did: who, what, on what, and the particulars as JSON."""

    actor: str
    name: str
    target: str
    detail: bytes

    def encode(self, scope: TenantScope, action_id: str, *, salt: bytes) -> bytes:
        """Bytes for `journal.content` of an admin entry; likewise."""
        return _encode(self, scope, CONTENT_TABLE, action_id, salt)

    @classmethod
    def decode(cls, scope: TenantScope, action_id: str, content: bytes) -> Self:
        """What `encode` wrote; likewise."""
        return _decode(cls, scope, CONTENT_TABLE, action_id, content)


Entry = JournalContent | JournalOutput | AdminContent
T = TypeVar("T", bound=msgspec.Struct)


def commitment(entry: bytes) -> bytes:
    """SHA-256 of an encoded entry: what its leaf in the log commits to."""
    return hashlib.sha256(entry).digest()


def _encode(entry: Entry, scope: TenantScope, table: str, action_id: str, salt: bytes) -> bytes:
    assert len(salt) == SALT_BYTES, "a salt is 16 bytes"
    return salt + scope.seal(msgspec.msgpack.encode(entry), table=table, row_id=action_id)


def _decode(cls: type[T], scope: TenantScope, table: str, action_id: str, entry: bytes) -> T:
    plain = scope.unseal(entry[SALT_BYTES:], table=table, row_id=action_id)
    try:
        return msgspec.msgpack.decode(plain, type=cls)
    except msgspec.MsgspecError:
        raise JournalBrokenError("a journal entry was written by another version of the platform") from None
