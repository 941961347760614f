"""Exit status, output and words of the command line, without a platform."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tenantry.cli.main import main, status_of
from tenantry.cli.output import Output, cell, clean, moment
from tenantry.cli.policies import read_layers
from tenantry.cli.runs import read_input
from tenantry.cli.secrets import read_value
from tenantry.cli.session import Session
from tenantry.core.errors import ForbiddenError, InvalidInputError, NotFoundError, TenantryError
from tenantry_client import ApiError, TcpTransport, UnreachableError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TenantryError("x"), 1),
        (UnreachableError("x"), 1),
        (InvalidInputError("x"), 2),
        (ForbiddenError("x"), 3),
        (NotFoundError("x"), 3),
        (ApiError(400, {}), 2),
        (ApiError(422, {}), 2),
        (ApiError(401, {}), 3),
        (ApiError(403, {"verdict": "denied"}), 3),
        (ApiError(404, {}), 3),
        (ApiError(423, {"verdict": "suspended"}), 3),
        (ApiError(429, {"verdict": "budget_exceeded"}), 3),
        (ApiError(500, {}), 1),
        (ApiError(503, {}), 1),
        (ApiError(503, {"verdict": "provider_degraded"}), 3),
    ],
)
def test_an_error_means_its_status(error: Exception, status: int) -> None:
    assert status_of(error) == status


@pytest.mark.parametrize(
    "problem", [{}, {"title": None}, {"title": 1, "detail": [], "path": {}}, {"verdict": "x" * 10_000}]
)
def test_any_problem_can_be_told(problem: dict[str, object]) -> None:
    assert str(ApiError(400, problem))


def test_an_error_goes_to_stderr_as_json_when_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["tenant", "list", "--json", "--data", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "tenantry up" in json.loads(said.err)["error"]["title"]


def test_bad_usage_is_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    assert main(["up", "--port", "99999999"]) == 2
    assert main(["--version"]) == 0
    capsys.readouterr()


def test_a_terminal_is_never_driven_by_data() -> None:
    assert clean("a\x1b[2Jb\u202ec\x07\r") == "a\ufffd[2Jb\ufffdc\ufffd\ufffd"
    assert "[bold]" in clean("[bold]x")


def test_cells_are_for_people() -> None:
    assert [cell(value) for value in (None, True, 1234567, ["a", "b"], [], {"a": 1})] == [
        "-",
        "yes",
        "1,234,567",
        "a, b",
        "-",
        '{"a":1}',
    ]
    assert moment("2026-01-02T03:04:05.678Z") == "2026-01-02 03:04:05"
    assert moment(None) is None


def test_markup_in_data_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).table(("a",), [["[red]x[/red]"]], empty="none")
    Output(as_json=False).line("[red]y")
    said = capsys.readouterr().out
    assert "[red]x[/red]" in said
    assert "[red]y" in said


@pytest.mark.parametrize(
    "words", [["tenant"], ["x=y"], ["tenant=/no/such"], ["profile/../x=y"], ["tenant=a", "tenant=b"]]
)
def test_layers_are_named_once_and_read(words: list[str]) -> None:
    with pytest.raises(InvalidInputError):
        read_layers(words)


@pytest.mark.parametrize("given", ["{", "@/no/such", "NaN", "\ud800", '"\ud800"'])
def test_input_is_json(given: str) -> None:
    with pytest.raises(InvalidInputError, match="--input"):
        read_input(given)


@pytest.mark.invariant(8)
def test_a_value_comes_from_where_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VALUE", "hunter2\n")
    file = tmp_path / "value"
    file.write_text("hunter3\n")
    assert read_value("VALUE", None) == "hunter2\n"
    assert read_value(None, file) == "hunter3"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hunter4\n")))
    assert read_value(None, None) == "hunter4"
    for content in (b"", b"\n", b"\xff", b"x" * 70_000):
        file.write_bytes(content)
        with pytest.raises(InvalidInputError) as caught:
            read_value(None, file)
        assert "hunter" not in str(caught.value)
    with pytest.raises(InvalidInputError):
        read_value("VALUE", file)
    with pytest.raises(InvalidInputError):
        read_value("NOT_SET_ANYWHERE", None)


def test_another_platform_is_asked_by_its_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "operator.key").write_text("tnk_local\n")
    (tmp_path / "control.sock").touch()
    (tmp_path / "address.json").write_text('{"url":"http://127.0.0.1:1","control_url":"http://x:2","pid":3}')
    monkeypatch.delenv("TENANTRY_URL", raising=False)
    monkeypatch.delenv("TENANTRY_API_KEY", raising=False)
    assert Session(data=tmp_path).control().address == str(tmp_path / "control.sock")
    assert Session(data=tmp_path).doors().address == "http://127.0.0.1:1"
    monkeypatch.setenv("TENANTRY_URL", "http://127.0.0.1:1/")
    assert Session(data=tmp_path).control().address == str(tmp_path / "control.sock")
    monkeypatch.setenv("TENANTRY_URL", "https://other.example")
    assert Session(data=tmp_path).control().address == "https://other.example"
    assert Session(data=tmp_path).doors().address == "https://other.example"


@pytest.mark.parametrize("url", ["ftp://x", "http://", "x", "http://h/?q=1", "http://h:99999999"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
        TcpTransport(url)
