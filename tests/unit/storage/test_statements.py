from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tenantry
from tenantry.storage.migrate import FUNCTION_FILES, load_functions, load_migrations
from tenantry.storage.statements import Statement, StatementFileError, parse_statements

ROOT = Path(tenantry.__file__).parent


def test_blocks_become_statements() -> None:
    found = parse_statements(
        "-- A file.\n\n-- name: one_row :one\n-- Cheap.\nselect 1\n\n"
        "-- name: put :exec\ninsert into t values ($1)\n",
        source="a.sql",
    )
    assert list(found) == ["one_row", "put"]
    assert found["one_row"] == Statement("one_row", "one", "-- Cheap.\nselect 1")
    assert found["put"].sql == "insert into t values ($1)"


def test_a_missing_statement_is_named_with_its_file() -> None:
    with pytest.raises(KeyError, match=r"a\.sql has no statement 'gone'"):
        parse_statements("-- name: here :one\nselect 1", source="a.sql")["gone"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("select 1", "before the first"),
        ("select 1\n-- name: a :one\nselect 1", "before the first"),
        ("-- name: a :one\n", "is empty"),
        ("-- name: a :one\n-- only words\n-- name: b :one\nselect 1", "is empty"),
        ("-- name: a :one\nselect 1\n-- name: a :one\nselect 2", "twice"),
        ("-- name: a :two\nselect 1", "is not"),
        ("-- name: a\nselect 1", "is not"),
        ("--name: a :one\nselect 1", "is not"),
        ("  -- name: a :one\nselect 1", "is not"),
        ("-- name: A :one\nselect 1", "is not"),
        ("-- name: a :one extra\nselect 1", "is not"),
    ],
)
def test_malformed_files_are_told(text: str, complaint: str) -> None:
    with pytest.raises(StatementFileError, match=complaint):
        parse_statements(text, source="a.sql")


def every_statement() -> Iterator[tuple[str, Statement]]:
    for path in sorted(ROOT.rglob("*.sql")):
        if path.parent.name != "migrations":
            name = str(path.relative_to(ROOT))
            for statement in parse_statements(path.read_text("utf-8"), source=name).values():
                yield name, statement


def test_no_statement_leaves_state_in_its_session() -> None:
    """Pools send no reset query: whatever outlives a transaction would meet the next tenant."""
    opening = re.compile(
        r"\s*(?:--[^\n]*\n\s*)*(set|reset|listen|load|prepare|declare|discard|lock|begin)\b", re.IGNORECASE
    )
    lasting = re.compile(
        r"pg_(try_)?advisory_lock|set_config\([^;]*\bfalse\b|with hold|temp(orary)? table", re.IGNORECASE
    )
    found = list(every_statement())
    assert len(found) > 10
    for file, statement in found:
        if statement.kind == "script" or file in {
            "storage/scope.sql",
            "storage/migrate.sql",
            "jobs/leader.sql",  # a lock of a connection that carries nothing but jobs
        }:
            continue
        assert opening.match(statement.sql) is None, (file, statement.name)
        assert lasting.search(statement.sql) is None, (file, statement.name)


def test_every_function_file_is_applied_and_grants_come_last() -> None:
    gate = importlib.resources.files("tenantry.gate")
    with_functions = {
        entry.name
        for entry in gate.iterdir()
        if entry.name.endswith(".sql")
        and any(
            statement.kind == "script"
            for statement in parse_statements(entry.read_text("utf-8"), source=entry.name).values()
        )
    }
    assert with_functions == {file for _, file in FUNCTION_FILES}
    assert FUNCTION_FILES[-1] == ("tenantry.gate", "grants.sql")
    assert [file.name for file in load_functions()] == [
        f"{package}/{file}" for package, file in FUNCTION_FILES
    ]


def test_the_migrations_are_numbered_from_one_without_a_gap() -> None:
    numbers = [int(file.name[:4]) for file in load_migrations()]
    assert numbers == list(range(1, len(numbers) + 1))
