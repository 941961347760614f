"""Calls of adapters as the gate would make them."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable
from typing import Any

from tenantry.adapters.http_request import Plan, credential_headers
from tenantry.broker.secrets import Credential, SecretValue
from tenantry.core.action import Action, ActionKind, Outcome, Risk, Target
from tenantry.core.clock import SystemClock
from tenantry.core.envelope import Envelope
from tenantry.core.errors import LeaseLapsedError
from tenantry.core.event import Chunk, Event, Head
from tenantry.core.ids import ActionId, ActionName, AgentId, PrincipalId, RunId, TenantId, WorkspaceId
from tenantry.core.quota import QuotaClass, Usage
from tenantry.gate.ports import AdapterCall, Guard
from tenantry.registry.facts import TenantFacts
from tenantry.registry.specs import AuthSpec, HttpActionSpec, IntegrationSpec, ModelSpec, ProviderSpec

CLOCK = SystemClock()
SECRET = "s3cr3t/key+value=="
BOUND = Usage(model_inflight=1, model_tokens=5_000, cost_microusd=9_000)
TOOL_BOUND = Usage(tool_calls=1)
MODEL = ModelSpec(
    provider="acme",
    context_window=8_000,
    max_output_tokens=1_000,
    input_microusd_per_mtok=1_000_000,
    cached_input_microusd_per_mtok=500_000,
    output_microusd_per_mtok=3_000_000,
)


class Open:
    """A guard that lets all pass, and counts."""

    def __init__(self) -> None:
        self.checks = 0

    def check(self) -> None:
        self.checks += 1


class Shut:
    """A guard that lets nothing pass, after so many."""

    def __init__(self, after: int = 0) -> None:
        self.left = after

    def check(self) -> None:
        if self.left == 0:
            raise LeaseLapsedError("the lease lapsed")
        self.left -= 1


class Sink:
    """What a door would have got. `hook` runs at each event."""

    def __init__(self, hook: Callable[[Event], Any] | None = None) -> None:
        self.events: list[Event] = []
        self._hook = hook

    async def __call__(self, event: Event, /) -> None:
        self.events.append(event)
        if self._hook is not None:
            awaitable = self._hook(event)
            if awaitable is not None:
                await awaitable

    @property
    def head(self) -> Head:
        head = self.events[0]
        assert isinstance(head, Head)
        return head

    @property
    def chunks(self) -> list[bytes]:
        return [event.data for event in self.events if isinstance(event, Chunk)]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)


def facts(
    *,
    integration: IntegrationSpec | None = None,
    providers: dict[str, ProviderSpec] | None = None,
    models: dict[str, ModelSpec] | None = None,
) -> TenantFacts:
    return TenantFacts(
        tenant_id=TenantId("borealis"),
        policy_version=1,
        fleet_version=1,
        quota_class_name="small",
        quota_class=QuotaClass(),
        allow_unpriced=False,
        workspaces={},
        agents={},
        integrations={} if integration is None else {"zendesk": integration},
        actions={} if integration is None else {n: ("zendesk", a) for n, a in integration.actions.items()},
        providers=providers or {},
        models=models or {},
        policies={},
    )


def envelope(name: str) -> Envelope:
    return Envelope(
        txn_id="t",
        tenant_id=TenantId("borealis"),
        workspace_id=WorkspaceId("support"),
        principal_id=PrincipalId("p"),
        agent_id=AgentId("triage"),
        agent_class="triage",
        workflow_run_id=RunId("r"),
        policy_profile="default",
        quota_class="small",
        trust_zone="standard",
        requested_action=ActionName(name),
        target=Target("zendesk", "zd_99102"),
        attempt=1,
        deadline_at=dt.datetime(2030, 1, 1, tzinfo=dt.UTC),
    )


def action(
    kind: ActionKind,
    name: str,
    body: bytes,
    *,
    risk: Risk = Risk.READ,
    record_id: str = "zd_99102",
    key: str | None = None,
    estimate: Usage = TOOL_BOUND,
    destination: str | None = None,
    model: str | None = None,
) -> Action:
    return Action(
        action_id=ActionId("act_1"),
        name=ActionName(name),
        kind=kind,
        risk=risk,
        target=Target("zendesk", record_id),
        input=body,
        input_sha256=hashlib.sha256(body).digest(),
        idempotency_key=key,
        estimate=estimate,
        timeout_ms=10_000,
        destination=destination,
        model=model,
    )


def credential(value: str = SECRET) -> Credential:
    return Credential(version=1, value=SecretValue(value))


def model_call(
    url: str,
    body: bytes = b'{"model":"m"}',
    *,
    guard: Guard | None = None,
    seconds: float = 5.0,
    secret: str | None = SECRET,
    pool_key: str = "borealis/acme",
    **provider: Any,  # noqa: ANN401 fields of the declaration
) -> AdapterCall:
    spec = ProviderSpec(base_url=url + "/v1", **{"allow_private": True, **provider})
    return AdapterCall(
        envelope=envelope("model.call"),
        action=action("model", "model.call", body, estimate=BOUND, model="small"),
        facts=facts(providers={"acme": spec}, models={"small": MODEL}),
        credential=None if secret is None else credential(secret),
        guard=guard or Open(),
        deadline=CLOCK.monotonic() + seconds,
        pool_key=pool_key,
    )


def tool_call(
    url: str,
    spec: HttpActionSpec,
    body: bytes = b"{}",
    *,
    guard: Guard | None = None,
    seconds: float = 5.0,
    secret: str | None = SECRET,
    auth: AuthSpec | None = AuthSpec(secret="zendesk_key"),  # noqa: B008 frozen
    record_id: str = "zd_99102",
    key: str | None = None,
    destination: str | None = None,
    **integration: Any,  # noqa: ANN401 fields of the declaration
) -> AdapterCall:
    declared = IntegrationSpec(
        base_url=url, actions={"ticket": spec}, auth=auth, **{"allow_private": True, **integration}
    )
    return AdapterCall(
        envelope=envelope("ticket"),
        action=action(
            "tool",
            "ticket",
            body,
            risk=Risk.parse(spec.risk),
            record_id=record_id,
            key=key,
            destination=destination,
        ),
        facts=facts(integration=declared),
        credential=None if secret is None else credential(secret),
        guard=guard or Open(),
        deadline=CLOCK.monotonic() + seconds,
        pool_key="borealis/zendesk",
    )


def shown(outcome: Outcome) -> str:
    return (outcome.output or b"").decode()


def credential_headers_of(plan: Plan) -> tuple[tuple[str, str], ...]:
    """The headers that a bearer credential adds to a planned request."""
    added = plan.with_credential(plan.request, credential_headers(AuthSpec(secret="s"), "abc"))
    return added.headers[len(plan.request.headers) :]
