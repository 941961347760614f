"""The house rules hold in this project, and each is seen to fail where it is broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.architecture import rules

ROOT = Path(__file__).resolve().parents[2]
Rule = Callable[[Path], list[str]]

RULES: list[Rule] = [
    rules.sql_in_python,
    rules.long_files,
    rules.long_functions,
    rules.vague_names,
    rules.unfinished_marks,
    rules.machine_places,
    rules.migration_names,
    rules.unnamed_statements,
    rules.client_imports,
    rules.settings_imports,
]
MIGRATIONS = "src/tenantry/storage/migrations/"
NAMED = "-- name: a :one\nselect 1;\n"

# Rule, file, text with the rule broken; escapes keep this file itself within the rules.
BROKEN: list[tuple[Rule, str, str]] = [
    (rules.sql_in_python, "src/a.py", 'Q = "SELECT 1"\n'),
    (rules.sql_in_python, "src/a.py", 'Q = """\n    select id from runs"""\n'),
    (rules.sql_in_python, "src/a.py", "Q = f'insert into {1} values (1)'\n"),
    (rules.sql_in_python, "src/a.py", "Q = 'update runs r set a = 1'\n"),
    (rules.sql_in_python, "src/a.py", "Q = 'DELETE from runs'\n"),
    (rules.sql_in_python, "src/a.py", "Q = 'with a as (values (1)) table a'\n"),
    (rules.sql_in_python, "src/a.py", "Q = 'create unique index on runs (id)'\n"),
    (rules.sql_in_python, "src/a.py", "Q = 'set local role tenantry_app'\n"),
    (rules.sql_in_python, "src/a.py", "Q = 'alter role x set y = 1'\n"),
    (rules.sql_in_python, "src/a.py", "Q = 'select tenantry.now()'\n"),
    (rules.sql_in_python, "src/a.py", "Q = b'COMMIT'\n"),
    (rules.sql_in_python, "src/a.py", "def f():\n    return 'LISTEN switches'\n"),
    (rules.long_files, "src/a.py", "\n" * 501),
    (rules.long_files, "tests/a.sql", "--\n" * 501),
    (rules.long_functions, "benchmarks/a.py", "def f():\n" + "    1\n" * 70),
    (rules.long_functions, "src/a.py", "class A:\n    async def f(self):\n" + "        1\n" * 70),
    (rules.vague_names, "src/tenantry/utils.py", ""),
    (rules.vague_names, "src/common/a.py", ""),
    (rules.vague_names, "tests/run_manager.py", ""),
    (rules.unfinished_marks, "docs/a.md", "T\x4fDO: more\n"),
    (rules.unfinished_marks, "src/a.sql", "-- FIXM\x45\n"),
    (rules.machine_places, "docs/a.md", "see \x2fwork/main\n"),
    (rules.machine_places, "Makefile", "cd \x2froot\n"),
    (rules.machine_places, ".ci/run", "pip install --index-url\x3dx\n"),
    (rules.machine_places, "a.txt", "https:\x2f\x2ffiles.pythonhosted\x2eorg/x\n"),
    (rules.machine_places, "a.txt", "# from pypi\x2eorg\n"),
    (rules.migration_names, MIGRATIONS + "1_pre_base.sql", ""),
    (rules.migration_names, MIGRATIONS + "0001_base.sql", ""),
    (rules.migration_names, MIGRATIONS + "0001_pre_.sql", ""),
    (rules.migration_names, MIGRATIONS + "0002_pre_base.sql", ""),
    (rules.unnamed_statements, "src/a.sql", "select 1;\n"),
    (rules.unnamed_statements, "src/a.sql", "-- name: a\nselect 1;\n"),
    (rules.unnamed_statements, "src/a.sql", "--name: a :one\nselect 1;\n"),
    (rules.unnamed_statements, "src/a.sql", "-- name: A :one\nselect 1;\n"),
    (rules.unnamed_statements, "src/a.sql", "-- name: a :all\nselect 1;\n"),
    (rules.unnamed_statements, "src/a.sql", "-- name: a :one\n-- only words\n"),
    (rules.unnamed_statements, "src/a.sql", NAMED + NAMED),
    (rules.client_imports, "src/tenantry_client/a.py", "from tenantry.core import ids\n"),
    (rules.client_imports, "src/tenantry_client/a.py", "import tenantry\n"),
    (rules.settings_imports, "src/tenantry/gate/a.py", "from tenantry import settings\n"),
    (rules.settings_imports, "src/tenantry/api/a.py", "def f():\n    from tenantry.settings import S\n"),
    (rules.settings_imports, "src/tenantry/__main__.py", "import tenantry.settings\n"),
]

# Rule, file, text that a careless rule would refuse.
SOUND: list[tuple[Rule, str, str]] = [
    (
        rules.sql_in_python,
        "src/a.py",
        '"""Select from what is there."""\nS = ("begin", "DELETE", "with care")\n',
    ),
    (rules.sql_in_python, "src/a.py", "S = 'Create a tenant first; select one of its agents'\n"),
    (rules.sql_in_python, "src/a.py", "def f(tag):\n    return tag != 'COMMIT'\n"),
    (rules.sql_in_python, "tests/a.py", "Q = 'SELECT 1'\n"),
    (rules.long_files, "src/a.py", "\n" * 500),
    (rules.long_functions, "src/a.py", "def f():\n" + "    1\n" * 69),
    (rules.vague_names, "src/uncommon.py", ""),
    (rules.machine_places, "a.md", "PyPI alone; GET /api/v1/" + "work" + "/items; docs/" + "root" + "/a\n"),
    (rules.migration_names, MIGRATIONS + "0001_pre_row_security.sql", ""),
    (rules.unnamed_statements, "src/a.sql", "-- What this is about.\n\n" + NAMED),
    (rules.unnamed_statements, MIGRATIONS + "0001_pre_base.sql", "select 1;\n"),
    (rules.client_imports, "src/tenantry_client/a.py", "import tenantry_client\n"),
    (rules.settings_imports, "src/tenantry/cli/up.py", "from tenantry.settings import Settings\n"),
    (rules.settings_imports, "src/tenantry/bootstrap.py", "from tenantry import settings\n"),
    (rules.settings_imports, "src/tenantry/gate/a.py", "from tenantry.settings_of_mine import a\n"),
]


def plant(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps_the_rule(rule: Rule) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize(("rule", "name", "text"), BROKEN)
def test_the_rule_fails_where_it_is_broken(rule: Rule, name: str, text: str, tmp_path: Path) -> None:
    plant(tmp_path, name, text)
    assert len(rule(tmp_path)) == 1


@pytest.mark.parametrize(("rule", "name", "text"), SOUND)
def test_the_rule_lets_sound_work_pass(rule: Rule, name: str, text: str, tmp_path: Path) -> None:
    plant(tmp_path, name, text)
    assert rule(tmp_path) == []


def test_every_rule_has_been_seen_to_fail() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


def test_two_migrations_of_one_number_fail(tmp_path: Path) -> None:
    plant(tmp_path, MIGRATIONS + "0001_pre_a.sql", "")
    plant(tmp_path, MIGRATIONS + "0001_post_b.sql", "")
    assert len(rules.migration_names(tmp_path)) == 1


def test_what_make_leaves_behind_is_not_read(tmp_path: Path) -> None:
    plant(tmp_path, ".venv/lib/a.py", "# \x2fwork/x\n")
    plant(tmp_path, "src/tenantry.egg-info/SOURCES.txt", "\x2fwork/x\n")
    assert rules.machine_places(tmp_path) == []


def test_the_rules_have_something_to_read() -> None:
    assert sum(1 for _ in rules.code(ROOT, "src")) > 20
    assert any(rules.files(ROOT, ".sql"))
