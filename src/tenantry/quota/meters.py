"""Meters as a tenant sees them: limit, used, reserved, when it resets, what was refused (DESIGN §7)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from tenantry.core.quota import LEVELS, Level, Meter, MeterName, MeterReading
from tenantry.storage.connect import Row
from tenantry.storage.scope import TenantScope
from tenantry.storage.statements import Statement, load_statements

_LEVEL_NUMBERS: Final[Mapping[Level, int]] = {level: number for number, level in enumerate(LEVELS)}
_DAY_METERS: Final = (
    MeterName.MODEL_TOKENS_DAY,
    MeterName.COST_MICROUSD_DAY,
    MeterName.TOOL_CALLS_DAY,
    MeterName.HIGH_RISK_DAY,
)


class ScopeMeters(msgspec.Struct, frozen=True):
    """All meters of one scope. ``refusals`` counts every refusal at it, whichever meter said no.

    ``overrun_...`` is what providers billed beyond the bound; while it is above zero no model call begins.
    """

    level: Level
    subject_id: str
    refusals: int
    overrun_tokens: int
    overrun_microusd: int
    meters: tuple[MeterReading, ...]


async def read_meters(
    scope: TenantScope, *, level: Level | None = None, subject_id: str | None = None
) -> list[ScopeMeters]:
    """One scope's meters, or without `level` those of the tenant, its workspaces and agents; one statement.

    Empty when there is no such scope.
    """
    number = None if level is None else _LEVEL_NUMBERS[level]
    subject = scope.tenant_id if level == "tenant" else subject_id
    rows = await scope.fetch_all(_statements()["list_meters"], scope.tenant_id, number, subject)
    return [_meters_of(row) for row in rows]


def _meters_of(row: Row) -> ScopeMeters:
    return ScopeMeters(
        level=LEVELS[row["level"]],
        subject_id=row["subject_id"],
        refusals=row["refusals"],
        overrun_tokens=row["overrun_tokens"],
        overrun_microusd=row["overrun_microusd"],
        meters=tuple(_readings(row)),
    )


def _readings(row: Row) -> Iterator[MeterReading]:
    def reading(
        name: MeterName, limit: int | None, used: int, reserved: int, resets_at_s: int | None = None
    ) -> MeterReading:
        meter = Meter(LEVELS[row["level"]], row["subject_id"], name)
        return MeterReading(meter, limit, used, reserved, resets_at_s, row["refusals"])

    burst = row["requests_burst"]
    used = row["requests_used"] or 0
    yield reading(MeterName.REQUESTS, burst, used, 0, row["requests_empty_at"] if used else None)
    for gauge in (MeterName.CONCURRENT_RUNS, MeterName.MODEL_INFLIGHT):
        yield reading(gauge, row[f"{gauge}_limit"], 0, row[f"{gauge}_reserved"])
    yield reading(
        MeterName.MODEL_TOKENS_MINUTE,
        row["model_tokens_minute_limit"],
        row["minute_used"],
        row["minute_reserved"],
        row["minute_ends"],
    )
    # A run's day meters count its whole life.
    ends = None if LEVELS[row["level"]] == "run" else row["day_ends"]
    for name in _DAY_METERS:
        yield reading(name, row[f"{name}_limit"], row[f"{name}_used"], row[f"{name}_reserved"], ends)
    yield reading(
        MeterName.JOURNAL_BYTES,
        row["journal_bytes_limit"],
        row["journal_bytes_used"],
        row["journal_bytes_reserved"],
    )


@functools.cache
def _statements() -> Mapping[str, Statement]:
    return load_statements("tenantry.quota", "meters.sql")
