"""What the gate needs from the outside: adapters perform, doors listen, instances guard.

Implementations live in `adapters`, `gateway` and `control`; the gate imports none of them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from tenantry.core.errors import UpstreamError

if TYPE_CHECKING:
    from tenantry.broker.secrets import Credential
    from tenantry.core.action import Action, Outcome
    from tenantry.core.envelope import Envelope
    from tenantry.core.event import Event
    from tenantry.gate.context import Timings
    from tenantry.registry.facts import TenantFacts


class ProviderDegradedError(UpstreamError):
    """The breaker of a provider or integration is open: nothing was sent."""

    def __init__(self, provider: str, retry_after_ms: int) -> None:
        super().__init__(f"{provider} is degraded; try again in {retry_after_ms} ms", sent=False)
        self.provider = provider
        self.retry_after_ms = retry_after_ms


class Emit(Protocol):
    """Where an upstream's answer goes while it arrives: the door's sink.

    Awaits the client's flow control. Once the client is gone it returns at once, and `perform` goes on reading,
    so that the ledger equals the provider's bill.
    """

    async def __call__(self, event: Event, /) -> None: ...


class Sink(Emit, Protocol):
    """A door's whole side of one action: what arrives, and before that how long policy and gate took."""

    def begun(self, timings: Timings, /) -> None:
        """The action was begun; what follows comes from the way out."""


class Guard(Protocol):
    """Says whether this process may still act for the scope of one action."""

    def check(self) -> None:
        """Raise `LeaseLapsedError` when a switch covers the scope or this process's own lease lapsed.

        Stands between 'connection acquired' and the first byte written, with no await between.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterCall:
    """One begun action on its way out. ``deadline`` is monotonic seconds; ``pool_key`` begins with the tenant."""

    envelope: Envelope
    action: Action
    facts: TenantFacts
    credential: Credential | None
    guard: Guard
    deadline: float
    pool_key: str


class Adapter(Protocol):
    """A way out, which `perform` calls."""

    async def perform(self, call: AdapterCall, emit: Emit, /) -> Outcome:
        """Do it, emit what arrives, and say what came of it.

        Raises `UpstreamError` with ``sent=False`` (`EgressDeniedError`, `ProviderDegradedError`) or
        `LeaseLapsedError` only when certainly not one byte was sent; the gate then voids the reservation. Once a
        byte was sent it returns an `Outcome`: the upstream's report, or the bound with status ``cut`` or
        ``unknown``. On cancellation (a kill) it closes the connection, and raises CancelledError.
        """
