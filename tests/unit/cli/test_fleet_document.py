"""Fleet files: strict YAML, variables and files put in place, secrets kept apart, every fault at its place."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml

from tenantry.cli.fleet_document import read_fleet_file
from tenantry.core.errors import InvalidInputError
from tenantry.registry.specs import FleetFile

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "fleet.yaml"
VARIABLES = {
    "EXAMPLE_MODEL_URL": "http://127.0.0.1:1/v1",
    "EXAMPLE_MODEL_KEY": "sk-hunter2",
    "EXAMPLE_TICKETS_URL": "http://127.0.0.1:2",
    "EXAMPLE_TICKETS_TOKEN_BOREALIS": "zd-hunter2",
    "EXAMPLE_WEB_URL": "http://127.0.0.1:3",
}


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "fleet.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_example_is_a_fleet_file() -> None:
    document = read_fleet_file(EXAMPLE, with_values=True)
    fleet = msgspec.convert(document.fleet, FleetFile)
    assert set(fleet.tenants) == {"borealis", "dunes", "cirrus"}
    assert fleet.providers["example"].base_url == VARIABLES["EXAMPLE_MODEL_URL"]
    assert document.values == {
        "providers.example.credential": "sk-hunter2",
        "tenants.borealis.secrets.zendesk_token": "zd-hunter2",
    }
    assert "hunter2" not in msgspec.json.encode(document.fleet).decode()


def test_without_values_no_secret_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXAMPLE_MODEL_KEY")
    assert read_fleet_file(EXAMPLE, with_values=False).values == {}
    with pytest.raises(InvalidInputError, match="EXAMPLE_MODEL_KEY is not set") as caught:
        read_fleet_file(EXAMPLE, with_values=True)
    assert caught.value.path == "$.providers.example.credential"


def test_files_stand_beside_the_fleet_file(tmp_path: Path) -> None:
    (tmp_path / "rules.cedar").write_text("permit (principal, action, resource);")
    (tmp_path / "token").write_text("hunter2\n")
    path = write(
        tmp_path,
        "guardrails: {file: rules.cedar}\n"
        "tenants:\n  acme:\n    policy: {file: rules.cedar}\n    profiles: {p: {file: rules.cedar}}\n"
        "    workspaces: {w: {policy: {file: rules.cedar}}}\n"
        "    secrets: {s: {value: {file: token}}}\n",
    )
    document = read_fleet_file(path, with_values=True)
    text = {"text": "permit (principal, action, resource);"}
    acme = document.fleet["tenants"]["acme"]
    assert document.fleet["guardrails"] == text
    assert (acme["policy"], acme["profiles"]["p"], acme["workspaces"]["w"]["policy"]) == (text, text, text)
    assert document.values == {"tenants.acme.secrets.s": "hunter2"}


def test_words_are_text_and_not_yaml_1_1(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a: [on, no, 2026-01-01, 1:30, 0o7, true, null, -3, '${EXAMPLE_WEB_URL}', '$${X}']"
    )
    assert read_fleet_file(path, with_values=False).fleet["a"] == [
        "on",
        "no",
        "2026-01-01",
        "1:30",
        "0o7",
        True,
        None,
        -3,
        VARIABLES["EXAMPLE_WEB_URL"],
        "${X}",
    ]


BAD: list[tuple[str | bytes, str]] = [
    ("a: 1\na: 2\n", "stands twice"),
    ("a: &x [1]\nb: *x\n", "aliases"),
    ("1: x\n", "a key is text"),
    ("a: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
    ("- a\n", "no fleet"),
    ("", "no fleet"),
    ("a: [\n", "line 2"),
    (b"a: \xff\n", "not UTF-8"),
    ("a: \x00\n", "not YAML"),
    ("a: ${NOT_SET_ANYWHERE}\n", "NOT_SET_ANYWHERE is not set"),
    ("a: ${no good}\n", "names an environment variable"),
    ("guardrails: {file: no/such/file}\n", "cannot read"),
    ("guardrails: {file: x, text: y}\n", "not both"),
    ("tenants: {a: {secrets: {s: {value: {}}}}}\n", "env or from file"),
    ("a: " + "[" * 5000 + "]" * 5000, ""),
    ("a: " + "{a: " * 100 + "1" + "}" * 100, "too deeply"),
    ("#" * (4 * 1024 * 1024 + 1), "longer than"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_what_is_wrong_is_told_with_its_place(text: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_fleet_file(write(tmp_path, text), with_values=True)
    assert said in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot read"):
        read_fleet_file(tmp_path / "none.yaml", with_values=False)
    with pytest.raises(InvalidInputError, match="cannot read"):
        read_fleet_file(tmp_path, with_values=False)


def test_the_loader_changed_nobody_elses() -> None:
    assert yaml.safe_load("a: on") == {"a": True}
