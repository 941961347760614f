"""A gate that decides nothing: it answers what a test tells it to, by the real API, to try doors alone."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from typing import cast

from tenantry.core.action import Action, Outcome, OutcomeStatus
from tenantry.core.clock import SystemClock
from tenantry.core.errors import UnauthenticatedError
from tenantry.core.event import Chunk, Head
from tenantry.core.ids import (
    ActionId,
    AgentId,
    KeyId,
    PrincipalId,
    RunId,
    TenantId,
    WorkspaceId,
    new_id,
)
from tenantry.core.principal import Principal, Role
from tenantry.core.quota import QuotaClass, Usage
from tenantry.core.run import RunClaims, RunState
from tenantry.core.verdict import Allowed
from tenantry.gate.context import ActionResult, OpenedRun, OpenRun, RunContext, Timings
from tenantry.gate.ports import Emit, Sink
from tenantry.registry.facts import TenantFacts
from tenantry.registry.specs import HttpActionSpec, IntegrationSpec, ModelSpec, ProviderSpec
from tenantry.storage.scope import TenantScope

Performer = Callable[[RunContext, Action, Emit], Awaitable[ActionResult]]
TIMINGS = Timings(queue=0.0, policy=0.25, gate=1.5, approval=0.0, upstream=3.0)
OPERATOR_KEY = f"tnk_000000000001_{'k' * 43}"
ADMIN_KEY = f"tnk_000000000002_{'k' * 43}"
NARROW_KEY = f"tnk_000000000003_{'k' * 43}"


def make_facts(tenant_id: str = "acme", *, allow_unpriced: bool = False) -> TenantFacts:
    """Two models (one without a price) and an integration with a write, a read with a schema, and a fetch."""
    actions = {
        "ticket.update": HttpActionSpec(risk="write", path="/tickets/{record_id}"),
        "ticket.search": HttpActionSpec(
            risk="read",
            method="GET",
            path="/tickets",
            input_schema={
                "type": "object",
                "properties": {
                    "q": {"type": "string"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["q"],
                "additionalProperties": False,
            },
        ),
    }
    zendesk = IntegrationSpec(base_url="https://tickets.example.com", actions=actions)
    fetch = HttpActionSpec(risk="read", method="GET", url_from_input="url")
    web = IntegrationSpec(base_url="https://web.example.com", actions={"web.fetch": fetch})
    return TenantFacts(
        tenant_id=TenantId(tenant_id),
        policy_version=1,
        fleet_version=1,
        quota_class_name="standard",
        quota_class=QuotaClass(),
        allow_unpriced=allow_unpriced,
        workspaces={},
        agents={},
        integrations={"zendesk": zendesk, "web": web},
        actions={
            **{name: ("zendesk", spec) for name, spec in actions.items()},
            "web.fetch": ("web", fetch),
        },
        providers={"example": ProviderSpec(base_url="https://models.example.com/v1")},
        models={
            "small": ModelSpec(
                provider="example",
                context_window=8_000,
                max_output_tokens=512,
                upstream_name="example-small-2",
                input_microusd_per_mtok=1_000_000,
                output_microusd_per_mtok=2_000_000,
            ),
            "unpriced": ModelSpec(provider="example", context_window=8_000, max_output_tokens=512),
        },
        policies={},
    )


def make_claims(tenant_id: str, run_id: str) -> RunClaims:
    """Claims that hold for an hour."""
    return RunClaims(
        tenant_id=TenantId(tenant_id),
        workspace_id=WorkspaceId("main"),
        agent_id=AgentId("helper"),
        run_id=RunId(run_id),
        attempt=1,
        principal_id=PrincipalId("prn_1"),
        expires_at=SystemClock().now() + dt.timedelta(hours=1),
    )


class FakeRunContext:
    """The parts of a `RunContext` that doors read."""

    def __init__(self, claims: RunClaims, facts: TenantFacts) -> None:
        self.claims = claims
        self.facts = facts
        self.scope = f"scope of {claims.tenant_id}"


async def answer_json(context: RunContext, action: Action, emit: Emit) -> ActionResult:
    """A whole completion with nothing in it but the request's own length."""
    del context
    body = b'{"id":"x","object":"chat.completion","choices":[],"usage":{"prompt_tokens":1}}'
    await emit(Head(200, "application/json", stream=False))
    await emit(Chunk(body))
    return settled(action, Outcome(OutcomeStatus.OK, body, Usage(), http_status=200))


def settled(action: Action, outcome: Outcome | None) -> ActionResult:
    """An allowed action's result."""
    verdict = Allowed(action.action_id, position=1)
    return ActionResult(verdict, outcome, action.action_id, TIMINGS)


class FakeGate:
    """Also stands for keys, tokens and scopes. ``perform`` is what `act` does; tokens are ``run_TENANT_RUN``."""

    def __init__(self) -> None:
        self.perform: Performer = answer_json
        self.facts: dict[str, TenantFacts] = {"acme": make_facts(), "other": make_facts("other")}
        self.actions: list[Action] = []
        self.shed: list[TenantId] = []
        self.opened: list[OpenRun] = []
        self.closed: list[tuple[object, RunId, RunState, bytes | None]] = []
        self.open_result: OpenedRun | None = None
        self.identified = 0
        self.running = 0
        self.settled = asyncio.Event()

    async def identify(self, token: str, /) -> RunContext:
        self.identified += 1
        claims = self._claims(token)
        if claims is None:
            raise UnauthenticatedError("no")
        return cast("RunContext", FakeRunContext(claims, self.facts[claims.tenant_id]))

    async def act(self, context: RunContext, action: Action, sink: Sink, /) -> ActionResult:
        self.actions.append(action)
        self.running += 1
        try:
            return await self.perform(context, action, sink)
        finally:
            self.running -= 1
            self.settled.set()

    async def open_run(self, principal: Principal, request: OpenRun, /) -> OpenedRun:
        del principal
        self.opened.append(request)
        if self.open_result is not None:
            return self.open_result
        claims = make_claims(request.tenant_id, "run_1")
        action_id = self.new_action_id()
        result = ActionResult(Allowed(action_id, position=1), None, action_id, TIMINGS)
        return OpenedRun(result, claims.run_id, f"run_{request.tenant_id}_1", claims)

    async def close_run(
        self, scope: TenantScope, run_id: RunId, state: RunState, result: bytes | None, /
    ) -> ActionResult | None:
        self.closed.append((scope, run_id, state, result))
        return None

    def note_shed(self, tenant_id: TenantId, /) -> None:
        self.shed.append(tenant_id)

    def new_action_id(self) -> ActionId:
        return ActionId(new_id("act", SystemClock()))

    def find_cached(self, token: str, /) -> None:
        del token

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        return {"keys": [{"kty": "OKP"}]}

    async def authenticate(self, token: str, /) -> Principal:
        key = KeyId("key_1")
        if token == OPERATOR_KEY:
            return Principal(PrincipalId("opr_1"), key, Role.OPERATOR, None, None)
        if token == ADMIN_KEY:
            return Principal(PrincipalId("prn_1"), key, Role.TENANT_ADMIN, TenantId("acme"), None)
        if token == NARROW_KEY:
            place = WorkspaceId("main")
            return Principal(PrincipalId("prn_2"), key, Role.DEVELOPER, TenantId("acme"), place)
        raise UnauthenticatedError("no")

    async def for_principal(self, principal: Principal, tenant_id: TenantId | None = None) -> TenantScope:
        return cast("TenantScope", f"scope of {tenant_id or principal.tenant_id}")

    def _claims(self, token: str) -> RunClaims | None:
        parts = token.split("_")
        if len(parts) != 3 or parts[0] != "run" or parts[1] not in self.facts:
            return None
        return make_claims(parts[1], f"run_{parts[2]}")
