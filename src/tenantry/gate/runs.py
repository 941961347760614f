"""Opening and closing runs.

Opening one is an action of kind ``run``: it passes policy and meters, and holds its slot of `concurrent_runs` until the
run's own settlement gives it back.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from tenantry.core.action import Action, Outcome, OutcomeStatus, Risk, Target
from tenantry.core.envelope import canonical_bytes
from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.ids import ActionId, ActionName, RunId, WorkspaceId, new_id
from tenantry.core.labels import NO_LABELS
from tenantry.core.quota import Usage
from tenantry.core.run import RunClaims, RunState
from tenantry.core.verdict import Allowed
from tenantry.gate.calls import SettleItem
from tenantry.gate.context import ActionResult, OpenedRun, Subject, Timings, make_envelope
from tenantry.journal.entries import SALT_BYTES, JournalOutput
from tenantry.quota.limits import overlay
from tenantry.storage.statements import load_statements

if TYPE_CHECKING:
    from tenantry.core.clock import Clock
    from tenantry.core.principal import Principal
    from tenantry.gate.begin import Begin
    from tenantry.gate.context import OpenRun
    from tenantry.gate.ledger import Ledger
    from tenantry.gate.views import TenantView, Views
    from tenantry.identity.tokens import RunTokens
    from tenantry.storage.scope import Scopes, TenantScope

DEADLINE_MS_MAX: Final = 24 * 3600 * 1000
RUN_START: Final = ActionName("run.start")
RESULT_BYTES_MAX: Final = 262_144
# A run's result is journaled when it ends, so there must be room for it from the beginning.
RECORD_BYTES: Final = RESULT_BYTES_MAX + 4_096


class Runs:
    """Use cases of a run's two ends, through the gate's own begin and settle."""

    def __init__(
        self,
        scopes: Scopes,
        views: Views,
        begin: Begin,
        ledger: Ledger,
        tokens: RunTokens,
        clock: Clock,
    ) -> None:
        self._scopes = scopes
        self._views = views
        self._begin = begin
        self._ledger = ledger
        self._tokens = tokens
        self._clock = clock
        self._statements = load_statements("tenantry.gate", "runs.sql")

    async def open(self, principal: Principal, request: OpenRun) -> OpenedRun:
        """Open a run for an agent of the principal's tenant; its token is made only when the gate allows it.

        Raises `NotFoundError` (tenant, agent or workspace), `InvalidInputError`, and what `Gate.act` raises.
        """
        if not 0 < request.deadline_ms <= DEADLINE_MS_MAX:
            raise InvalidInputError("a deadline is 1 ms to 24 h", path="$.deadline_ms")
        scope = await self._scopes.for_principal(principal, request.tenant_id)
        view = await self._views.get(scope)
        run_id = RunId(new_id("wr", self._clock))
        subject = self._subject(principal, request, view, run_id)
        action = self._start_action(request)
        timings = Timings()
        begun = await self._begin(
            scope, subject, view, action, timings, run_spec=_run_spec(subject, view, request, action)
        )
        result = ActionResult(begun.verdict, None, action.action_id, timings)
        if not isinstance(begun.verdict, Allowed):
            return OpenedRun(result, None, None, None)
        if begun.verdict.recorded is not None:
            raise InvalidInputError("the run with this idempotency key has ended; take a new key", path="$")
        if begun.verdict.action_id != action.action_id:
            return await self._opened_before(scope, result, begun.verdict.action_id)
        claims = RunClaims(
            tenant_id=scope.tenant_id,
            workspace_id=subject.workspace_id,
            agent_id=subject.agent_id,
            run_id=run_id,
            attempt=1,
            principal_id=principal.principal_id,
            expires_at=subject.deadline_at,
        )
        return OpenedRun(result, run_id, self._tokens.issue(claims), claims)

    async def _opened_before(
        self, scope: TenantScope, result: ActionResult, action_id: ActionId
    ) -> OpenedRun:
        """The run that the same idempotency key opened earlier, with a token of its own."""
        async with scope:
            row = await scope.fetch_one(self._statements["find_started"], scope.tenant_id, action_id)
        if row is None:
            raise InvalidInputError("the run with this idempotency key has ended; take a new key", path="$")
        claims = RunClaims(
            tenant_id=scope.tenant_id,
            workspace_id=row["workspace_id"],
            agent_id=row["agent_id"],
            run_id=row["run_id"],
            attempt=row["attempt"],
            principal_id=row["principal_id"],
            expires_at=row["deadline_at"],
        )
        return OpenedRun(result, claims.run_id, self._tokens.issue(claims), claims)

    async def close(
        self, scope: TenantScope, run_id: RunId, state: RunState, result: bytes | None
    ) -> ActionResult:
        """End a run: its slot is free and its token counts for nothing. Ending it twice changes nothing.

        Raises `NotFoundError` for a run that is not the scope's.
        """
        if result is not None and len(result) > RESULT_BYTES_MAX:
            raise InvalidInputError(
                "a run's result has at most 256 KiB; larger output belongs into files", path="$.result"
            )
        async with scope:
            row = await scope.fetch_one(self._statements["find_run"], scope.tenant_id, run_id)
        if row is None:
            raise NotFoundError("there is no such run")
        output = JournalOutput(
            status=OutcomeStatus.OK,
            content_type="application/json",
            http_status=None,
            detail=state.value,
            labels=(),
            output=result,
        ).encode(scope, row["action_id"], salt=self._clock.random_bytes(SALT_BYTES))
        timings = Timings()
        started = self._clock.monotonic()
        await self._ledger.settle(
            scope,
            SettleItem(
                tenant_id=scope.tenant_id,
                action_id=row["action_id"],
                workspace=row["workspace_id"],
                agent=row["agent_id"],
                scope_run=None,
                status="ok" if state is RunState.SUCCEEDED else "failed",
                tokens=0,
                microusd=0,
                journal_bytes=len(output) + row["content_bytes"],
                labels="",
                output=output,
                output_sha256=hashlib.sha256(output).digest(),
                run_state=state.value,
            ),
        )
        timings.gate = (self._clock.monotonic() - started) * 1000
        action_id = ActionId(row["action_id"])
        outcome = Outcome(OutcomeStatus.OK, result, Usage(), NO_LABELS, detail=state.value)
        return ActionResult(Allowed(action_id, None), outcome, action_id, timings)

    def _subject(self, principal: Principal, request: OpenRun, view: TenantView, run_id: RunId) -> Subject:
        agent = view.facts.agents.get(request.agent_id)
        if agent is None or request.workspace_id not in {None, agent.workspace}:
            raise NotFoundError("there is no such agent")
        if principal.workspace_id not in {None, agent.workspace}:
            raise NotFoundError("there is no such agent")
        workspace = view.facts.workspaces.get(agent.workspace)
        if workspace is None:
            raise NotFoundError("there is no such workspace")
        return Subject(
            tenant_id=view.facts.tenant_id,
            workspace_id=WorkspaceId(agent.workspace),
            workspace=workspace,
            agent_id=request.agent_id,
            agent=agent,
            run_id=run_id,
            run_scope=None,
            attempt=1,
            principal_id=principal.principal_id,
            deadline_at=self._clock.now() + dt.timedelta(milliseconds=request.deadline_ms),
        )

    def _start_action(self, request: OpenRun) -> Action:
        return Action(
            action_id=ActionId(new_id("act", self._clock)),
            name=RUN_START,
            kind="run",
            risk=Risk.READ,
            target=Target("tenantry", request.agent_id),
            input=request.input,
            input_sha256=_digest(request),
            idempotency_key=request.idempotency_key,
            estimate=Usage(concurrent_runs=1, journal_bytes=RECORD_BYTES),
            timeout_ms=request.deadline_ms,
        )


def _digest(request: OpenRun) -> bytes:
    """What one idempotency key stands for: the same agent, opened the same way with the same input."""
    return hashlib.sha256(msgspec.json.encode((request.agent_id, request.mode, request.input))).digest()


def _run_spec(subject: Subject, view: TenantView, request: OpenRun, action: Action) -> str:
    """What `open_run_v1` needs to make the run's row and its scope."""
    limits = overlay(view.facts.quota_class.run)
    envelope = canonical_bytes(make_envelope(subject, view, action))
    return msgspec.json.encode(
        {
            "mode": request.mode,
            "deadline_at": subject.deadline_at.isoformat(),
            "envelope": base64.b64encode(envelope).decode(),
            "limits": limits,
        }
    ).decode()
