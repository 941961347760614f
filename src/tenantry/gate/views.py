"""Facts and policies of each tenant, in memory, for exactly as long as `begin` accepts their versions."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from tenantry.policy.engine import PolicyEngine
from tenantry.policy.schema import DeclaredAction
from tenantry.registry.store import load_facts

if TYPE_CHECKING:
    from tenantry.core.ids import TenantId
    from tenantry.registry.facts import TenantFacts
    from tenantry.storage.scope import TenantScope

VIEWS_MAX: Final = 2_000


@dataclasses.dataclass(frozen=True, slots=True)
class TenantView:
    """One tenant under one pair of versions; immutable. ``bindings``: what an approval binds of each action."""

    facts: TenantFacts
    engine: PolicyEngine
    bindings: Mapping[str, bytes]

    def binding(self, action_name: str) -> bytes:
        """SHA-256 of the versions and the action's declaration, for an approval's digest."""
        return self.bindings.get(action_name) or _binding(self.facts, action_name)


class Views:
    """The views of a process, loaded when first asked for and again when `begin` calls one stale.

    At most `VIEWS_MAX`, the least recently used go. Many callers of one tenant share one load.
    """

    def __init__(self, *, size: int = VIEWS_MAX) -> None:
        self._size = size
        self._views: OrderedDict[TenantId, TenantView] = OrderedDict()
        self._loading: dict[TenantId, asyncio.Task[TenantView]] = {}

    async def get(self, scope: TenantScope) -> TenantView:
        """The view at hand, or a fresh one: one transaction. Errors: `StorageUnavailableError`."""
        view = self._views.get(scope.tenant_id)
        if view is not None:
            self._views.move_to_end(scope.tenant_id)
            return view
        return await self.reload(scope, stale=None)

    async def reload(self, scope: TenantScope, *, stale: TenantView | None) -> TenantView:
        """A view newer than `stale`, unless somebody has loaded one already."""
        known = self._views.get(scope.tenant_id)
        if known is not None and known is not stale:
            return known
        task = self._loading.get(scope.tenant_id)
        if task is None:
            task = asyncio.create_task(self._load(scope))
            task.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # every waiter may have gone
            self._loading[scope.tenant_id] = task
        # A caller that goes away must not take the load from the others.
        return await asyncio.shield(task)

    async def _load(self, scope: TenantScope) -> TenantView:
        try:
            facts = await load_facts(scope)
            engine = await asyncio.to_thread(build_engine, facts)
            view = make_view(facts, engine)
            self._views[scope.tenant_id] = view
            self._views.move_to_end(scope.tenant_id)
            while len(self._views) > self._size:
                self._views.popitem(last=False)
            return view
        finally:
            self._loading.pop(scope.tenant_id, None)


def make_view(facts: TenantFacts, engine: PolicyEngine) -> TenantView:
    """The view of facts and the engine compiled for them."""
    return TenantView(facts, engine, {name: _binding(facts, name) for name in facts.actions})


def _binding(facts: TenantFacts, action_name: str) -> bytes:
    bound = (action_name, facts.policy_version, facts.fleet_version, facts.actions.get(action_name))
    return hashlib.sha256(msgspec.json.encode(bound, order="deterministic")).digest()


def build_engine(facts: TenantFacts) -> PolicyEngine:
    """Compile a tenant's policies; about 0.6 ms a policy. Raises `PolicyInvalidError`."""
    declared = {
        name: DeclaredAction(kind="tool", risk=spec.risk, web=spec.url_from_input is not None)
        for name, (_, spec) in facts.actions.items()
    }
    return PolicyEngine(facts.policies, facts.policy_version, declared)
