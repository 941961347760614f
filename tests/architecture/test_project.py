"""Locks, targets and pages agree with each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)( ;[^\\]*)?", re.MULTILINE)
TARGETS = {"help", "demo", "test", "check", "e2e", "soak", "bench", "lock", "clean"}


def pins(level: str) -> dict[str, str]:
    text = (REQUIREMENTS / f"{level}.txt").read_text(encoding="utf-8")
    return {name: version for name, version, _ in PIN.findall(text)}


def asked_for(level: str) -> set[str]:
    lines = (REQUIREMENTS / f"{level}.in").read_text(encoding="utf-8").splitlines()
    return {line.strip().lower() for line in lines if line.strip() and not line.startswith(("#", "-"))}


@pytest.mark.parametrize(("lower", "higher"), [("runtime", "test"), ("test", "dev")])
def test_a_higher_lock_only_adds_to_a_lower_one(lower: str, higher: str) -> None:
    assert pins(lower).items() <= pins(higher).items()


@pytest.mark.parametrize("level", ["runtime", "test", "dev"])
def test_every_pin_has_hashes_and_nothing_else_is_fetched(level: str) -> None:
    text = (REQUIREMENTS / f"{level}.txt").read_text(encoding="utf-8")
    for block in re.split(r"\n(?=\S)", re.sub(r"(?m)^#.*\n", "", text).strip()):
        assert PIN.match(block), block[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block[:80]
    assert "://" not in text
    assert "file:" not in text


def test_every_wish_is_locked() -> None:
    assert asked_for("runtime") | asked_for("build") <= pins("runtime").keys()
    assert asked_for("test") <= pins("test").keys()
    assert asked_for("dev") <= pins("dev").keys()


@pytest.mark.parametrize("level", ["runtime", "build", "test", "dev"])
def test_every_dependency_is_argued_for(level: str) -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    argued = set(re.findall(r"^- `([^`]+)`: .{20,}", page, re.MULTILINE))
    assert asked_for(level) <= argued


def test_dependencies_that_went_are_not_argued_for() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    argued = set(re.findall(r"^- `([^`]+)`: ", page, re.MULTILINE))
    assert argued <= set().union(*(asked_for(level) for level in ("runtime", "build", "test", "dev")))


def test_make_has_the_promised_targets_and_lists_them() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"^([a-z0-9]+):.*## .+", text, re.MULTILINE)) == TARGETS


def test_decisions_are_one_page_in_one_form() -> None:
    pages = [path for path in sorted((ROOT / "docs" / "adr").glob("*.md")) if path.name != "README.md"]
    numbers = [int(path.name[:4]) for path in pages if re.fullmatch(r"\d{4}(-[a-z0-9]+)+\.md", path.name)]
    assert numbers == list(range(1, len(pages) + 1))
    for path in pages:
        text = path.read_text(encoding="utf-8")
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"], path.name
        assert len(text.splitlines()) <= 70, path.name
