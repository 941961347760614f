"""Every benchmark by name: which module measures it, and which figures it prints beside its own."""

from __future__ import annotations

import importlib
from typing import Final, Protocol, cast

import msgspec

from benchmarks.figure import Figure, describe_machine


class Measure(Protocol):
    """`measure` of a benchmark's module: `repetitions` rounds (three at least) of `seconds` each side."""

    def __call__(self, repetitions: int, seconds: float) -> list[Figure]: ...


class Benchmark(msgspec.Struct, frozen=True):
    """``figures`` are the names that it prints, its own first. The module loads when it is measured."""

    module: str
    figures: tuple[str, ...]
    about: str

    @property
    def name(self) -> str:
        """What `run` is given."""
        return self.figures[0]

    def measure(self, repetitions: int, seconds: float) -> list[Figure]:
        """Its figures, each with the machine as it was before. Errors: whatever the product does wrong."""
        machine = describe_machine()
        measure = cast("Measure", importlib.import_module(f"benchmarks.{self.module}").measure)
        figures = measure(repetitions, seconds)
        assert tuple(figure.name for figure in figures) == self.figures, "the catalogue names its figures"
        return [msgspec.structs.replace(figure, machine=machine) for figure in figures]


BENCHMARKS: Final = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "gate_begin_alone",
            ("gate.begin_alone", "gate.begin_alone_p99"),
            "begin with one in flight / a durable one-row INSERT",
        ),
        Benchmark(
            "gate_spread_64",
            ("gate.spread_64", "gate.spread_64_begin_p99"),
            "actions/s, 64 in flight over 200 tenants / durable INSERTs/s at 16 connections",
        ),
        Benchmark("gate_hot_64", ("gate.hot_64",), "actions/s of one hot tenant / the same over 200 tenants"),
        Benchmark(
            "gate_hot_vs_unbatched",
            ("gate.hot_vs_unbatched",),
            "actions/s of one hot tenant, 64 in flight / the same gate in batches of one",
        ),
        Benchmark(
            "gate_light_beside_hot",
            ("gate.light_beside_hot",),
            "what 256 in flight of another tenant add to a light one's begin p99 / 5 ms",
        ),
        Benchmark(
            "gate_kill_p99",
            ("gate.kill_p99", "gate.kill_begun_after"),
            "commit of a kill under 256 in flight, p99 / 20 ms; what began after it",
        ),
        Benchmark(
            "policy_decide",
            ("policy.decide", "policy.decide_cached"),
            "a decision / one bare is_authorized over the same 100 policies",
        ),
        Benchmark(
            "doors_model_added_bare",
            (
                "doors.model_added_bare",
                "doors.model_added_bare_p99",
                "doors.model_added_bare_first_byte",
                "doors.model_added_bare_first_byte_p99",
            ),
            "a model call through the door / the bare provider, one at a time (for information)",
        ),
    )
}
