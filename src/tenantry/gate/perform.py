"""Step 5, perform: the adapter, in a task of its own that a switch can cancel.

Three ends besides the adapter's own: certainly nothing was sent (the reservation is given back); a switch cut it (the
bound is posted, for nobody knows what the upstream did); a fault of ours (likewise).
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Final

from tenantry.core.action import Outcome, OutcomeStatus
from tenantry.core.errors import EgressDeniedError, LeaseLapsedError, UpstreamError
from tenantry.core.ids import PolicyId, SwitchId
from tenantry.core.quota import Usage
from tenantry.core.verdict import Denied, ProviderDegraded, Suspended, UnknownOutcome, Verdict
from tenantry.gate.ports import AdapterCall, ProviderDegradedError
from tenantry.switches.board import LEVEL_WORDS, LiveKeys, Stop
from tenantry.switches.guard import StoppedError

if TYPE_CHECKING:
    from tenantry.broker.secrets import Credential
    from tenantry.core.action import Action
    from tenantry.core.clock import Clock
    from tenantry.core.envelope import Envelope
    from tenantry.gate.ports import Adapter, Emit
    from tenantry.registry.facts import TenantFacts
    from tenantry.switches.instance import Instance

RETRY_UNREACHABLE_MS: Final = 1_000
NOTHING_USED: Final = Usage()


@dataclasses.dataclass(frozen=True, slots=True)
class Performed:
    """``refusal`` stands in for `Allowed` when the action was stopped on its way out; ``fault`` is our own."""

    outcome: Outcome
    refusal: Verdict | None = None
    fault: LeaseLapsedError | None = None


class Perform:
    """Runs the adapter as a live action of this process: a switch ends it, and is acknowledged when it is closed."""

    def __init__(self, adapter: Adapter, instance: Instance, clock: Clock) -> None:
        self._adapter = adapter
        self._instance = instance
        self._clock = clock

    async def __call__(
        self,
        envelope: Envelope,
        facts: TenantFacts,
        action: Action,
        credential: Credential | None,
        emit: Emit,
        pool_key: str,
    ) -> Performed:
        """What came of it. Never raises for what an upstream or a switch does."""
        keys = LiveKeys(
            envelope.tenant_id, envelope.workspace_id, envelope.agent_id, envelope.workflow_run_id
        )
        deadline = self._clock.monotonic() + action.timeout_ms / 1000

        async def go_out() -> Outcome:
            async with self._instance.live(keys) as guard:
                return await self._adapter.perform(
                    AdapterCall(envelope, action, facts, credential, guard, deadline, pool_key), emit
                )

        task = asyncio.create_task(go_out(), name=f"perform-{action.action_id}")
        told = False
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                # The door's own task is going away (a stopping server): close the upstream before anything else, and
                # tell it once, so that the closing itself is not cut.
                if not told:
                    told = True
                    task.cancel()
        if task.cancelled():
            return Performed(_cut(action, "the gateway stopped"))
        error = task.exception()
        if error is None:
            return Performed(task.result())
        return self._stopped(error, keys, action)

    def _stopped(self, error: BaseException, keys: LiveKeys, action: Action) -> Performed:
        """An adapter's exception as outcome and verdict; what was certainly not sent used nothing."""
        match error:
            case StoppedError(stop=None):
                # This process may act for nobody any more, and cannot say what the upstream did.
                return Performed(_cut(action, str(error)), UnknownOutcome(action.action_id))
            case StoppedError(stop=Stop() as ended_by):
                return Performed(_cut(action, str(error)), _suspended(ended_by))
            case LeaseLapsedError():
                stop = self._instance.find_stop(keys)
                if stop is None:
                    return Performed(_void(str(error)), fault=error)
                verdict: Verdict = _suspended(stop)
            case ProviderDegradedError():
                verdict = ProviderDegraded(error.provider, error.retry_after_ms)
            case EgressDeniedError():
                verdict = Denied((PolicyId("platform/egress"),), (str(error),))
            case UpstreamError(sent=False):
                verdict = ProviderDegraded(action.target.system, RETRY_UNREACHABLE_MS)
            case _:
                unknown = Outcome(OutcomeStatus.UNKNOWN, None, action.estimate, detail=type(error).__name__)
                return Performed(unknown)
        return Performed(_void(str(error)), verdict)


def _cut(action: Action, detail: str) -> Outcome:
    """Nobody knows what the upstream did with it: the bound is posted."""
    return Outcome(OutcomeStatus.CUT, None, action.estimate, detail=detail)


def _void(detail: str) -> Outcome:
    """Certainly not one byte was sent."""
    return Outcome(OutcomeStatus.VOID, None, NOTHING_USED, detail=detail)


def _suspended(stop: Stop) -> Suspended:
    """A switch as this process knows it."""
    return Suspended(SwitchId(stop.switch_id), stop.mode, LEVEL_WORDS[stop.level], "", None)
