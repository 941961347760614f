"""The command, its catalogue and its documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks import __main__ as command
from benchmarks import catalogue
from benchmarks.catalogue import BENCHMARKS, Benchmark
from benchmarks.figure import Figure

ROOT = Path(__file__).resolve().parents[3]


def figure(name: str) -> Figure:
    return Figure(name=name, value=2.0, unit="ms", against="1 ms", ratio=2.0, goal="<= 1")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, float]]:
    """Calls of `measure`, which measures nothing here."""
    calls: list[tuple[str, int, float]] = []

    def measure(benchmark: Benchmark, repetitions: int, seconds: float) -> list[Figure]:
        calls.append((benchmark.name, repetitions, seconds))
        return [figure(name) for name in benchmark.figures]

    monkeypatch.setattr(catalogue.Benchmark, "measure", measure)
    return calls


def test_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(BENCHMARKS)


def test_run_prints_one_json_object_a_figure(
    measured: list[tuple[str, int, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "gate.kill_p99", "policy.decide", "--json", "--repetitions", "4", "--seconds", "0.5"]
    assert command.main(arguments) == 0
    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert names == ["gate.kill_p99", "gate.kill_begun_after", "policy.decide", "policy.decide_cached"]
    assert measured == [("gate.kill_p99", 4, 0.5), ("policy.decide", 4, 0.5)]


def test_run_without_names_measures_everything(
    measured: list[tuple[str, int, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["run"]) == 0
    assert [name for name, _, _ in measured] == list(BENCHMARKS)
    assert "MISSED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "gate.nothing"],
        ["run", "gate.kill_p99", "gate.\0"],
        ["run", "policy.decide", "--seconds", "0"],
        ["run", "policy.decide", "--seconds", "nan"],
        ["run", "policy.decide", "--repetitions", "0"],
        [],
    ],
)
def test_nonsense_is_refused_before_anything_is_measured(
    arguments: list[str], measured: list[tuple[str, int, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err
    assert not measured


def test_the_page_describes_exactly_the_figures_there_are() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\| `([a-z0-9_.]+)`", page, re.MULTILINE))
    assert described == {name for benchmark in BENCHMARKS.values() for name in benchmark.figures}


def test_every_module_of_the_catalogue_stands_there() -> None:
    for benchmark in BENCHMARKS.values():
        assert (ROOT / f"benchmarks/{benchmark.module}.py").is_file()
