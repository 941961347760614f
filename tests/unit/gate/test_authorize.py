"""What `authorize` adds to policy: an unpriced model is not a free one."""

from __future__ import annotations

import datetime as dt
import hashlib

import msgspec
import pytest

from tenantry.core.action import Action, Risk, Target
from tenantry.core.ids import ActionId, ActionName, AgentId, PrincipalId, RunId, TenantId, WorkspaceId
from tenantry.core.labels import NO_LABELS
from tenantry.core.quota import QuotaClass, Usage
from tenantry.gate.authorize import UNPRICED_MODEL, authorize
from tenantry.gate.context import Subject
from tenantry.gate.views import TenantView, build_engine, make_view
from tenantry.registry.facts import TenantFacts
from tenantry.registry.specs import AgentSpec, ModelSpec, ProviderSpec, WorkspaceSpec

PRICED = ModelSpec(
    provider="example",
    context_window=1_000,
    max_output_tokens=100,
    input_microusd_per_mtok=1,
    output_microusd_per_mtok=1,
)
WORKSPACE = WorkspaceSpec(external_account_id="acct_1")
AGENT = AgentSpec(workspace="main", agent_class="assistant", policy_profile="open")
SUBJECT = Subject(
    tenant_id=TenantId("acme"),
    workspace_id=WorkspaceId("main"),
    workspace=WORKSPACE,
    agent_id=AgentId("helper"),
    agent=AGENT,
    run_id=RunId("wr_1"),
    run_scope=RunId("wr_1"),
    attempt=1,
    principal_id=PrincipalId("p_1"),
    deadline_at=dt.datetime(2030, 1, 1, tzinfo=dt.UTC),
)


def view(model: ModelSpec, *, allow_unpriced: bool = False, policy: str = "permit") -> TenantView:
    facts = TenantFacts(
        tenant_id=SUBJECT.tenant_id,
        policy_version=3,
        fleet_version=1,
        quota_class_name="standard",
        quota_class=QuotaClass(),
        allow_unpriced=allow_unpriced,
        workspaces={"main": WORKSPACE},
        agents={SUBJECT.agent_id: AGENT},
        integrations={},
        actions={},
        providers={"example": ProviderSpec(base_url="http://127.0.0.1:1/v1")},
        models={"small": model},
        policies={"tenant": f'@id("all")\n{policy} (principal, action, resource);'},
    )
    return make_view(facts, build_engine(facts))


def model_call() -> Action:
    return Action(
        action_id=ActionId("act_1"),
        name=ActionName("model.call"),
        kind="model",
        risk=Risk.READ,
        target=Target("example", "small"),
        input=b"{}",
        input_sha256=hashlib.sha256(b"{}").digest(),
        idempotency_key=None,
        estimate=Usage(model_inflight=1, model_tokens=10),
        timeout_ms=1_000,
        destination="127.0.0.1",
        model="small",
    )


@pytest.mark.parametrize("missing", ["input_microusd_per_mtok", "output_microusd_per_mtok"])
def test_an_unpriced_model_is_denied_unless_the_tenant_allows_it(missing: str) -> None:
    unpriced = msgspec.structs.replace(PRICED, **{missing: None})
    denied = authorize(view(unpriced), SUBJECT, model_call(), NO_LABELS)
    assert (denied.effect, denied.reason) == ("deny", (UNPRICED_MODEL,))
    assert authorize(view(unpriced, allow_unpriced=True), SUBJECT, model_call(), NO_LABELS).effect == "allow"
    assert authorize(view(PRICED), SUBJECT, model_call(), NO_LABELS).effect == "allow"


def test_allowing_unpriced_models_allows_nothing_that_policy_forbids() -> None:
    unpriced = msgspec.structs.replace(PRICED, input_microusd_per_mtok=None)
    forbidding = view(unpriced, allow_unpriced=True, policy="forbid")
    denied = authorize(forbidding, SUBJECT, model_call(), NO_LABELS)
    assert (denied.effect, denied.reason) == ("deny", ("tenant/all@3",))
