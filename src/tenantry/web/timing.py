"""``Server-Timing`` of every door's answer (W3C Server Timing): where an action's time went."""

from __future__ import annotations

from typing import Final, Protocol

HEADER: Final = b"server-timing"


class Timings(Protocol):
    """Milliseconds of each part; the gate fills them."""

    @property
    def queue(self) -> float: ...
    @property
    def policy(self) -> float: ...
    @property
    def gate(self) -> float: ...
    @property
    def approval(self) -> float: ...
    @property
    def upstream(self) -> float: ...


NOTHING_SPENT: Final = (HEADER, b"queue;dur=0, policy;dur=0, gate;dur=0, approval;dur=0, upstream;dur=0")


def server_timing(timings: Timings | None) -> tuple[bytes, bytes]:
    """The header; without timings (no action came about) every part is 0."""
    if timings is None:
        return NOTHING_SPENT
    value = (
        f"queue;dur={timings.queue:.3f}, policy;dur={timings.policy:.3f}, gate;dur={timings.gate:.3f}, "
        f"approval;dur={timings.approval:.3f}, upstream;dur={timings.upstream:.3f}"
    )
    return HEADER, value.encode()
