"""Named SQL: every statement stands in a `.sql` file beside its Python (STYLE §5).

A file is a sequence of blocks, each opened by ``-- name: WORD :KIND``. Kinds: `one` (at most one row), `many`
(rows), `exec` (a count), `script` (several statements without arguments, for the migrator only).
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal, cast

import msgspec

from tenantry.core.errors import TenantryError

StatementKind = Literal["one", "many", "exec", "script"]

_HEADER: Final = re.compile(r"^-- name: ([a-z][a-z0-9_]*) :(one|many|exec|script)[ \t]*$", re.MULTILINE)
_NEAR_HEADER: Final = re.compile(r"^[ \t]*--[ \t]*name:.*$", re.MULTILINE)


class Statement(msgspec.Struct, frozen=True):
    """One named statement. `sql` takes positional parameters ``$1``...; `kind` says what it answers."""

    name: str
    kind: StatementKind
    sql: str


class StatementFileError(TenantryError):
    """A `.sql` file of the package is malformed; names the file and the line's text."""


class Statements(Mapping[str, Statement]):
    """The statements of one file, in its order. `[name]` raises KeyError with the file and the name."""

    def __init__(self, source: str, blocks: Mapping[str, Statement]) -> None:
        self._source = source
        self._blocks = blocks

    def __getitem__(self, name: str) -> Statement:
        try:
            return self._blocks[name]
        except KeyError:
            raise KeyError(f"{self._source} has no statement {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)


def read_sql(package: str, file: str) -> str:
    """The text of a `.sql` file of an importable package. Errors: FileNotFoundError."""
    return importlib.resources.files(package).joinpath(file).read_text("utf-8")


def load_statements(package: str, file: str) -> Statements:
    """Read and split a `.sql` file of `package`; call it where the object that uses it is made.

    Cost: a read of a small file. Errors: FileNotFoundError; `StatementFileError`.
    """
    return parse_statements(read_sql(package, file), source=f"{package}/{file}")


def parse_statements(text: str, *, source: str) -> Statements:
    """Split the text of a file; `source` names it in errors. Errors: `StatementFileError`."""
    headers = list(_HEADER.finditer(text))
    well_formed = {match.start() for match in headers}
    for match in _NEAR_HEADER.finditer(text):
        if match.start() not in well_formed:
            raise StatementFileError(
                f"{source}: {match.group().strip()!r} is not '-- name: word :one|many|exec|script'"
            )
    if _code(text[: headers[0].start()] if headers else text):
        raise StatementFileError(f"{source}: SQL stands before the first '-- name:' line")
    blocks: dict[str, Statement] = {}
    for index, match in enumerate(headers):
        name, kind = match.group(1), cast("StatementKind", match.group(2))
        end = headers[index + 1].start() if index + 1 < len(headers) else len(text)
        sql = text[match.end() : end].strip()
        if name in blocks:
            raise StatementFileError(f"{source}: statement {name!r} stands there twice")
        if not _code(sql):
            raise StatementFileError(f"{source}: statement {name!r} is empty")
        blocks[name] = Statement(name=name, kind=kind, sql=sql)
    return Statements(source, blocks)


def _code(sql: str) -> bool:
    """Whether anything but white space and line comments stands in `sql`."""
    return any(line.strip() and not line.lstrip().startswith("--") for line in sql.splitlines())
