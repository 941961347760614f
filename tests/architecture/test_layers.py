"""The import contracts hold, and each is seen to break on a planted import."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = ROOT / "pyproject.toml"
PACKAGE = ROOT / "src" / "tenantry"
CONTRACTS = {
    contract["id"]: contract
    for contract in tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
}
LINT = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"

# Contract, module, the import that it forbids.
BROKEN = [
    ("layers", "core/a.py", "import tenantry.storage"),
    ("layers", "storage/a.py", "from tenantry import gate"),
    ("layers", "quota/a.py", "from tenantry.policy import __name__"),
    ("layers", "gate/a.py", "import tenantry.control"),
    ("layers", "adapters/a.py", "def late():\n    import tenantry.control"),
    ("layers", "gateway/a.py", "import tenantry.api"),
    ("layers", "unheard_of/__init__.py", ""),
    ("layers", "unheard_of.py", ""),
    ("siblings", "gate/a.py", "import tenantry.gate.b"),
    ("driver", "gate/a.py", "import asyncpg"),
    ("driver", "cli/a.py", "from asyncpg import Connection"),
    ("driver", "journal/a.py", "import obstore.store"),
    ("starlette", "control/a.py", "from starlette.requests import Request"),
    ("faces", "api/a.py", "import tenantry.storage"),
    ("faces", "cli/a.py", "from tenantry.gate import __name__"),
    ("core", "core/a.py", "import asyncio"),
    ("core", "core/a.py", "from os import path"),
    ("core", "core/a.py", "import socket"),
]


def lint(source: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    chosen = [part for name in contracts for part in ("--contract", name)]
    return subprocess.run(
        [sys.executable, "-c", LINT, str(PYPROJECT), "--no-cache", "--no-logo", *chosen],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(source), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def plant(root: Path, name: str, text: str) -> Path:
    """A tree with every package of the project and nothing in it but one module."""
    package = root / "tenantry"
    for made in {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}:
        (package / made).mkdir(parents=True)
        (package / made / "__init__.py").touch()
    for module in ("__init__.py", "__main__.py", "bootstrap.py", "settings.py"):
        (package / module).touch()
    # The other half of the cycle that the siblings case closes.
    (package / "gate" / "b.py").write_text("import tenantry.gate.a\n" if name == "gate/a.py" else "")
    path = package / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n")
    return root


def test_the_project_keeps_every_contract() -> None:
    done = lint(ROOT / "src")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(("contract", "module", "text"), BROKEN)
def test_a_contract_breaks(contract: str, module: str, text: str, tmp_path: Path) -> None:
    done = lint(plant(tmp_path, module, text), contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{CONTRACTS[contract]['name']} BROKEN" in done.stdout


def test_a_sound_tree_keeps_every_contract(tmp_path: Path) -> None:
    done = lint(plant(tmp_path, "storage/a.py", "import asyncpg\nimport asyncio\nimport tenantry.core"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_contract_has_been_seen_to_break() -> None:
    assert {contract for contract, _, _ in BROKEN} == set(CONTRACTS)


def test_the_faces_contract_knows_every_face_and_feature() -> None:
    there = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    layers = CONTRACTS["layers"]["layers"]
    features = {name.strip(" ()") for layer in layers if "(quota)" in layer for name in layer.split("|")}
    hidden = {f"tenantry.{name}" for name in (features | {"gate", "storage"}) & there}
    faces = {f"tenantry.{name}" for name in {"api", "cli", "console"} & there}
    assert set(CONTRACTS["faces"]["forbidden_modules"]) == hidden
    assert set(CONTRACTS["faces"]["source_modules"]) == faces
