"""Meters: what is counted, at which level, over which window (DESIGN §3, §7)."""

from __future__ import annotations

import enum
from typing import Final, Literal

import msgspec

Level = Literal["tenant", "workspace", "agent", "run"]
LEVELS: Final[tuple[Level, ...]] = ("tenant", "workspace", "agent", "run")


class MeterName(enum.StrEnum):
    """The meters. Where several refuse, `begin` names the first in the order of `decide.sql`.

    ``requests`` is a rate (GCRA); ``concurrent_runs`` and ``model_inflight`` are gauges; the ``_minute`` and
    ``_day`` meters count within a UTC minute or day, but at level ``run`` a ``_day`` meter counts the run's
    whole life; ``journal_bytes`` is a stock. ``overrun`` is what a provider billed beyond the bound.
    """

    REQUESTS = "requests"
    CONCURRENT_RUNS = "concurrent_runs"
    MODEL_INFLIGHT = "model_inflight"
    MODEL_TOKENS_MINUTE = "model_tokens_minute"
    MODEL_TOKENS_DAY = "model_tokens_day"
    COST_MICROUSD_DAY = "cost_microusd_day"
    TOOL_CALLS_DAY = "tool_calls_day"
    HIGH_RISK_DAY = "high_risk_day"
    JOURNAL_BYTES = "journal_bytes"
    OVERRUN = "overrun"


class Meter(msgspec.Struct, frozen=True):
    """One meter of one subject: ``level`` and ``subject_id`` say whose."""

    level: Level
    subject_id: str
    name: MeterName


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The limits of one scope; a missing one does not bound. Counts are whole numbers >= 0."""

    requests_per_minute: int | None = None
    requests_burst: int | None = None
    concurrent_runs: int | None = None
    model_inflight: int | None = None
    model_tokens_minute: int | None = None
    model_tokens_day: int | None = None
    cost_microusd_day: int | None = None
    tool_calls_day: int | None = None
    high_risk_day: int | None = None
    journal_bytes: int | None = None


class QuotaClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits for each level of a tenant of this class."""

    tenant: Limits = Limits()
    workspace: Limits = Limits()
    agent: Limits = Limits()
    run: Limits = Limits()


class Usage(msgspec.Struct, frozen=True):
    """What one action reserves (an upper bound) or used (as measured). All are >= 0."""

    concurrent_runs: int = 0
    model_inflight: int = 0
    model_tokens: int = 0
    cost_microusd: int = 0
    tool_calls: int = 0
    high_risk: int = 0
    journal_bytes: int = 0


class MeterReading(msgspec.Struct, frozen=True):
    """What a tenant sees of a meter. ``resets_at_s`` is Unix seconds, None where nothing resets."""

    meter: Meter
    limit: int | None
    used: int
    reserved: int
    resets_at_s: int | None
    refusals: int
