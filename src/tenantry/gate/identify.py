"""Step 1, identify: token -> run context. No envelope, no action."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from tenantry.core.errors import UnauthenticatedError
from tenantry.core.labels import NO_LABELS
from tenantry.gate.context import RunContext, Subject

if TYPE_CHECKING:
    from tenantry.core.ids import RunId, TenantId
    from tenantry.core.labels import Labels
    from tenantry.core.run import RunClaims
    from tenantry.gate.views import TenantView, Views
    from tenantry.identity.tokens import RunTokens
    from tenantry.storage.scope import Scopes

LABELLED_RUNS_MAX: Final = 50_000
SUBJECTS_MAX: Final = 10_000


class KnownLabels:
    """What each run's labels were when `begin` last said so; a run that is not here is taken to have none.

    Being wrong costs one more pass: `begin` refuses a decision that did not see a label, and tells the set.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[tuple[TenantId, RunId], tuple[Labels, int]] = OrderedDict()

    def get(self, tenant_id: TenantId, run_id: RunId) -> tuple[Labels, int]:
        """Labels and their epoch."""
        return self._runs.get((tenant_id, run_id), (NO_LABELS, 0))

    def put(self, tenant_id: TenantId, run_id: RunId, labels: Labels, epoch: int) -> None:
        """Remember what `begin` said."""
        self._runs[(tenant_id, run_id)] = (labels, epoch)
        self._runs.move_to_end((tenant_id, run_id))
        if len(self._runs) > LABELLED_RUNS_MAX:
            self._runs.popitem(last=False)


class Identify:
    """Proves a run token and finds the tenant's view; no round trip once both are in memory."""

    def __init__(self, tokens: RunTokens, scopes: Scopes, views: Views) -> None:
        self._tokens = tokens
        self._scopes = scopes
        self._views = views
        self._subjects: OrderedDict[RunClaims, tuple[TenantView, Subject]] = OrderedDict()

    async def __call__(self, token: str) -> RunContext:
        """Raises `UnauthenticatedError`; `StorageUnavailableError` when the view has to be loaded and cannot.

        A subject is kept as long as its view is the current one. The scope is each request's own: it carries one
        transaction at a time.
        """
        claims = self._tokens.find_cached(token) or self._tokens.verify(token)
        scope = await self._scopes.for_run(claims)
        view = await self._views.get(scope)
        known_view, subject = self._subjects.get(claims, (None, None))
        if subject is None or known_view is not view:
            subject = _make_subject(claims, view)
            self._subjects[claims] = (view, subject)
            self._subjects.move_to_end(claims)
            if len(self._subjects) > SUBJECTS_MAX:
                self._subjects.popitem(last=False)
        return RunContext(scope, claims, subject, view)


def _make_subject(claims: RunClaims, view: TenantView) -> Subject:
    """Who acts, under one view. Raises `UnauthenticatedError` when its agent is no more."""
    agent = view.facts.agents.get(claims.agent_id)
    workspace = view.facts.workspaces.get(claims.workspace_id)
    if agent is None or workspace is None:
        msg = "the run's agent or workspace does not exist any more"
        raise UnauthenticatedError(msg)
    return Subject(
        tenant_id=claims.tenant_id,
        workspace_id=claims.workspace_id,
        workspace=workspace,
        agent_id=claims.agent_id,
        agent=agent,
        run_id=claims.run_id,
        run_scope=claims.run_id,
        attempt=claims.attempt,
        principal_id=claims.principal_id,
        deadline_at=claims.expires_at,
    )
