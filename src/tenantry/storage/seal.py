"""Sealing content under a tenant's data key, and data keys under the root key (DESIGN §5).

Sealed bytes: version (1 byte, 1) + key version (u32, big-endian) + nonce (12 bytes) + AES-256-GCM ciphertext
with its 16-byte tag. Associated data: ``tenant|table|row id`` in UTF-8, so a row under another tenant, table
or id does not open. A wrapped key is the same under the root key, with the table `tenant_keys` and the key
version as row id.

Nonces are 96 random bits. After 2**32 messages under one key a repeated nonce has a chance of 2**-32 (NIST SP
800-38D §8.3); a tenant that comes near it gets a new key version, which is what the field is for. Keys come
from the kernel through `cryptography`, never from a `Clock`, whose chance a test may repeat.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import os
import stat
import struct
import tempfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tenantry.core.clock import Clock
from tenantry.core.errors import InvalidInputError, NotFoundError, TenantryError
from tenantry.core.ids import TenantId
from tenantry.storage.errors import SealBrokenError

FORMAT_VERSION: Final = 1
NONCE_BYTES: Final = 12
HEADER: Final = struct.Struct(">BI")
SEAL_OVERHEAD_BYTES: Final = HEADER.size + NONCE_BYTES + 16
ROOT_FILE_BYTES_MAX: Final = 1024
CACHED_KEYS_MAX: Final = 4096
# How long a key that was destroyed (off-boarding) may still open things in this process.
CACHED_KEY_S: Final = 60.0

WrappedKeys = Sequence[tuple[int, bytes]]


class RootKeyError(TenantryError):
    """The root key cannot be read; names the file and the remedy, never the key."""


def associated_data(tenant_id: TenantId, table: str, row_id: str) -> bytes:
    """``tenant|table|row id``; neither of the first two may hold ``|``, so no two rows share it."""
    assert "|" not in tenant_id and "|" not in table, "the separator stands in a name"  # noqa: PT018
    return f"{tenant_id}|{table}|{row_id}".encode("utf-8", "surrogatepass")


def _encrypt(cipher: AESGCM, nonce: bytes, version: int, plaintext: bytes, data: bytes) -> bytes:
    assert len(nonce) == NONCE_BYTES, "a nonce is 12 bytes"
    return HEADER.pack(FORMAT_VERSION, version) + nonce + cipher.encrypt(nonce, plaintext, data)


def _decrypt(ciphers: Mapping[int, AESGCM], sealed: bytes, data: bytes) -> bytes:
    if len(sealed) < SEAL_OVERHEAD_BYTES:
        raise SealBrokenError("sealed bytes are cut short")
    form, version = HEADER.unpack_from(sealed)
    cipher = ciphers.get(version)
    if form != FORMAT_VERSION or cipher is None:
        raise SealBrokenError("sealed bytes name a format or a key that is not here")
    body = HEADER.size + NONCE_BYTES
    try:
        return cipher.decrypt(sealed[HEADER.size : body], sealed[body:], data)
    except InvalidTag:
        raise SealBrokenError("sealed bytes do not open under this tenant, table and row") from None


class RootKey:
    """The installation's 32-byte key. It wraps the tenants' data keys and never meets content."""

    __slots__ = ("_cipher", "_key")

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise RootKeyError("a root key is 32 bytes")
        self._key = key
        self._cipher = AESGCM(key)

    def __repr__(self) -> str:
        return "RootKey(...)"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """From base64 of 32 bytes, as a file or an environment variable holds it. Errors: `RootKeyError`."""
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            raise RootKeyError("the root key is not base64") from None
        return cls(key)

    @classmethod
    def from_file(cls, path: Path, *, create: bool = True) -> Self:
        """Read `path`; when it is missing and `create`, make a new key, 0600, whole or not at all.

        Of several processes that start at once, all use the one key that got the name. Errors: `RootKeyError`
        for a link, a special file, another user's file, or one that group or others may read or write.
        """
        try:
            return cls._read(path)
        except FileNotFoundError:
            if not create:
                raise RootKeyError(f"there is no root key at {path}: restore it from the backup") from None
        _publish(path, base64.b64encode(AESGCM.generate_key(bit_length=256)) + b"\n")
        return cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> Self:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RootKeyError(f"cannot read the root key {path}: {error.strerror}") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise RootKeyError(f"the root key {path} is not a plain file of user id {os.geteuid()}")
            if status.st_mode & 0o077:
                raise RootKeyError(f"others may use the root key {path}: think of it as known, chmod 600 it")
            content = os.read(fd, ROOT_FILE_BYTES_MAX)
        finally:
            os.close(fd)
        try:
            return cls.from_text(content.decode("ascii", "replace"))
        except RootKeyError as error:
            raise RootKeyError(f"{path}: {error}; restore it from the backup") from None

    def wrap(self, key: bytes, *, tenant_id: TenantId, key_version: int, nonce: bytes) -> bytes:
        """A data key as `tenant_keys` holds it."""
        data = associated_data(tenant_id, "tenant_keys", str(key_version))
        return _encrypt(self._cipher, nonce, 1, key, data)

    def unwrap(self, wrapped: bytes, *, tenant_id: TenantId, key_version: int) -> bytes:
        """The data key. Errors: `SealBrokenError` under another root key, tenant or version."""
        return _decrypt(
            {1: self._cipher}, wrapped, associated_data(tenant_id, "tenant_keys", str(key_version))
        )

    def seal(self, plaintext: bytes, *, table: str, row_id: str, nonce: bytes) -> bytes:
        """Seal what belongs to the platform and to no tenant, under a key derived for it."""
        return _encrypt(self._platform_cipher(), nonce, 1, plaintext, _platform_data(table, row_id))

    def unseal(self, sealed: bytes, *, table: str, row_id: str) -> bytes:
        """Open what `seal` closed for the same table and row. Errors: `SealBrokenError`."""
        return _decrypt({1: self._platform_cipher()}, sealed, _platform_data(table, row_id))

    def _platform_cipher(self) -> AESGCM:
        return AESGCM(self.derive("platform"))

    def derive(self, purpose: str) -> bytes:
        """32 bytes that only holders of this key can make, another for each `purpose` (HMAC-SHA-256)."""
        return hmac.digest(self._key, f"tenantry|{purpose}".encode(), "sha256")


def _platform_data(table: str, row_id: str) -> bytes:
    # No tenant's data begins so: a tenant's id is not empty.
    return f"|{table}|{row_id}".encode()


def _publish(path: Path, content: bytes) -> None:
    """Give a new 0600 file its name in one step; a file that already has the name stays."""
    try:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise RootKeyError(f"cannot make the root key {path}: {error.strerror}") from None
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError as error:
            raise RootKeyError(f"cannot make the root key {path}: {error.strerror}") from None
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


class DataKey:
    """One tenant's data key in all its versions; seals under the newest. About 2 us a call."""

    __slots__ = ("_ciphers", "current_version", "tenant_id")

    def __init__(self, tenant_id: TenantId, keys: Mapping[int, bytes]) -> None:
        assert keys, "a data key has at least one version"
        self.tenant_id = tenant_id
        self.current_version = max(keys)
        self._ciphers = {version: AESGCM(key) for version, key in keys.items()}

    def __repr__(self) -> str:
        return f"DataKey({self.tenant_id!r}, version {self.current_version})"

    def seal(self, plaintext: bytes, *, table: str, row_id: str, nonce: bytes) -> bytes:
        """Bytes for the database; `SEAL_OVERHEAD_BYTES` longer."""
        data = associated_data(self.tenant_id, table, row_id)
        return _encrypt(self._ciphers[self.current_version], nonce, self.current_version, plaintext, data)

    def unseal(self, sealed: bytes, *, table: str, row_id: str) -> bytes:
        """The plaintext. Errors: `SealBrokenError`."""
        return _decrypt(self._ciphers, sealed, associated_data(self.tenant_id, table, row_id))


class KeyRing:
    """The data keys this process has seen: at most `CACHED_KEYS_MAX`, each for at most `CACHED_KEY_S`.

    `load` reads a tenant's rows of `tenant_keys` in a transaction bound to it; of calls at once for one
    tenant it runs once.
    """

    def __init__(
        self, load: Callable[[TenantId], Awaitable[WrappedKeys]], root_key: RootKey, clock: Clock
    ) -> None:
        self._load = load
        self._root_key = root_key
        self._clock = clock
        self._cached: OrderedDict[TenantId, tuple[DataKey, float]] = OrderedDict()
        self._loading = asyncio.Lock()

    def cached(self, tenant_id: TenantId) -> DataKey | None:
        """The key, when this process has it fresh; no wait."""
        entry = self._cached.get(tenant_id)
        if entry is None or self._clock.monotonic() - entry[1] > CACHED_KEY_S:
            return None
        self._cached.move_to_end(tenant_id)
        return entry[0]

    async def data_key(self, tenant_id: TenantId) -> DataKey:
        """The tenant's key; one transaction when it is not cached.

        Errors: `NotFoundError` when there is no such tenant or its key was destroyed; `SealBrokenError` when
        the root key is another one; `StorageUnavailableError`.
        """
        found = self.cached(tenant_id)
        if found is not None:
            return found
        async with self._loading:
            found = self.cached(tenant_id)
            if found is not None:
                return found
            key = self.open_keys(tenant_id, await self._load(tenant_id))
            self._cached[tenant_id] = (key, self._clock.monotonic())
            self._cached.move_to_end(tenant_id)
            while len(self._cached) > CACHED_KEYS_MAX:
                self._cached.popitem(last=False)
            return key

    def open_keys(self, tenant_id: TenantId, rows: WrappedKeys) -> DataKey:
        """Unwrap rows of `tenant_keys`. Errors: `NotFoundError` when there are none; `SealBrokenError`."""
        if not rows:
            self._cached.pop(tenant_id, None)
            raise NotFoundError("there is no such tenant")
        return DataKey(
            tenant_id,
            {
                version: self._root_key.unwrap(wrapped, tenant_id=tenant_id, key_version=version)
                for version, wrapped in rows
            },
        )

    def new_wrapped(self, tenant_id: TenantId, key_version: int) -> bytes:
        """A fresh data key, wrapped, to be stored in `tenant_keys`."""
        if not 1 <= key_version < 2**31:
            raise InvalidInputError("a key version is 1 to 2147483647")
        key = AESGCM.generate_key(bit_length=256)
        nonce = self._clock.random_bytes(NONCE_BYTES)
        return self._root_key.wrap(key, tenant_id=tenant_id, key_version=key_version, nonce=nonce)

    def seal_platform(self, plaintext: bytes, *, table: str, row_id: str) -> bytes:
        """Seal what belongs to the platform, such as a provider's credential; about 5 us."""
        nonce = self._clock.random_bytes(NONCE_BYTES)
        return self._root_key.seal(plaintext, table=table, row_id=row_id, nonce=nonce)

    def unseal_platform(self, sealed: bytes, *, table: str, row_id: str) -> bytes:
        """Open what `seal_platform` closed. Errors: `SealBrokenError`."""
        return self._root_key.unseal(sealed, table=table, row_id=row_id)

    def forget(self, tenant_id: TenantId) -> None:
        """Drop the key from this process: after a rotation, or when the tenant leaves."""
        self._cached.pop(tenant_id, None)
