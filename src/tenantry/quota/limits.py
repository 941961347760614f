"""Limits of a scope: the quota class's, overlaid by the subject's own."""

from __future__ import annotations

import msgspec

from tenantry.core.quota import Limits


def overlay(base: Limits, *narrower: Limits) -> dict[str, int]:
    """The limits that hold, by meter; a later one replaces an earlier one, and what nobody names does not bound."""
    held: dict[str, int] = {}
    for limits in (base, *narrower):
        held.update(
            {name: value for name, value in msgspec.structs.asdict(limits).items() if value is not None}
        )
    return held
