"""Laws of the meters: the database's functions against a plain model, batch by batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.support.fixtures import cluster, fresh_database
from tests.support.meter_machine import LABELS, MODES, RUNS, Loop, Meters
from tests.support.meter_model import LIMITED

from tenantry.storage.connect import DatabaseTarget

__all__ = ["cluster", "fresh_database"]


@pytest.fixture
def loop(fresh_database: DatabaseTarget) -> Iterator[Loop]:
    made = Loop(fresh_database)
    yield made
    made.close()


class Walk:
    """The same machine driven by a seed: less clever than Hypothesis about what is small, and much wider."""

    def __init__(self, loop: Loop, seed: int) -> None:
        self.chance = random.Random(seed)
        self.machine: Meters = type("MetersHere", (Meters,), {"loop": loop})()

    def go(self, steps: int) -> None:
        """Start with bounds on some meters, then change something before every other batch."""
        chance = self.chance
        bounds = {
            (chance.randrange(2), chance.randrange(6), chance.choice(LIMITED)): chance.randrange(25)
            for _ in range(chance.randrange(2, 9))
        }
        self.machine.begin_with(bounds)
        for _ in range(steps):
            if chance.random() < 0.5:
                self._change()
            self._batch()
            # The plain calls are ways of their own.
            for _ in range(chance.randrange(4)):
                self.machine.take([self._item(chance.random() < 0.2)], [], slow=False)
                self.machine.take([], [self._end()], slow=False)

    def _batch(self) -> None:
        chance = self.chance
        flawed_share = chance.choice([0.0, 0.0, 0.3, 1.0])
        items = [
            self._item(chance.random() < flawed_share) for _ in range(chance.choice([0, 1, 1, 5, 20, 40]))
        ]
        ended = [self._end() for _ in range(chance.choice([0, 2, 10]))]
        self.machine.take(items, ended, slow=chance.random() < 0.4)

    def _demand(self) -> dict[str, Any]:
        chance = self.chance
        match chance.randrange(3):
            case 0:
                return {"tool_calls": chance.randrange(3), "high_risk": chance.randrange(2)}
            case 1:
                tokens = {"model_tokens": chance.randrange(6), "cost_microusd": chance.randrange(6)}
                return tokens | {"kind": "model", "tool_calls": 0, "model_inflight": 1}
            case _:
                return {
                    "tool_calls": 1,
                    "model_tokens": chance.randrange(3),
                    "cost_microusd": chance.randrange(3),
                }

    def _item(self, is_flawed: bool) -> dict[str, Any]:
        chance = self.chance
        item: dict[str, Any] = {
            "tenant": chance.randrange(2),
            "place": chance.randrange(RUNS),
            "demand": self._demand(),
            "bytes": chance.randrange(4),
            "content": chance.randrange(6),
        }
        if not is_flawed:
            return item

        def rarely(usual: Any, *others: Any) -> Any:  # noqa: ANN401 - any field
            return chance.choice(others) if chance.random() < 0.07 else usual

        return item | {
            "opens": rarely(False, True),
            "key": chance.choice([None, None, "k0", "k1"]),
            "input": rarely(0, 1),
            "risk": chance.choice([0, 0, 0, 1, 2, 3]),
            "old_policy": rarely(0, 1),
            "old_fleet": rarely(0, 1),
            "attempt": rarely(1, 2),
            "allow": rarely(True, False),
            "approvers": rarely("", "approver"),
            "approval": chance.randrange(2),
            "labels": chance.choice([*LABELS, "pii,untrusted", "pii,untrusted"]),
            "unknown": rarely(None, "workspace", "agent"),
        }

    def _end(self) -> dict[str, Any]:
        chance = self.chance
        return {
            "which": chance.randrange(200),
            "status": chance.choice(["ok", "ok", "failed", "cut", "unknown", "void"]),
            "extra": chance.choice([0] * 9 + [-2, -1, 1, 3]),
            "bytes": chance.randrange(5),
            "labels": chance.choice([""] * 9 + ["pii", "untrusted"]),
            "wrong": chance.choice([None] * 9 + ["scope_run", "agent"]),
            "ends": chance.random() < 0.5,
        }

    def _change(self) -> None:
        chance, machine = self.chance, self.machine
        tenant, place = chance.randrange(2), chance.randrange(6)
        match chance.randrange(9):
            case 0 | 1:
                machine.change_limits(
                    tenant,
                    place,
                    {chance.choice(LIMITED): chance.choice([None, chance.randrange(25)]) for _ in range(3)},
                )
            case 2:
                machine.change_rate(
                    tenant, place, chance.choice([None, 1, 999, 20_000_000]), chance.randrange(40)
                )
            case 3:
                machine.change_mode(
                    tenant,
                    place,
                    chance.choice(MODES),
                    killed=chance.random() < 0.2,
                    expires=chance.random() < 0.5,
                )
            case 4:
                machine.change_mode(tenant, place, "normal", killed=False, expires=False)
            case 5:
                machine.change_fleet(
                    chance.choice([*MODES, "normal", "normal"]), raised=chance.random() < 0.3
                )
            case 6:
                machine.change_labels(tenant, 3 + place % 3, cleared=chance.random() < 0.7)
            case 7:
                machine.change_clock(chance.choice([0.000001, 0.5, 7, 31, 60, 600, 40_000]))
            case _:
                for _ in range(sum(a.state == "pending" for a in machine.model.approvals)):
                    machine.change_approval(
                        chance.randrange(6), chance.choice(["approved", "approved", "denied"])
                    )


def run_machine(loop: Loop, *, examples: int, steps: int) -> None:
    machine = type("MetersHere", (Meters,), {"loop": loop})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.invariant(3)
@pytest.mark.invariant(5)
@pytest.mark.invariant(10)
def test_functions_and_model_agree(loop: Loop) -> None:
    run_machine(loop, examples=20, steps=12)


@pytest.mark.invariant(3)
@pytest.mark.invariant(5)
@pytest.mark.invariant(10)
@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(n, marks=pytest.mark.soak) for n in range(5, 300))]
)
def test_a_random_walk_agrees(loop: Loop, seed: int) -> None:
    Walk(loop, seed).go(30)


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@pytest.mark.invariant(3)
def test_functions_and_model_agree_for_long(loop: Loop) -> None:
    run_machine(loop, examples=1_000, steps=30)
