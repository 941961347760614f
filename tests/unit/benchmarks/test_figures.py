"""How figures are computed, judged and printed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from benchmarks import figure
from benchmarks.figure import Figure, encode, median_of, percentile, repeat, significant


def made(ratio: float | None, goal: str | None, skipped: str | None = None) -> Figure:
    return Figure(
        name="gate.spread_64",
        value=1.0,
        unit="actions/s",
        against="the floor",
        ratio=ratio,
        goal=goal,
        machine="a machine",
        skipped=skipped,
    )


def test_a_line_holds_exactly_the_fields_of_the_contract() -> None:
    line = encode(made(0.75, ">= 0.5"))
    assert "\n" not in line
    assert set(json.loads(line)) == {"name", "value", "unit", "against", "ratio", "goal", "machine"}


def test_a_figure_whose_peer_is_missing_says_why() -> None:
    fields = json.loads(encode(made(None, ">= 20", skipped="the peer is not installed")))
    assert fields["ratio"] is None
    assert fields["skipped"] == "the peer is not installed"


@pytest.mark.parametrize(
    ("ratio", "goal", "met"),
    [
        (0.5, ">= 0.5", True),
        (0.49, ">= 0.5", False),
        (1.6, "<= 1.6", True),
        (1.61, "<= 1.6", False),
        (0.0, "<= 0", True),
        (-0.2, "<= 1", True),
        (None, "<= 1", None),
        (3.0, None, None),
    ],
)
def test_a_goal_is_met_or_missed_or_not_there(
    ratio: float | None, goal: str | None, met: bool | None
) -> None:
    assert made(ratio, goal).is_met() is met


def test_percentiles_are_of_the_nearest_rank() -> None:
    samples = [float(value) for value in range(100, 0, -1)]
    assert percentile(samples, 0.5) == 50
    assert percentile(samples, 0.99) == 99
    assert percentile(samples, 1.0) == 100
    assert percentile([7.0], 0.99) == 7


@pytest.mark.parametrize(("samples", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.01)])
def test_a_percentile_of_nothing_is_a_fault(samples: list[float], share: float) -> None:
    with pytest.raises(AssertionError):
        percentile(samples, share)


def test_figures_are_rounded_by_their_size() -> None:
    assert significant(0.0123456) == 0.0123
    assert significant(12_345.6) == 12_300
    assert significant(-1.2345) == -1.23
    assert significant(0.0) == 0.0
    assert math.isinf(significant(math.inf))
    assert median_of([3.0, 1.0, 2.0001]) == 2.0


def test_there_are_three_repetitions_at_least() -> None:
    assert len(repeat(1)) == 3
    assert len(repeat(5)) == 5


MOUNTS = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 21 0:26 / /mnt/fast rw - tmpfs tmpfs rw
31 21 0:27 / /mnt/fast\\040disk rw - xfs /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/mnt/fast/data", "tmpfs"),
        ("/mnt/fast", "tmpfs"),
        ("/mnt/faster", "ext4"),
        ("/mnt/fast disk/data", "xfs"),
        ("/", "ext4"),
    ],
)
def test_the_machine_names_the_file_system_below_the_data(folder: str, kind: str) -> None:
    assert figure.file_system(Path(folder), MOUNTS) == kind


def test_the_machine_is_described_in_one_line() -> None:
    described = figure.describe_machine()
    assert "cores" in described
    assert "Python" in described
    assert "\n" not in described
