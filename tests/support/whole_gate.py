"""All six steps of the gate on a real database, with an adapter that a test scripts."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tenantry.broker.broker import Broker
from tenantry.core.action import Action, Outcome, OutcomeStatus, Risk, Target
from tenantry.core.clock import Clock, SystemClock
from tenantry.core.event import Event
from tenantry.core.ids import ActionId, ActionName
from tenantry.core.quota import Limits, QuotaClass, Usage
from tenantry.gate.begin import Begin
from tenantry.gate.context import OpenRun, RunContext, Timings
from tenantry.gate.credential import FetchCredential
from tenantry.gate.gate import Gate
from tenantry.gate.identify import Identify, KnownLabels
from tenantry.gate.perform import Perform
from tenantry.gate.ports import AdapterCall, Emit
from tenantry.gate.runs import Runs
from tenantry.gate.shed import ShedJournal
from tenantry.gate.views import Views
from tenantry.identity.tokens import RunTokens
from tenantry.registry.specs import (
    AgentSpec,
    FleetFile,
    HttpActionSpec,
    IntegrationSpec,
    PolicySpec,
    TenantSpec,
    WorkspaceSpec,
)
from tenantry.registry.store import put_platform, put_tenant
from tenantry.storage.connect import DatabaseTarget
from tenantry.switches.instance import Instance
from tests.support.gates import Lanes
from tests.support.tenants import TestTenant

Script = Callable[[AdapterCall, Emit], Awaitable[Outcome]]


class ScriptedAdapter:
    """Does what the test says, and keeps its own books: `sent` has every action that reached the upstream."""

    def __init__(self, script: Script | None = None) -> None:
        self.script: Script = script or answer_ok
        self.sent: list[ActionId] = []

    async def perform(self, call: AdapterCall, emit: Emit, /) -> Outcome:
        call.guard.check()
        self.sent.append(call.action.action_id)
        return await self.script(call, emit)


async def answer_ok(call: AdapterCall, _emit: Emit) -> Outcome:
    """The bound was used, the answer is short."""
    return Outcome(OutcomeStatus.OK, b'{"done":true}', call.action.estimate)


class GoneDoor:
    """A door whose client has gone."""

    def begun(self, timings: Timings, /) -> None:
        """Nobody listens."""

    async def __call__(self, event: Event, /) -> None:
        """Likewise."""


ignore: Final = GoneDoor()


OPEN_POLICY: Final = '@id("anything")\npermit (principal, action, resource);'
TICKETS: Final = IntegrationSpec(
    base_url="https://zendesk.example",
    actions={
        "ticket.read": HttpActionSpec(risk="read", path="/tickets/{record_id}"),
        "ticket.update": HttpActionSpec(risk="write", path="/tickets/{record_id}"),
    },
)
SMALL: Final = FleetFile(
    version=1, guardrails=PolicySpec(text=""), quota_classes={"small": QuotaClass()}, tenants={}
)


def tenant_spec(tenant: TestTenant, *, policy: str = OPEN_POLICY) -> TenantSpec:
    """A tenant with one workspace, one agent and a ticket system."""
    return TenantSpec(
        display_name="Tenant",
        quota_class="small",
        workspaces={tenant.workspace_id: WorkspaceSpec(external_account_id="acct", limits=Limits())},
        agents={
            tenant.agent_id: AgentSpec(
                workspace=tenant.workspace_id, agent_class="helper", policy_profile="open"
            )
        },
        policy=PolicySpec(text=policy),
        profiles={"open": PolicySpec(text=OPEN_POLICY)},
        integrations={"zendesk": TICKETS},
    )


class GateBench:
    """A whole gate: `identify` to `settle`, with a scripted way out and a live instance."""

    def __init__(
        self, lanes: Lanes, gate: Gate, adapter: ScriptedAdapter, instance: Instance, clock: Clock
    ) -> None:
        self.lanes = lanes
        self.gate = gate
        self.adapter = adapter
        self.instance = instance
        self.clock = clock

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, target: DatabaseTarget) -> AsyncIterator[Self]:
        """All six steps on a shard of its own."""
        clock = SystemClock()
        async with Lanes.open(target) as lanes:
            instance = Instance(await lanes.shard.control_connection(), clock, role="gateway")
            instance.report_open(lanes.ledger.oldest_open_age_s)
            adapter, tokens = ScriptedAdapter(), RunTokens(Ed25519PrivateKey.generate(), clock)
            views, labels = Views(), KnownLabels()
            begin = Begin(lanes.ledger, views, labels, clock)
            gate = Gate(
                Identify(tokens, lanes.scopes, views),
                begin,
                FetchCredential(Broker(clock)),
                Perform(adapter, instance, clock),
                lanes.ledger,
                Runs(lanes.scopes, views, begin, lanes.ledger, tokens, clock),
                ShedJournal(lanes.scopes, instance.instance_id, clock),
                clock,
            )
            await instance.start()
            try:
                yield cls(lanes, gate, adapter, instance, clock)
            finally:
                await lanes.ledger.drain(5.0)
                await instance.stop()

    async def register(self, tenant: TestTenant, *, policy: str = OPEN_POLICY) -> None:
        """Declare what the tenant has; its scope rows stand already."""
        async with self.lanes.scopes.platform(reason="a test", operator="op_test") as platform:
            await put_platform(platform, SMALL)
        async with await self.lanes.scope(tenant) as scope:
            await put_tenant(scope, tenant_spec(tenant, policy=policy))

    async def open_run(self, tenant: TestTenant) -> RunContext:
        """A run of the tenant's agent, opened by the gate, and its context as the doors have it."""
        return await self.gate.identify(await self.open_token(tenant))

    async def open_token(self, tenant: TestTenant) -> str:
        """The token of a run that the gate opened."""
        opened = await self.gate.open_run(
            tenant.admin,
            OpenRun(tenant.tenant_id, tenant.agent_id, None, "attached", b"{}", 600_000),
        )
        assert opened.token is not None, opened.result.verdict
        return opened.token

    def action(self, *, key: str | None = None, body: bytes = b"{}", write: bool = False) -> Action:
        """One ticket call."""
        return Action(
            action_id=self.gate.new_action_id(),
            name=ActionName("ticket.update" if write else "ticket.read"),
            kind="tool",
            risk=Risk.WRITE if write else Risk.READ,
            target=Target("zendesk", "zd_1"),
            input=body,
            input_sha256=hashlib.sha256(body).digest(),
            idempotency_key=key,
            estimate=Usage(tool_calls=1, journal_bytes=1_024),
            timeout_ms=30_000,
            destination="zendesk.example",
        )
