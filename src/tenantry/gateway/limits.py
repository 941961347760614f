"""Bounds of the doors of one gateway process."""

from __future__ import annotations

from typing import Final

import msgspec

from tenantry.core.action import ACTION_INPUT_BYTES_MAX

# What the canonical request may be longer than the body it is made of: limits and options that are set
# explicitly.
CANONICAL_GROWTH_BYTES: Final = 4096


class DoorLimits(msgspec.Struct, frozen=True):
    """Bytes, milliseconds and counts; every one is for one process.

    A tenant's bodies of more than ``body_small_bytes`` draw on ``bodies_bytes_max`` of all tenants and
    ``tenant_bodies_bytes_max`` of its own, from before they are read until their request is answered; small
    ones only on the latter, so that nobody's slow uploads stand before another tenant's ordinary calls. A
    body must arrive within ``body_idle_ms`` for its first byte and any pause, and ``body_deadline_ms`` in
    all.
    """

    model_body_bytes_max: int = ACTION_INPUT_BYTES_MAX - CANONICAL_GROWTH_BYTES
    action_body_bytes_max: int = 1024 * 1024
    forward_body_bytes_max: int = 8 * 1024 * 1024
    body_small_bytes: int = 64 * 1024
    bodies_bytes_max: int = 512 * 1024 * 1024
    tenant_bodies_bytes_max: int = 64 * 1024 * 1024
    body_wait_ms: int = 5_000
    body_idle_ms: int = 5_000
    body_deadline_ms: int = 30_000
    linger_bytes_max: int = 1024 * 1024
    linger_ms: int = 500
    tenant_inflight_max: int = 512
    tenant_requests_per_second: int = 5_000
    tenant_requests_burst: int = 5_000
    model_timeout_ms: int = 600_000
    run_deadline_ms_max: int = 24 * 3600 * 1000
    run_deadline_ms: int = 3600 * 1000
    client_stall_ms: int = 30_000
    whole_answer_bytes_max: int = 8 * 1024 * 1024
    choices_max: int = 8
    forwards_max: int = 128
    forward_connect_ms: int = 2_000
    forward_silence_ms: int = 120_000
