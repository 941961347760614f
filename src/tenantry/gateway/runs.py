"""Runs without an agent process of ours: opened and finished by API (CONTRACT 'Environment', 'HTTP').

``POST /api/v1/runs`` with an API key opens an ``external`` or ``attached`` run and answers its token and
doors; ``POST /api/v1/runs/{id}/finish`` ends it, by the run's own token or by a key that may start runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.ids import AgentId, RunId, TenantId, WorkspaceId, parse_name, parse_tenant_id
from tenantry.core.principal import Right
from tenantry.core.run import RunState
from tenantry.core.verdict import Allowed
from tenantry.gate.context import OpenRun
from tenantry.gateway.entrance import bearer_token, idempotency_key
from tenantry.identity.key_format import parse_key
from tenantry.identity.rights import narrow, require
from tenantry.web.json_input import check_values, decode_strictly
from tenantry.web.problems import FAULT, invalid
from tenantry.web.verdicts import describe, verdict_headers

if TYPE_CHECKING:
    from tenantry.core.principal import Principal
    from tenantry.gate.context import OpenedRun
    from tenantry.gateway.entrance import Entrance
    from tenantry.gateway.exchange import Exchange

RUN_ID_CHARS_MAX: Final = 64
# No tenant's id: those begin with a letter and hold no dash.
_OPERATORS: Final = TenantId("-operators")
_JSON: Final = b"application/json"
_NULL: Final = b"null"
_ANY: Final = msgspec.json.Decoder()
_CANONICAL: Final = msgspec.json.Encoder(order="deterministic")


class _OpenRequest(msgspec.Struct, forbid_unknown_fields=True):
    agent_id: str
    tenant_id: str | None = None
    workspace_id: str | None = None
    external: bool = False
    attached: bool = False
    input: msgspec.Raw = msgspec.Raw(_NULL)
    deadline_ms: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _FinishRequest(msgspec.Struct, forbid_unknown_fields=True):
    state: Literal["succeeded", "failed", "cancelled"]
    result: msgspec.Raw = msgspec.Raw(_NULL)
    tenant_id: str | None = None


_OPEN: Final = msgspec.json.Decoder(_OpenRequest)
_FINISH: Final = msgspec.json.Decoder(_FinishRequest)


class RunsDoor:
    """``public_url`` is where agents reach the doors, without a trailing slash."""

    def __init__(self, entrance: Entrance, public_url: str) -> None:
        self._entrance = entrance
        self._public_url = public_url.rstrip("/")

    async def open(self, exchange: Exchange) -> None:
        """Open a run. Raises what `web.problems.problem_of` maps, before anything was answered."""
        entrance = self._entrance
        principal = await entrance.identify_principal(exchange)
        require(principal, Right.RUN_START)

        async def serve(body: bytes) -> None:
            await self._open(exchange, principal, body)

        # An operator's requests share one place of their own: its tenant is only known from the body.
        place = principal.tenant_id or _OPERATORS
        await entrance.admit(exchange, place, entrance.limits.action_body_bytes_max, serve)

    async def finish(self, exchange: Exchange, run_id: str) -> None:
        """Finish a run; raises as `open` does. A run that is not the asker's is not found."""
        entrance = self._entrance
        if parse_key(bearer_token(exchange)) is None:
            context = await entrance.identify_run(exchange)
            tenant_id, principal = context.claims.tenant_id, None
        else:
            context = None
            principal = await entrance.identify_principal(exchange)
            require(principal, Right.RUN_START)
            if principal.workspace_id is not None:
                raise invalid(
                    "a key that is narrowed to a workspace finishes a run with the run's own token",
                    path="header authorization",
                    status=403,
                )
            tenant_id = principal.tenant_id or _OPERATORS

        async def serve(body: bytes) -> None:
            request = decode_strictly(body, _FINISH)
            if not 1 <= len(run_id) <= RUN_ID_CHARS_MAX or not run_id.isascii() or not run_id.isprintable():
                raise NotFoundError("no such run")
            if context is not None:
                named = context.claims.tenant_id if request.tenant_id is None else request.tenant_id
                if context.claims.run_id != run_id or named != context.claims.tenant_id:
                    raise NotFoundError("no such run")
                scope = context.scope
            else:
                assert principal is not None
                scope = await entrance.scopes.for_principal(
                    principal, _tenant_of(principal, request.tenant_id)
                )
            state = RunState(request.state)
            result = _canonical(request.result, "$.result")
            settled = await entrance.gate.close_run(scope, RunId(run_id), state, result)
            body_out = {"run_id": run_id, "state": state.value}
            await exchange.answer_json(200, body_out, None if settled is None else settled.timings)

        await entrance.admit(exchange, tenant_id, entrance.limits.action_body_bytes_max, serve)

    async def _open(self, exchange: Exchange, principal: Principal, body: bytes) -> None:
        entrance = self._entrance
        key = idempotency_key(exchange)
        request = decode_strictly(body, _OPEN)
        if request.external == request.attached:
            raise InvalidInputError("exactly one of external and attached is true", path="$.external")
        tenant_id = _tenant_of(principal, request.tenant_id)
        workspace = request.workspace_id
        workspace_id = (
            None if workspace is None else WorkspaceId(parse_name(workspace, path="$.workspace_id"))
        )
        workspace_id = narrow(principal, workspace_id)
        require(principal, Right.RUN_START, tenant_id, workspace_id)
        deadline_ms = request.deadline_ms or entrance.limits.run_deadline_ms
        if deadline_ms > entrance.limits.run_deadline_ms_max:
            most = entrance.limits.run_deadline_ms_max
            raise InvalidInputError(f"a run lasts at most {most} ms", path="$.deadline_ms")
        opened = await entrance.gate.open_run(
            principal,
            OpenRun(
                tenant_id=tenant_id,
                agent_id=AgentId(parse_name(request.agent_id, path="$.agent_id")),
                workspace_id=workspace_id,
                mode="external" if request.external else "attached",
                input=_canonical(request.input, "$.input") or _NULL,
                deadline_ms=deadline_ms,
                idempotency_key=key,
            ),
        )
        await self._answer(exchange, opened)

    async def _answer(self, exchange: Exchange, opened: OpenedRun) -> None:
        result = opened.result
        verdict = result.verdict
        if not isinstance(verdict, Allowed):
            await exchange.answer_verdict(describe(verdict), result.timings)
            return
        if opened.token is None or opened.claims is None:
            await exchange.answer_problem(FAULT, result.timings)
            return
        body = {
            "verdict": "allowed",
            "action_id": verdict.action_id,
            "run_id": opened.run_id,
            "workflow_run_id": opened.run_id,
            "token": opened.token,
            "expires_at": opened.claims.expires_at,
            "doors": {
                "openai_base_url": f"{self._public_url}/v1",
                "actions_url": f"{self._public_url}/api/v1/actions",
                "finish_url": f"{self._public_url}/api/v1/runs/{opened.run_id}/finish",
            },
        }
        headers = [(b"content-type", _JSON), *verdict_headers(describe(verdict))]
        await exchange.answer(201, headers, msgspec.json.encode(body), result.timings)


def _tenant_of(principal: Principal, named: str | None) -> TenantId:
    """The tenant that is meant: a tenant's key means its own, an operator names one."""
    if named is None:
        if principal.tenant_id is None:
            raise InvalidInputError("an operator names the tenant", path="$.tenant_id")
        return principal.tenant_id
    return parse_tenant_id(named, path="$.tenant_id")


def _canonical(raw: msgspec.Raw, path: str) -> bytes | None:
    """The value written anew, keys sorted; None for null."""
    try:
        value = _ANY.decode(raw)
    except msgspec.MsgspecError:
        raise InvalidInputError("the value cannot be read", path=path) from None
    if value is None:
        return None
    check_values(value, path=path)
    return _CANONICAL.encode(value)
