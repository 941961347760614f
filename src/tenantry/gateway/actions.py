"""``POST /api/v1/actions``: one governed action as plain JSON (CONTRACT 'HTTP').

The answer to an allowed action is 200 with ``outcome``: ``ok``, ``failed`` (the upstream said no, or a read
broke), or ``void`` (certainly nothing was sent); ``status`` is the upstream's. What may or may not have
happened is the verdict ``unknown_outcome``. Refusals are problem details.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Any, Final

import jsonschema_rs
import msgspec

from tenantry.adapters.egress import parse_url
from tenantry.core.action import Action, Outcome, OutcomeStatus, Risk, Target
from tenantry.core.errors import EgressDeniedError, InvalidInputError
from tenantry.core.ids import ActionName
from tenantry.core.quota import Usage
from tenantry.core.verdict import Allowed, UnknownOutcome
from tenantry.gateway.entrance import HOSTS_MAX, digest, find_host, idempotency_key, remaining_ms
from tenantry.web.json_input import check_values, decode_strictly, field_path
from tenantry.web.problems import FAULT, Problem, ProblemError, invalid
from tenantry.web.verdicts import describe, verdict_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenantry.core.event import Event
    from tenantry.gate.context import ActionResult, RunContext
    from tenantry.gateway.entrance import Entrance
    from tenantry.gateway.exchange import Exchange
    from tenantry.registry.facts import TenantFacts
    from tenantry.registry.specs import HttpActionSpec, IntegrationSpec
    from tenantry.web.timing import Timings

OUTPUT_BYTES_MAX: Final = 256 * 1024
_OUTPUT_FRAME_BYTES: Final = 4 * 1024
_VALIDATORS_MAX: Final = 1_000
_INPUT: Final = msgspec.json.Decoder(dict[str, Any])
_CANONICAL: Final = msgspec.json.Encoder(order="deterministic")
_JSON: Final = b"application/json"


class _Place(msgspec.Struct, forbid_unknown_fields=True):
    system: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    record_id: Annotated[str, msgspec.Meta(max_length=2048)]


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    requested_action: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    target: _Place
    input: msgspec.Raw = msgspec.Raw(b"{}")
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=86_400_000)] | None = None


_REQUEST: Final = msgspec.json.Decoder(_Request)


class _Silent:
    """No event goes out while a plain action is performed: its output is the outcome's."""

    async def __call__(self, event: Event, /) -> None:
        del event

    def begun(self, timings: Timings, /) -> None:
        del timings


class ActionsDoor:
    """Cost beside the gate: ~100 us; the compiled schemas of the last `_VALIDATORS_MAX` actions are kept."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._host_of = functools.lru_cache(HOSTS_MAX)(find_host)
        self._validators: OrderedDict[tuple[str, int, int, str], jsonschema_rs.Validator] = OrderedDict()

    async def act(self, exchange: Exchange) -> None:
        """One action. Raises what `web.problems.problem_of` maps, before anything was answered."""
        entrance = self._entrance
        context = await entrance.identify_run(exchange)

        async def serve(body: bytes) -> None:
            await self._act(exchange, context, body)

        await entrance.admit(exchange, context.claims.tenant_id, entrance.limits.action_body_bytes_max, serve)

    async def _act(self, exchange: Exchange, context: RunContext, body: bytes) -> None:
        key = idempotency_key(exchange)
        action = self._build(context, body, key)
        result = await self._entrance.gate.act(context, action, _Silent())
        await _answer(exchange, result)

    def _build(self, context: RunContext, body: bytes, key: str | None) -> Action:
        request = decode_strictly(body, _REQUEST)
        facts = context.facts
        name = request.requested_action
        declared = facts.actions.get(name)
        if declared is None:
            raise invalid("no such action is declared here", path="$.requested_action", status=422)
        system, spec = declared
        if request.target.system != system:
            raise invalid("this action does not belong to that system", path="$.target.system", status=422)
        canonical, value = _input_of(request.input)
        if spec.input_schema is not None:
            self._validate(facts, name, spec.input_schema, value)
        target = Target(request.target.system, request.target.record_id)
        most_ms = min(spec.deadline_ms, request.timeout_ms or spec.deadline_ms)
        risk = Risk.parse(spec.risk)
        answer_bytes = min(spec.response_bytes_max, OUTPUT_BYTES_MAX) + _OUTPUT_FRAME_BYTES
        return Action(
            action_id=self._entrance.gate.new_action_id(),
            name=ActionName(name),
            kind="tool",
            risk=risk,
            target=target,
            input=canonical,
            input_sha256=digest(name, target.system.encode(), target.record_id.encode(), canonical),
            idempotency_key=key,
            estimate=Usage(
                tool_calls=1,
                high_risk=1 if risk is Risk.HIGH_RISK else 0,
                journal_bytes=len(canonical) + answer_bytes,
            ),
            timeout_ms=remaining_ms(self._entrance, context, most_ms),
            destination=_destination(facts.integrations[system], spec, value, self._host_of),
        )

    def _validate(
        self, facts: TenantFacts, name: str, schema: dict[str, object], value: dict[str, Any]
    ) -> None:
        key = (facts.tenant_id, facts.policy_version, facts.fleet_version, name)
        validator = self._validators.get(key)
        if validator is None:
            try:
                validator = jsonschema_rs.validator_for(
                    schema, offline=True, pattern_options=jsonschema_rs.RegexOptions()
                )
            except ValueError:
                title = "the schema that this action declares is not valid"
                raise ProblemError(
                    Problem(422, "schema_invalid", title, "The tenant must correct it.")
                ) from None
            self._validators[key] = validator
            if len(self._validators) > _VALIDATORS_MAX:
                self._validators.popitem(last=False)
        else:
            self._validators.move_to_end(key)
        for fault in validator.iter_errors(value):
            path = "$.input"
            for step in fault.instance_path:
                path = f"{path}[{step}]" if isinstance(step, int) else field_path(path, step)
            raise invalid(fault.message[:500], path=path, status=422)


def _input_of(raw: msgspec.Raw) -> tuple[bytes, dict[str, Any]]:
    """The canonical bytes of the input (keys sorted, each once) and its value."""
    try:
        value = _INPUT.decode(raw)
    except msgspec.MsgspecError:
        raise InvalidInputError("the input is an object", path="$.input") from None
    check_values(value, path="$.input")
    return _CANONICAL.encode(value), value


def _destination(
    integration: IntegrationSpec,
    spec: HttpActionSpec,
    value: dict[str, Any],
    host_of: Callable[[str], str | None],
) -> str | None:
    """The host that policy decides on: the integration's own, or that of the URL in the input."""
    if spec.url_from_input is None:
        return host_of(integration.base_url)
    path = field_path("$.input", spec.url_from_input)
    url = value.get(spec.url_from_input)
    if not isinstance(url, str):
        raise invalid("the field is a URL", path=path, status=422)
    try:
        return parse_url(url).host
    except EgressDeniedError as error:
        raise invalid(str(error), path=path, status=422) from None


async def _answer(exchange: Exchange, result: ActionResult) -> None:
    verdict = result.verdict
    if not isinstance(verdict, Allowed):
        await exchange.answer_verdict(describe(verdict), result.timings)
        return
    outcome = verdict.recorded or result.outcome
    if outcome is None:
        await exchange.answer_problem(FAULT, result.timings)
        return
    if outcome.status in {OutcomeStatus.UNKNOWN, OutcomeStatus.CUT}:
        await exchange.answer_verdict(describe(UnknownOutcome(verdict.action_id)), result.timings)
        return
    body = {
        "verdict": "allowed",
        "action_id": verdict.action_id,
        "outcome": outcome.status.value,
        "status": outcome.http_status,
        "detail": outcome.detail,
        "recorded": verdict.recorded is not None,
        "output": _output_of(outcome),
    }
    headers = [(b"content-type", _JSON), *verdict_headers(describe(verdict))]
    await exchange.answer(200, headers, msgspec.json.encode(body), result.timings)


def _output_of(outcome: Outcome) -> object:
    """The output as JSON where it is JSON, else as text."""
    if outcome.output is None:
        return None
    if outcome.content_type.partition(";")[0].strip().lower() == "application/json":
        return msgspec.Raw(outcome.output)
    return outcome.output.decode("utf-8", errors="replace")
