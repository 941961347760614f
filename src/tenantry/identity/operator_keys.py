"""The operator's key: made at the first start, kept in a private file of the data folder.

Order of a first start: file, then row, then commit. A crash between leaves a file whose key is unknown to the
database; the next start adds its row. A key in the file that was revoked is replaced by a new one: whoever
may read the data folder is the operator.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from tenantry.core.clock import Clock
from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.ids import KeyId, PrincipalId, new_id
from tenantry.core.principal import Principal, Role
from tenantry.identity.key_format import ParsedKey, is_key_id, new_key, parse_key
from tenantry.identity.secret_files import create_private_file, read_private_file, replace_private_file
from tenantry.storage.directory import Directory
from tenantry.storage.scope import PlatformScope
from tenantry.storage.statements import Statement, load_statements


async def ensure_operator_key(
    scope: PlatformScope, directory: Directory, path: Path, clock: Clock
) -> Principal:
    """The operator whose key stands in `path`, made with mode 0600 where there is none.

    Runs inside the caller's ``async with scope:``. Cost: three statements the first time, then one.
    Errors: `InvalidInputError` that names the file: open to others, or not a key.
    """
    parsed = _read_or_create(path, clock)
    row = await scope.fetch_one(_statements()["find_operator_key"], parsed.key_sha256)
    if row is not None and not row["revoked"]:
        return _operator(parsed.key_id, row["principal_id"])
    if row is not None:
        token = new_key(clock)
        parsed = _parse(path, token)
        replace_private_file(path, f"{token}\n".encode(), clock)
    principal_id = PrincipalId(new_id("op", clock))
    await scope.execute(
        _statements()["add_operator_key"], parsed.key_id, parsed.key_sha256, principal_id, parsed.prefix
    )
    await directory.add_key(scope, parsed.key_sha256)
    return _operator(parsed.key_id, principal_id)


async def revoke_operator_key(scope: PlatformScope, directory: Directory, key_id: str) -> None:
    """Revoke an operator's key; again is no error. Inside the caller's ``async with scope:``; two statements.

    Processes forget it within five seconds. Errors: `NotFoundError`.
    """
    row = None
    if is_key_id(key_id):
        row = await scope.fetch_one(_statements()["revoke_operator_key"], key_id)
    if row is None:
        raise NotFoundError("there is no such key")
    await directory.remove_key(scope, row["key_sha256"])


def _read_or_create(path: Path, clock: Clock) -> ParsedKey:
    content = read_private_file(path)
    if content is None:
        content = create_private_file(path, f"{new_key(clock)}\n".encode(), clock)
    return _parse(path, content.decode("ascii", "replace").removesuffix("\n"))


def _parse(path: Path, token: str) -> ParsedKey:
    parsed = parse_key(token)
    if parsed is None:
        raise InvalidInputError(
            f"{path} does not hold an operator's key; remove it to get a new one", path=str(path)
        )
    return parsed


def _operator(key_id: KeyId, principal_id: PrincipalId) -> Principal:
    return Principal(principal_id, key_id, Role.OPERATOR, tenant_id=None, workspace_id=None)


@functools.cache
def _statements() -> Mapping[str, Statement]:
    return load_statements("tenantry.identity", "keys.sql")
