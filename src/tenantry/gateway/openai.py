"""The doors of OpenAI's shape: chat completions and models (DESIGN §11).

credential -> shed -> body -> parse -> bound -> gate -> answer. A model with no known price is refused here,
where its bound is made, with `UNPRICED` as the policy that says so: what cannot be bounded cannot be
reserved.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from tenantry.core.action import Action, Risk, Target
from tenantry.core.ids import ActionName
from tenantry.gateway.answer import Answer
from tenantry.gateway.entrance import HOSTS_MAX, digest, find_host, idempotency_key, remaining_ms
from tenantry.gateway.openai_request import parse_chat
from tenantry.web.problems import Problem, ProblemError

if TYPE_CHECKING:
    from tenantry.gate.context import RunContext
    from tenantry.gateway.entrance import Entrance
    from tenantry.gateway.exchange import Exchange
    from tenantry.registry.facts import TenantFacts

MODEL_CALL: Final = ActionName("model.call")


class OpenAiDoor:
    """``/v1/chat/completions`` and ``/v1/models``.

    Cost beside the gate: ~100 us for a request of a few KiB, and a few us a streamed event.
    """

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._host_of = functools.lru_cache(HOSTS_MAX)(find_host)

    async def complete(self, exchange: Exchange) -> None:
        """One chat completion. Raises what `web.problems.problem_of` maps, before anything was answered."""
        entrance = self._entrance
        context = await entrance.identify_run(exchange)

        async def serve(body: bytes) -> None:
            await self._act(exchange, context, body)

        await entrance.admit(exchange, context.claims.tenant_id, entrance.limits.model_body_bytes_max, serve)

    async def list_models(self, exchange: Exchange) -> None:
        """The tenant's models; policy may still refuse a call of one."""
        context = await self._entrance.identify_run(exchange)
        facts = context.facts
        models = [_listed(facts, name) for name in sorted(facts.models)]
        await exchange.answer_json(200, {"object": "list", "data": models})

    async def show_model(self, exchange: Exchange) -> None:
        """One model of the list."""
        context = await self._entrance.identify_run(exchange)
        name = exchange.path.removeprefix("/v1/models/")
        if name not in context.facts.models:
            raise _no_such_model()
        await exchange.answer_json(200, _listed(context.facts, name))

    async def _act(self, exchange: Exchange, context: RunContext, body: bytes) -> None:
        entrance = self._entrance
        key = idempotency_key(exchange)
        chat = parse_chat(body, entrance.limits.choices_max)
        facts = context.facts
        name = chat.model_name
        model = facts.models.get(name)
        if model is None:
            raise _no_such_model()
        canonical, bound = chat.prepare(model, name)
        action = Action(
            action_id=entrance.gate.new_action_id(),
            name=MODEL_CALL,
            kind="model",
            risk=Risk.READ,
            target=Target(model.provider, name),
            input=canonical,
            input_sha256=digest(MODEL_CALL, name.encode(), canonical),
            idempotency_key=key,
            estimate=bound,
            timeout_ms=remaining_ms(entrance, context, entrance.limits.model_timeout_ms),
            destination=self._host(facts, model.provider),
            model=name,
        )
        answer = Answer(exchange, entrance.limits, shows_usage=chat.wants_usage)
        try:
            result = await entrance.gate.act(context, action, answer)
        except Exception as error:
            if not await answer.fail(error):
                raise
            return
        await answer.finish(result)

    def _host(self, facts: TenantFacts, provider: str) -> str | None:
        spec = facts.providers.get(provider)
        return None if spec is None else self._host_of(spec.base_url)


def _listed(facts: TenantFacts, name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": facts.models[name].provider}


def _no_such_model() -> ProblemError:
    return ProblemError(
        Problem(404, "model_not_found", "no such model", "GET /v1/models lists this tenant's models.")
    )
