"""One measured figure, what it is compared with, and the machine that it was measured on."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

REPETITIONS_MIN: Final = 3


class Figure(msgspec.Struct, frozen=True):
    """``ratio`` is what counts; ``goal`` is ``<= N`` or ``>= N`` of it, None for a figure that only informs.

    ``skipped`` says why there is no ratio: the peer is not there.
    """

    name: str
    value: float | None
    unit: str
    against: str
    ratio: float | None
    goal: str | None
    machine: str = ""
    skipped: str | None = None

    def is_met(self) -> bool | None:
        """Whether the ratio is at its goal; None where there is no goal or no ratio."""
        if self.goal is None or self.ratio is None:
            return None
        sign, bound = self.goal.split()
        return self.ratio <= float(bound) if sign == "<=" else self.ratio >= float(bound)


def encode(figure: Figure) -> str:
    """The figure as one line of JSON; ``skipped`` stands there only when it was."""
    fields: dict[str, Any] = msgspec.structs.asdict(figure)
    if figure.skipped is None:
        del fields["skipped"]
    return msgspec.json.encode(fields).decode()


def median_of(rounds: Iterable[float], digits: int = 3) -> float:
    """The median over repetitions, with so many significant digits."""
    return significant(statistics.median(rounds), digits)


def significant(value: float, digits: int = 3) -> float:
    """`value` with so many significant digits."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all are not above (nearest rank)."""
    assert samples, "nothing was measured"
    assert 0 < share <= 1, "a share is above 0 and at most 1"
    ordered = sorted(samples)
    return ordered[math.ceil(share * len(ordered)) - 1]


def repeat(repetitions: int) -> range:
    """As many repetitions as asked for, three at least."""
    return range(max(repetitions, REPETITIONS_MIN))


def describe_machine(folder: Path = Path("/tmp")) -> str:  # noqa: S108 - where the embedded server puts its data
    """Processor, memory, system, Python, the file system below the database, and the load beforehand."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    disk = file_system(folder.resolve(), _mounts())
    return (
        f"{platform.machine()}, {cores} cores, {memory_gib:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, data on {disk}, load {os.getloadavg()[0]:.1f}"
    )


def file_system(folder: Path, mounts: str) -> str:
    """The type of file system that holds `folder`, by the text of /proc/self/mountinfo.

    A tmpfs syncs nothing, so what is called durable on it means nothing.
    """
    found, kind = "", "an unknown file system"
    place = str(folder)
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        mount = before.split()[4].replace("\\040", " ")
        holds = mount in {"/", place} or place.startswith(f"{mount}/")
        if holds and len(mount) >= len(found):
            found, kind = mount, after.split()[0]
    return kind


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text("utf-8")
    except OSError:
        return ""
