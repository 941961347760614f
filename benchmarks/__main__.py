"""`python -m benchmarks list | run [NAME...]`: see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import pstats
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.catalogue import BENCHMARKS, Benchmark
from benchmarks.figure import Figure, encode

PROFILED_LINES: Final = 40


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 when everything named was measured, whatever came out of it."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "list":
        for benchmark in BENCHMARKS.values():
            print(f"{benchmark.name:24} {benchmark.about}")
        return 0
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; `list` names them all")
    if options.repetitions < 1 or not 0 < options.seconds <= 3600:
        parser.error("repetitions are 1 or more, seconds more than 0 and at most 3600")
    for name in options.names or BENCHMARKS:
        with _profiled(options.profile):
            figures = _measure(BENCHMARKS[name], options)
        for place, figure in enumerate(figures):
            print(encode(figure) if options.json else _in_words(figure, with_machine=place == 0), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Ratios against a floor or a peer."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every benchmark and what its ratio is")
    run = commands.add_parser("run", help="measure; without names everything")
    run.add_argument("names", nargs="*", metavar="NAME")
    run.add_argument("--json", action="store_true", help="one JSON object a figure and line")
    run.add_argument(
        "--repetitions", type=int, default=3, metavar="N", help="rounds of each side, 3 at least"
    )
    run.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="how long one side of a round takes"
    )
    run.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="write the last benchmark's cProfile to FILE and its dearest functions to stderr; "
        "it slows the Python side, so its figures mean nothing",
    )
    return parser


def _measure(benchmark: Benchmark, options: argparse.Namespace) -> list[Figure]:
    return benchmark.measure(options.repetitions, options.seconds)


@contextlib.contextmanager
def _profiled(file: Path | None) -> Iterator[None]:
    if file is None:
        yield
        return
    profile = cProfile.Profile()
    with profile:
        yield
    profile.dump_stats(file)
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(PROFILED_LINES)


def _in_words(figure: Figure, *, with_machine: bool) -> str:
    met = figure.is_met()
    goal = "for information" if met is None else f"goal {figure.goal}: {'met' if met else 'MISSED'}"
    ratio = "-" if figure.ratio is None else f"{figure.ratio:g}"
    value = "-" if figure.value is None else f"{figure.value:g}"
    lines = [
        f"{figure.name:26} ratio {ratio:>8}  ({goal})",
        f"    {value} {figure.unit} against {figure.against}",
    ]
    if figure.skipped is not None:
        lines.append(f"    skipped: {figure.skipped}")
    if with_machine:
        lines.insert(0, f"# {figure.machine}")
    return "\n".join(lines)


if __name__ == "__main__":
    # So that a run that is ended takes its cluster and its folders with it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
