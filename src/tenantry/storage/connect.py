"""Reaching a PostgreSQL server: where it is, as whom, what it must be, and its errors in our words.

The errors fall into three: the server refused one statement and the connection is good (`StatementError`); a
lock did not come free (`LockTimeoutError`); or the connection, the server or its answer in time is gone
(`StorageUnavailableError`), and then whether the statement took effect is not known.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol, Self, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import msgspec

from tenantry.core.errors import InvalidInputError, StorageUnavailableError, TenantryError
from tenantry.storage.embedded import Endpoint
from tenantry.storage.errors import LockTimeoutError, StatementError
from tenantry.storage.seal import RootKey
from tenantry.storage.statements import load_statements

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

RUNTIME_ROLES: Final = ("tenantry_gate", "tenantry_app", "tenantry_platform", "tenantry_control")
OWNER_ROLE: Final = "tenantry_owner"
CONNECT_TIMEOUT_S: Final = 2.0

# The first minors without the row-security holes CVE-2025-8713 and CVE-2026-6473.
MINORS_MIN: Final[Mapping[int, int]] = {16: 14, 17: 10, 18: 4}
TESTED_MAJOR: Final = 18

# Classes of SQLSTATE after which the connection or the server cannot be trusted: connection (08), resources
# (53), operator intervention and statement timeout (57), system (58), authorisation (28), timeouts of idle
# and open transactions (25P03, 25P04) and a server that turned read-only (25006), as after a failover.
_UNAVAILABLE_CLASSES: Final = frozenset({"08", "28", "53", "57", "58"})
_UNAVAILABLE_STATES: Final = frozenset({"25006", "25P03", "25P04"})
_LOCK_NOT_AVAILABLE: Final = "55P03"

_SSL_MODES: Final = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})


class Row(Protocol):
    """One row of an answer, by column name. `jsonb` is text, `timestamptz` an aware datetime in UTC."""

    def __getitem__(self, column: str, /) -> Any: ...  # noqa: ANN401 - a column's type is the statement's
    def __len__(self) -> int: ...
    def get(self, column: str, /) -> Any: ...  # noqa: ANN401 - likewise, None where there is no such column
    def keys(self) -> Iterator[str]: ...
    def items(self) -> Iterator[tuple[str, Any]]: ...


class DatabaseTarget(msgspec.Struct, frozen=True):
    """One database of one server. `host` is a socket's folder or a name; `admin` may make roles.

    `passwords` is empty where the kernel vouches for us (embedded); else it has one for each role.
    """

    host: str
    port: int
    database: str
    admin: str
    passwords: dict[str, str] = {}
    ssl: str | None = None
    embedded: bool = True

    def __repr__(self) -> str:
        return f"DatabaseTarget({self.host!r}, {self.port}, {self.database!r})"

    @classmethod
    def from_endpoint(cls, endpoint: Endpoint) -> Self:
        """The embedded server."""
        return cls(str(endpoint.socket_dir), endpoint.port, endpoint.database, endpoint.superuser)

    @classmethod
    def from_url(cls, url: str, root_key: RootKey) -> Self:
        """``postgresql://user:password@host:port/database?sslmode=verify-full``, whose user may make roles.

        The runtime roles' passwords are derived from the root key: every machine that can open the tenants'
        keys has them, and nothing more has to be kept. Errors: `InvalidInputError`, which never repeats the
        URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or 5432
            options = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        except ValueError:
            raise InvalidInputError("the database URL cannot be read") from None
        if parts.scheme not in {"postgresql", "postgres"}:
            raise InvalidInputError("a database URL begins with postgresql://")
        unknown = sorted(set(options) - {"sslmode", "host"})
        if unknown:
            raise InvalidInputError(
                f"the database URL has options that are not known here: {', '.join(unknown)}"
            )
        host = options.get("host", [parts.hostname or ""])[-1]
        ssl = options.get("sslmode", ["prefer"])[-1]
        database, user = unquote(parts.path.removeprefix("/")), unquote(parts.username or "")
        if ssl not in _SSL_MODES:
            raise InvalidInputError("sslmode is disable, allow, prefer, require, verify-ca or verify-full")
        if not host or not database or not user or "/" in database:
            raise InvalidInputError("a database URL names user, host and database")
        passwords = {role: _role_password(root_key, role) for role in RUNTIME_ROLES}
        if parts.password is not None:
            passwords[user] = unquote(parts.password)
        return cls(host, port, database, user, passwords, ssl, embedded=False)

    def with_database(self, database: str) -> DatabaseTarget:
        """The same server and accounts, another database."""
        return msgspec.structs.replace(self, database=database)


def _role_password(root_key: RootKey, role: str) -> str:
    return base64.urlsafe_b64encode(root_key.derive(f"role|{role}")).decode().rstrip("=")


class ServerFacts(msgspec.Struct, frozen=True):
    """What a server said of itself. `warning` is None when it is as tested."""

    version: int
    warning: str | None


def connect_arguments(target: DatabaseTarget, role: str, *, command_timeout_s: float) -> dict[str, Any]:
    """Keyword arguments for the driver; all of them explicit, so that no PG* variable has a say."""
    return {
        "host": target.host,
        "port": target.port,
        "user": role,
        "database": target.database,
        "password": target.passwords.get(role, ""),
        "ssl": target.ssl if target.ssl is not None and not target.host.startswith("/") else False,
        "timeout": CONNECT_TIMEOUT_S,
        "command_timeout": command_timeout_s,
        # Statements come from files: their number is known, and a cached one never needs to be looked at
        # again.
        "statement_cache_size": 256,
        "max_cached_statement_lifetime": 0,
        "server_settings": {"application_name": role, "tenantry.probe": target.database},
    }


@contextlib.contextmanager
def answering(cut: Callable[[], None], *, always: bool = False) -> Iterator[None]:
    """Turn what the driver raises into our errors; `cut` the connection unless it is still good.

    A cancellation cuts it too: nobody read the answer to the end. `always`: any failure cuts it.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever the driver raises becomes one of our three errors
        translated = translate(error)
        if always or isinstance(translated, StorageUnavailableError):
            cut()
        raise translated from None
    except BaseException:
        cut()
        raise


async def connect(target: DatabaseTarget, role: str, *, command_timeout_s: float) -> Connection:
    """One connection as `role`, within `CONNECT_TIMEOUT_S`. Errors: `StorageUnavailableError`."""
    try:
        return await asyncpg.connect(**connect_arguments(target, role, command_timeout_s=command_timeout_s))
    except Exception as error:  # noqa: BLE001 - whatever the driver raises, there is no connection
        raise unavailable(error, doing=f"connecting as {role}") from None


async def check_server(connection: Connection, target: DatabaseTarget) -> ServerFacts:
    """Refuse a server that is too old, or that is a pooler; one round trip.

    A pooler that hands out connections by transaction does not carry start-up settings to the server, and so
    would neither carry the settings that bind tenants or pin plans. Errors: `StorageUnavailableError`.
    """
    statement = load_statements("tenantry.storage", "server.sql")["facts"]
    with answering(connection.terminate):
        row = await connection.fetchrow(statement.sql)
    assert row is not None
    if row["probe"] != target.database:
        raise StorageUnavailableError(
            "a start-up setting does not read back: a pooler in transaction mode stands before PostgreSQL; "
            "give the URL of the server itself, or of a pooler in session mode"
        )
    return judge_version(row["version"], fsync=row["fsync"], embedded=target.embedded)


def judge_version(version: int, *, fsync: bool, embedded: bool) -> ServerFacts:
    """`version` is `server_version_num`. Errors: `StorageUnavailableError` for one with known holes."""
    major, minor = divmod(version, 10_000)
    floor = MINORS_MIN.get(major, 0 if major > TESTED_MAJOR else None)
    if floor is None or minor < floor:
        oldest = ", ".join(f"{known}.{least}" for known, least in MINORS_MIN.items())
        raise StorageUnavailableError(
            f"PostgreSQL {major}.{minor} has known holes in row security or is too old: use at least {oldest}"
        )
    if major != TESTED_MAJOR:
        return ServerFacts(version, f"PostgreSQL {major} is not tested with this version; {TESTED_MAJOR} is")
    if not fsync and not embedded:
        return ServerFacts(version, "fsync is off: what was acknowledged can be lost")
    return ServerFacts(version, None)


def translate(error: BaseException) -> TenantryError:
    """A driver's or operating system's error in our words; arguments and row values are left out."""
    match error:
        case TenantryError():
            return error
        case asyncpg.DataError() if _is_local(error):
            # The driver could not encode an argument; its message would quote the value.
            return StatementError("22000", "an argument does not fit its parameter's type")
        case asyncpg.PostgresError():
            state, message = str(error.sqlstate), str(error.args[0]) if error.args else type(error).__name__
            if state == _LOCK_NOT_AVAILABLE:
                return LockTimeoutError("a row lock did not come free in time")
            if state[:2] in _UNAVAILABLE_CLASSES or state in _UNAVAILABLE_STATES:
                return StorageUnavailableError(f"the database is unavailable: {message} ({state})")
            return StatementError(state, message, constraint=getattr(error, "constraint_name", None))
        case asyncpg.InterfaceError() if "for this query" in str(error):
            return StatementError("08P01", "the statement takes another number of arguments")
        case TimeoutError():
            return StorageUnavailableError("the database did not answer in time")
        case _:
            return StorageUnavailableError(f"the database is unavailable: {type(error).__name__}")


def unavailable(error: BaseException, *, doing: str) -> StorageUnavailableError:
    """A failure to connect, whatever its kind."""
    if isinstance(error, StorageUnavailableError):
        return error
    if isinstance(error, asyncpg.PostgresError) and "startup parameter" in str(error):
        return StorageUnavailableError(
            "a pooler before PostgreSQL refuses start-up settings: give the URL of the server itself"
        )
    detail = (
        str(error.args[0])
        if isinstance(error, asyncpg.PostgresError) and error.args
        else type(error).__name__
    )
    return StorageUnavailableError(f"the database is unavailable while {doing}: {detail}")


def _is_local(error: asyncpg.PostgresError) -> bool:
    """Whether the driver raised it before anything was sent: the server's own errors carry a severity."""
    return getattr(error, "severity", None) is None
