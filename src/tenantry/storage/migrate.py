"""Bringing a database up to date: roles, rights, migrations, hot functions; as often as one likes.

In this order, under an advisory lock, so that of two starters one waits and finds nothing to do: `roles.sql`;
the rights on the database; then as `tenantry_owner`, each file in a transaction of its own and recorded with
its SHA-256 in the same one: `migrations/NNNN_{pre|post}_words.sql` once each, in the order of their numbers,
and the hot function files whenever their text is another than the one applied. `kill -9` anywhere leaves
whole files only.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tenantry.storage.connect import (
    RUNTIME_ROLES,
    Connection,
    DatabaseTarget,
    answering,
    check_server,
    connect,
)
from tenantry.storage.errors import MigrationError, StatementError
from tenantry.storage.statements import Statement, StatementFileError, load_statements

# In this order: a later file may call what an earlier one makes, and the grants name them all.
FUNCTION_FILES: Final = (
    ("tenantry.gate", "decide.sql"),
    ("tenantry.gate", "begin.sql"),
    ("tenantry.gate", "begin_one.sql"),
    ("tenantry.gate", "settle.sql"),
    ("tenantry.gate", "settle_one.sql"),
    ("tenantry.gate", "batch.sql"),
    ("tenantry.gate", "scopes.sql"),
    ("tenantry.gate", "grants.sql"),
)
# An index on a large table may take long; a starter that waits for another one's migration waits as long.
MIGRATION_TIMEOUT_S: Final = 600.0
SCRAM_ITERATIONS: Final = 4096

_MIGRATION_NAME: Final = re.compile(r"(\d{4})_(pre|post)_[a-z0-9_]+\.sql")


class SqlFile(msgspec.Struct, frozen=True):
    """A file to apply, by the name under which it is recorded."""

    name: str
    sql: str

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.sql.encode()).digest()


def load_migrations() -> list[SqlFile]:
    """The package's migrations, in order. Errors: `MigrationError`: an odd name, a number used twice."""
    folder = importlib.resources.files("tenantry.storage").joinpath("migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    numbers: dict[str, str] = {}
    for name in names:
        match = _MIGRATION_NAME.fullmatch(name)
        if match is None:
            raise MigrationError(f"migration {name!r} is not named NNNN_pre_words.sql or NNNN_post_words.sql")
        if match[1] in numbers:
            raise MigrationError(f"migrations {numbers[match[1]]!r} and {name!r} have one number")
        numbers[match[1]] = name
    return [SqlFile(name, folder.joinpath(name).read_text("utf-8")) for name in names]


def load_functions(files: Sequence[tuple[str, str]] = FUNCTION_FILES) -> list[SqlFile]:
    """The `:script` statements of hot function files. Errors: `MigrationError`: one is absent or has none."""
    found = []
    for package, file in files:
        name = f"{package}/{file}"
        try:
            statements = load_statements(package, file)
        except (FileNotFoundError, ModuleNotFoundError, StatementFileError) as error:
            raise MigrationError(f"function file {name} cannot be used: {error}") from None
        scripts = [statement.sql for statement in statements.values() if statement.kind == "script"]
        if not scripts:
            raise MigrationError(f"function file {name} has no :script statement")
        found.append(SqlFile(name, "\n".join(scripts)))
    return found


async def migrate(
    target: DatabaseTarget,
    *,
    migrations: Sequence[SqlFile] | None = None,
    functions: Sequence[SqlFile] | None = None,
) -> list[str]:
    """Bring the database up to date; the names of the files applied. 0.1 s when there is nothing to do.

    Errors: `MigrationError` naming the file: it fails, it was changed after it was applied, or the database
    has one that this version does not know; also when a role may more than it should.
    `StorageUnavailableError`.
    """
    statements = load_statements("tenantry.storage", "migrate.sql")
    connection = await connect(target, target.admin, command_timeout_s=MIGRATION_TIMEOUT_S)
    try:
        await check_server(connection, target)
        with answering(connection.terminate):
            await connection.fetchrow(statements["lock"].sql)
        await _apply_roles(connection, target, statements)
        return await _apply_files(
            connection,
            statements,
            load_migrations() if migrations is None else migrations,
            load_functions() if functions is None else functions,
        )
    finally:
        # Ends the session, and with it the lock, also when the caller was cancelled in the middle of a
        # script.
        connection.terminate()


async def set_clock_offset(target: DatabaseTarget, offset: dt.timedelta) -> None:
    """Let `tenantry.now()` differ from the clock by `offset`, for everybody: for test databases only."""
    owner = load_statements("tenantry.storage", "migrate.sql")
    statements = load_statements("tenantry.storage", "clock.sql")
    connection = await connect(target, target.admin, command_timeout_s=MIGRATION_TIMEOUT_S)
    try:
        with answering(connection.terminate):
            async with connection.transaction():
                await connection.execute(owner["become_owner"].sql)
                await connection.fetchrow(statements["set_offset"].sql, offset)
                await connection.execute(statements["replace_now"].sql)
    finally:
        connection.terminate()


async def _apply_roles(
    connection: Connection, target: DatabaseTarget, statements: Mapping[str, Statement]
) -> None:
    roles = load_statements("tenantry.storage", "roles.sql")["roles"]
    await _run(connection, SqlFile("roles.sql", roles.sql))
    for role in RUNTIME_ROLES if not target.embedded else ():
        password = target.passwords[role]
        with answering(connection.terminate):
            async with connection.transaction():
                await connection.fetchrow(statements["set_secret"].sql, role, scram_verifier(role, password))
                await connection.execute(statements["set_password"].sql)
    await _run(connection, SqlFile("migrate.sql, grants", statements["grants"].sql))
    with answering(connection.terminate):
        strong = [row["role_name"] for row in await connection.fetch(statements["roles_too_strong"].sql)]
    if strong:
        raise MigrationError(
            f"these roles may do more than they should, so row security would not hold: {', '.join(strong)}; "
            "take their attributes and memberships away"
        )


async def _apply_files(
    connection: Connection,
    statements: Mapping[str, Statement],
    migrations: Sequence[SqlFile],
    functions: Sequence[SqlFile],
) -> list[str]:
    await _run(connection, SqlFile("migrate.sql, prepare", statements["prepare"].sql), statements)
    with answering(connection.terminate):
        async with connection.transaction():
            await connection.execute(statements["become_owner"].sql)
            rows = await connection.fetch(statements["applied"].sql)
    applied: dict[str, bytes] = {row["name"]: row["sha256"] for row in rows}
    known = {file.name for file in migrations}
    ahead = sorted(name for name in applied if _MIGRATION_NAME.fullmatch(name) and name not in known)
    if ahead:
        raise MigrationError(
            f"the database has {ahead[0]}, which this version does not know: upgrade tenantry"
        )
    pending = []
    for file in migrations:
        if file.name not in applied:
            pending.append(file)
        elif applied[file.name] != file.sha256:
            raise MigrationError(
                f"migration {file.name} was changed after it was applied: restore it and write a new one"
            )
    pending += [file for file in functions if applied.get(file.name) != file.sha256]
    for file in pending:
        await _run(connection, file, statements, record=True)
    return [file.name for file in pending]


async def _run(
    connection: Connection,
    file: SqlFile,
    owner: Mapping[str, Statement] | None = None,
    *,
    record: bool = False,
) -> None:
    """One script in one transaction, as the owner when `owner` has the statements for it."""
    try:
        with answering(connection.terminate):
            async with connection.transaction():
                if owner is not None:
                    await connection.execute(owner["become_owner"].sql)
                await connection.execute(file.sql)
                if record and owner is not None:
                    await connection.execute(owner["record"].sql, file.name, file.sha256)
    except StatementError as error:
        raise MigrationError(f"{file.name} cannot be applied: {error}") from None


def scram_verifier(role: str, password: str) -> str:
    """What PostgreSQL keeps of a password, made here so that no statement and no log carries the password.

    Source: RFC 5803, RFC 7677. The salt is derived too: the same password gives the same text at each start.
    """
    salt = hmac.digest(password.encode(), f"salt|{role}".encode(), "sha256")[:16]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{parts[0]}${parts[1]}:{parts[2]}"
