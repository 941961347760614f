"""The gate. Every action of every run passes these six steps, in this order, and there is no other way out.

    identify    token -> run context                               identify.py
    authorize   policy: pure, in process                           authorize.py
    begin       one round trip: decide, reserve, journal           begin.py, begin.sql
    credential  the tenant's own, from the broker                  credential.py
    perform     the adapter, under this process's switches         perform.py
    settle      one round trip: what was used, what came of it     settle.py, settle.sql

`authorize` and `begin` are one call here, because a decision on old policy or labels is made again (begin.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenantry.broker.secrets import CredentialRefused
from tenantry.core.action import Outcome, OutcomeStatus
from tenantry.core.ids import ActionId, PolicyId, new_id
from tenantry.core.verdict import Allowed, Denied, UnknownOutcome, Verdict
from tenantry.gate.context import ActionResult, Timings, make_envelope
from tenantry.gate.perform import NOTHING_USED, Performed
from tenantry.gate.settle import make_settlement

if TYPE_CHECKING:
    from tenantry.core.action import Action
    from tenantry.core.clock import Clock
    from tenantry.gate.begin import Begin, Begun
    from tenantry.gate.context import RunContext
    from tenantry.gate.credential import FetchCredential
    from tenantry.gate.identify import Identify
    from tenantry.gate.ledger import Ledger
    from tenantry.gate.perform import Perform
    from tenantry.gate.ports import Sink
    from tenantry.gate.runs import Runs
    from tenantry.gate.shed import ShedJournal


class Gate:
    """Six steps. One a gateway process and shard."""

    def __init__(
        self,
        identify: Identify,
        begin: Begin,
        credential: FetchCredential,
        perform: Perform,
        ledger: Ledger,
        runs: Runs,
        shed: ShedJournal,
        clock: Clock,
    ) -> None:
        self.identify = identify
        self.open_run = runs.open
        self.close_run = runs.close
        self.note_shed = shed.note
        self._begin = begin
        self._credential = credential
        self._perform = perform
        self._ledger = ledger
        self._clock = clock

    def new_action_id(self) -> ActionId:
        """A fresh id for one action."""
        return ActionId(new_id("act", self._clock))

    async def act(self, context: RunContext, action: Action, sink: Sink) -> ActionResult:
        """Pass one action through the gate; when this returns it is settled, or was never begun.

        Cost: two database round trips, shared with whatever else is queued. Raises `KeyReuseError`,
        `UnauthenticatedError` (the lease is lost), `StorageUnavailableError` (nothing was performed), and
        `LeaseLapsedError` (this process may not act just now; nothing was sent).
        """
        timings = Timings()
        begun = await self._begin(context.scope, context.subject, context.view, action, timings)
        if not isinstance(begun.verdict, Allowed) or begun.verdict.recorded is not None:
            recorded = begun.verdict.recorded if isinstance(begun.verdict, Allowed) else None
            return ActionResult(begun.verdict, recorded, action.action_id, timings)
        started = self._clock.monotonic()
        performed = await self._go_out(context, begun, action, sink, timings)
        ended = self._clock.monotonic()
        settlement = make_settlement(context.scope, begun.item, performed.outcome, self._clock, action=action)
        if performed.fault is not None:
            # Nothing was sent, and the database may be what is missing: give it back when it can be given back.
            self._ledger.settle_later(context.scope, settlement)
            raise performed.fault
        await self._ledger.settle(context.scope, settlement)
        timings.upstream = (ended - started) * 1000
        timings.gate += (self._clock.monotonic() - ended) * 1000
        return ActionResult(_final_verdict(begun, performed), performed.outcome, action.action_id, timings)

    async def _go_out(
        self, context: RunContext, begun: Begun, action: Action, sink: Sink, timings: Timings
    ) -> Performed:
        """Credential and perform, under the facts that `begin` accepted."""
        facts = begun.view.facts
        try:
            sink.begun(timings)
            credential = await self._credential(context.scope, context.subject, facts, action)
        except BaseException:
            # Nothing was sent: give the reservation back, whatever happened to the one who asked.
            void = Performed(Outcome(OutcomeStatus.VOID, None, NOTHING_USED))
            self._ledger.settle_later(
                context.scope,
                make_settlement(context.scope, begun.item, void.outcome, self._clock, action=action),
            )
            raise
        if isinstance(credential, CredentialRefused):
            detail = f"the secret {credential.secret_name} may not be used here: {credential.reason.value}"
            refusal = Denied((PolicyId(f"broker/{credential.reason.value}"),), (detail,))
            return Performed(Outcome(OutcomeStatus.VOID, None, NOTHING_USED, detail=detail), refusal)
        return await self._perform(
            make_envelope(context.subject, begun.view, action),
            facts,
            action,
            credential,
            sink,
            context.scope.key(action.kind, action.target.system),
        )


def _final_verdict(begun: Begun, performed: Performed) -> Verdict:
    if performed.refusal is not None:
        return performed.refusal
    if performed.outcome.status is OutcomeStatus.UNKNOWN:
        return UnknownOutcome(ActionId(begun.item.action_id))
    return begun.verdict
