from __future__ import annotations

import base64

import asyncpg
import pytest

from tenantry.core.errors import InvalidInputError, StorageUnavailableError
from tenantry.storage.connect import DatabaseTarget, judge_version, translate
from tenantry.storage.errors import LockTimeoutError, StatementError
from tenantry.storage.migrate import scram_verifier
from tenantry.storage.seal import RootKey

ROOT = RootKey(b"r" * 32)


def test_a_url_is_read_and_the_roles_passwords_follow_the_root_key() -> None:
    target = DatabaseTarget.from_url(
        "postgresql://op%40x:p%2Fw@db.example:6543/fleet?sslmode=verify-full", ROOT
    )
    assert (target.host, target.port, target.database, target.admin) == ("db.example", 6543, "fleet", "op@x")
    assert target.passwords["op@x"] == "p/w" and target.ssl == "verify-full" and not target.embedded
    again = DatabaseTarget.from_url("postgresql://op@db.example/fleet", ROOT)
    other = DatabaseTarget.from_url("postgresql://op@db.example/fleet", RootKey(b"x" * 32))
    roles = {"tenantry_gate", "tenantry_app", "tenantry_platform", "tenantry_control"}
    assert {again.passwords[role] for role in roles} == {target.passwords[role] for role in roles}
    assert len({again.passwords[role] for role in roles}) == 4
    assert not {again.passwords[role] for role in roles} & set(other.passwords.values())
    assert "p/w" not in repr(target) and target.passwords["tenantry_app"] not in repr(target)


def test_a_socket_folder_can_be_given() -> None:
    target = DatabaseTarget.from_url("postgresql://op:secret@/fleet?host=/run/pg", ROOT)
    assert (target.host, target.port) == ("/run/pg", 5432)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "mysql://op:hunter2@h/db",
        "postgresql://op:hunter2@h",
        "postgresql://op:hunter2@/db",
        "postgresql://:hunter2@h/db",
        "postgresql://op:hunter2@h:notaport/db",
        "postgresql://op:hunter2@h:99999/db",
        "postgresql://op:hunter2@h/db/more",
        "postgresql://op:hunter2@h/db?sslmode=hunter2",
        "postgresql://op:hunter2@h/db?options=-c%20x",
        "postgresql://op:hunter2@[::1/db",
        "postgresql://op:hunter2@h/db?&&&",
    ],
)
def test_a_url_that_is_off_is_told_without_its_secrets(url: str) -> None:
    with pytest.raises(InvalidInputError) as wrong:
        DatabaseTarget.from_url(url, ROOT)
    assert "hunter2" not in str(wrong.value)


@pytest.mark.parametrize(("version", "ok"), [
    (150099, False), (160013, False), (160014, True), (170009, False), (170010, True), (180003, False),
    (180004, True), (180006, True), (190000, True), (90600, False),
])  # fmt: skip
def test_versions_with_holes_are_refused(version: int, *, ok: bool) -> None:
    if not ok:
        with pytest.raises(StorageUnavailableError, match="known holes"):
            judge_version(version, fsync=True, embedded=False)
        return
    facts = judge_version(version, fsync=True, embedded=False)
    assert (facts.warning is None) == (version // 10_000 == 18)


def test_a_server_that_can_lose_what_it_promised_is_told_of() -> None:
    warning = judge_version(180006, fsync=False, embedded=False).warning
    assert warning is not None and "fsync" in warning
    assert judge_version(180006, fsync=False, embedded=True).warning is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (asyncpg.LockNotAvailableError("x"), LockTimeoutError),
        (asyncpg.ConnectionDoesNotExistError("x"), StorageUnavailableError),
        (asyncpg.AdminShutdownError("x"), StorageUnavailableError),
        (asyncpg.QueryCanceledError("x"), StorageUnavailableError),
        (asyncpg.TooManyConnectionsError("x"), StorageUnavailableError),
        (asyncpg.DiskFullError("x"), StorageUnavailableError),
        (asyncpg.ReadOnlySQLTransactionError("x"), StorageUnavailableError),
        (asyncpg.IdleInTransactionSessionTimeoutError("x"), StorageUnavailableError),
        (asyncpg.InvalidPasswordError("x"), StorageUnavailableError),
        (asyncpg.InterfaceError("x"), StorageUnavailableError),
        (asyncpg.UniqueViolationError("x"), StatementError),
        (asyncpg.DeadlockDetectedError("x"), StatementError),
        (asyncpg.DataError("hunter2"), StatementError),
        (asyncpg.InternalServerError("x"), StatementError),
        (ConnectionResetError("x"), StorageUnavailableError),
        (FileNotFoundError("x"), StorageUnavailableError),
        (TimeoutError(), StorageUnavailableError),
        (InvalidInputError("x"), InvalidInputError),
    ],
)
def test_each_error_has_its_word(error: Exception, kind: type[Exception]) -> None:
    translated = translate(error)
    assert type(translated) is kind
    assert "hunter2" not in str(translated)


def test_a_verifier_is_stable_and_shaped_as_the_server_wants() -> None:
    verifier = scram_verifier("tenantry_app", "secret")
    assert verifier == scram_verifier("tenantry_app", "secret") != scram_verifier("tenantry_gate", "secret")
    mechanism, iterations_salt, keys = verifier.split("$")
    assert mechanism == "SCRAM-SHA-256" and iterations_salt.startswith("4096:")
    assert [len(base64.b64decode(part)) for part in keys.split(":")] == [32, 32]
