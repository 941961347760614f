"""The house rules as functions: each takes the root of a tree and returns its violations, one line each.

They walk the files and not the index of git, so that they hold in an unpacked archive as well. test_rules.py
runs them over the project, and each over a small tree in which the rule is broken: a rule that cannot fail is
worthless.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
CODE = ("src", "tests", "examples", "benchmarks", "requirements")
# What make, the tools and the platform leave in a clone; none of it is tracked.
MADE = frozenset({".git", ".venv", "__pycache__", "build", "dist", ".tenantry"})
# Letters stand in brackets and escapes where this file would otherwise break its own rules.
VAGUE_NAMES = frozenset({"util", "utils", "common", "misc", "manager", "managers", "helper", "helpers"})
UNFINISHED = re.compile(r"\b(?:T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")
PLACES = re.compile(
    r"(?<![\w.])/(?:w[o]rk|r[o]ot|f[a]rm|tmp/d[v])(?:/|\b(?![-\w]))"
    r"|(?<![\w.])/h[o]me/[a-z]"
    r"|index-u[r]l\s*="
    r"|\b(?:[a-z-]+\.)*(?:pyp[i]|pythonhoste[d]|npmj[s]|deb[i]an)\.(?:org|com|io|net)\b"
)
MIGRATION_NAME = re.compile(r"(\d{4})_(?:pre|post)(?:_[a-z0-9]+)+\.sql")
STATEMENT_NAME = re.compile(r"-- name: [a-z][a-z0-9_]* :(?:one|many|exec|script)")

_OBJECT = (
    r"(?:table|role|user|database|schema|view|policy|sequence|function|procedure|trigger|type|domain"
    r"|extension)"
)
SQL = re.compile(
    # unmistakable in any case
    r"\s*(?:"
    r"insert\s+into\s"
    r"|delete\s+from\s"
    r"|update\s+[\w.\"]+(?:\s+(?:as\s+)?\w+)?\s+set\s"
    r"|merge\s+into\s"
    r"|with\s+(?:recursive\s+)?\w+\s*(?:\([^)]*\)\s*)?as\s+(?:(?:not\s+)?materialized\s+)?\("
    rf"|create\s+(?:or\s+replace\s+)?(?:temp\w*\s+|unlogged\s+|unique\s+|materialized\s+)*(?:index|{_OBJECT})\b"
    rf"|(?:alter|drop)\s+(?:materialized\s+)?(?:index|system|{_OBJECT})\b"
    r"|truncate\s+(?:table\s+)?[\w.\"]+\s*(?:;|,|cascade|restart|$)"
    r"|grant\s+[\w\s,]+\son\s|revoke\s+[\w\s,]+\son\s"
    r"|set\s+(?:local|session|role|constraints)\s"
    r"|lock\s+table\s"
    r"|select\s[^.]*\sfrom\s|select\s+[\w.]+\s*\(|select\s+\d"
    r")",
    re.IGNORECASE,
)
# Plain words in lower case, so statements only in capitals.
SQL_CAPITALS = re.compile(
    r"\s*(?:"
    r"(?:BEGIN|COMMIT|ROLLBACK)\s*(?:;|$)"
    r"|(?:SELECT|INSERT|UPDATE|MERGE|WITH|CREATE|ALTER|DROP|SET|RESET|SHOW|GRANT|REVOKE|TRUNCATE|BEGIN|COMMIT"
    r"|ROLLBACK|SAVEPOINT|LISTEN|UNLISTEN|NOTIFY|EXPLAIN|ANALYZE|VACUUM|COPY|VALUES|LOCK|CALL|DO)\s+\S"
    r")"
)


def files(root: Path, *suffixes: str) -> Iterator[Path]:
    """Every file of the tree that a person wrote, in a stable order; all suffixes when none is named."""
    for folder, names, found in os.walk(root):
        names[:] = sorted(
            name
            for name in names
            if name not in MADE and not name.endswith((".egg-info", "_cache", ".hypothesis"))
        )
        for name in sorted(found):
            path = Path(folder, name)
            if (not suffixes or path.suffix in suffixes) and not path.is_symlink():
                yield path


def code(root: Path, *folders: str) -> Iterator[tuple[Path, str]]:
    """Each Python file of the folders with its text; the path is relative to the root."""
    for folder in folders or CODE:
        for path in files(root / folder, ".py"):
            yield path.relative_to(root), path.read_text(encoding="utf-8")


def sql_in_python(root: Path) -> list[str]:
    """SQL stands in `.sql` files beside the Python, never in it (tests may speak SQL: attackers do)."""
    found = []
    for path, text in code(root, "src", "examples"):
        tree = ast.parse(text)
        # Docstrings are prose, and what is compared is an answer (a command tag), not a statement.
        spared = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        } | {
            id(side)
            for node in ast.walk(tree)
            if isinstance(node, ast.Compare)
            for side in (node.left, *node.comparators)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or id(node) in spared:
                continue
            value = node.value.decode("latin-1") if isinstance(node.value, bytes) else node.value
            if isinstance(value, str) and (SQL.match(value) or SQL_CAPITALS.match(value)):
                found.append(f"{path}:{node.lineno}: SQL in Python: {value.strip()[:40]!r}")
    return found


def long_files(root: Path) -> list[str]:
    """Past the limit, a seam was missed."""
    found = []
    for folder in CODE:
        for path in files(root / folder, ".py", ".sql"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > FILE_LINES_MAX:
                found.append(f"{path.relative_to(root)}: {lines} lines, at most {FILE_LINES_MAX}")
    return found


def long_functions(root: Path) -> list[str]:
    """Counted from `def` to the last line, docstring included."""
    found = []
    for path, text in code(root):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    found.append(
                        f"{path}:{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES_MAX}"
                    )
    return found


def vague_names(root: Path) -> list[str]:
    """A module named for what it is not about gathers everything."""
    found = []
    for path, _ in code(root):
        parts = [*path.parts[:-1], path.stem]
        if any(VAGUE_NAMES.intersection(part.lower().split("_")) for part in parts):
            found.append(f"{path}: name it after the thing it holds")
    return found


def _text_lines(root: Path) -> Iterator[tuple[Path, int, str]]:
    for path in files(root):
        raw = path.read_bytes()
        if b"\0" in raw:
            continue
        for number, line in enumerate(raw.decode("utf-8", errors="replace").splitlines(), start=1):
            yield path.relative_to(root), number, line


def unfinished_marks(root: Path) -> list[str]:
    """Work left open stands in an issue, not in the code."""
    return [
        f"{path}:{number}: open work" for path, number, line in _text_lines(root) if UNFINISHED.search(line)
    ]


def machine_places(root: Path) -> list[str]:
    """No path of one machine and no host of a package registry: both differ where the next person stands."""
    return [
        f"{path}:{number}: {match.group()}"
        for path, number, line in _text_lines(root)
        if (match := PLACES.search(line))
    ]


def migration_names(root: Path) -> list[str]:
    """`NNNN_pre|post_words.sql`, numbered from 0001 without a gap or a double."""
    folder = root / "src/tenantry/storage/migrations"
    found, numbers = [], []
    for path in files(folder):
        if path.suffix == ".py":
            continue
        match = MIGRATION_NAME.fullmatch(path.name)
        if match is None:
            found.append(f"{path.relative_to(root)}: name it NNNN_pre_words.sql or NNNN_post_words.sql")
        else:
            numbers.append(int(match.group(1)))
    if sorted(numbers) != list(range(1, len(numbers) + 1)):
        found.append(f"migrations are numbered {sorted(numbers)}, not from 1 without a gap")
    return found


def unnamed_statements(root: Path) -> list[str]:
    """Outside migrations, SQL stands under `-- name: reserve :one`: each name once a file, none empty."""
    found = []
    for path in files(root / "src", ".sql"):
        if path.parent.name == "migrations":
            continue
        where = path.relative_to(root)
        blocks: list[tuple[str, bool]] = [("", False)]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            text = line.strip()
            if re.match(r"--\s*name\b", text, re.IGNORECASE):
                if not STATEMENT_NAME.fullmatch(text):
                    found.append(f"{where}:{number}: not of the form '-- name: words :one|many|exec|script'")
                blocks.append((text, False))
            elif text and not text.startswith("--"):
                blocks[-1] = (blocks[-1][0], True)
        if blocks[0][1]:
            found.append(f"{where}: SQL before the first '-- name:'")
        found += [f"{where}: '{name}' is empty" for name, filled in blocks[1:] if not filled]
        names = [name.split()[2] for name, _ in blocks[1:] if len(name.split()) > 2]
        found += [
            f"{where}: '{name}' stands twice" for name in sorted({n for n in names if names.count(n) > 1})
        ]
    return found


def _imports(text: str) -> Iterator[tuple[int, str]]:
    """Line and full name of each absolute import, late ones included; `from a import b` yields `a.b`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def client_imports(root: Path) -> list[str]:
    """The client is for other people's programs: it imports nothing of the platform."""
    return [
        f"{path}:{line}: imports {name}"
        for path, text in code(root, "src/tenantry_client")
        for line, name in _imports(text)
        if name.split(".")[0] == "tenantry"
    ]


def settings_imports(root: Path) -> list[str]:
    """Settings are read at the composition root and handed down: only `bootstrap` and `cli` import them."""
    allowed = (Path("src/tenantry/bootstrap.py"), Path("src/tenantry/cli"))
    return [
        f"{path}:{line}: imports {name}; take the value as an argument"
        for path, text in code(root, "src")
        if not any(path.is_relative_to(place) for place in allowed)
        for line, name in _imports(text)
        if f"{name}.".startswith("tenantry.settings.")
    ]
