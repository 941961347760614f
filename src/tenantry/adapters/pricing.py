"""What a model call may use at most, and what it cost (DESIGN §3 'Budgets'). Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from tenantry.core.quota import Usage
from tenantry.registry.specs import ModelSpec

TOKENS_PER_MESSAGE: Final = 16
TOKENS_PER_REQUEST: Final = 16
COUNT_MAX: Final = 2**53
_PER_MTOK: Final = 1_000_000


class ReportedUsage(msgspec.Struct, frozen=True):
    """Tokens as a provider reports them; ``cached`` are those of ``prompt`` that came from its cache."""

    prompt: int
    cached: int
    completion: int


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class UsageBlock(msgspec.Struct):
    """The ``usage`` object of a chat completion, fields that do not bear on the bill left out."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: _Details | None = None

    def reported(self) -> ReportedUsage | None:
        """The block as counts, or None where it cannot be true.

        A total above the sum counts as completion: some providers leave hidden reasoning out of the parts,
        and bill it.
        """
        prompt, completion, total = self.prompt_tokens, self.completion_tokens, self.total_tokens
        details = self.prompt_tokens_details
        cached = (details.cached_tokens if details else None) or 0
        if not all(0 <= count <= COUNT_MAX for count in (prompt, completion, total, cached)):
            return None
        return ReportedUsage(prompt, min(cached, prompt), max(completion, total - prompt))


def bound_usage(
    model: ModelSpec, *, request_bytes: int, messages: int, output_limit: int, n: int = 1
) -> Usage:
    """The sound upper bound of one call, to reserve.

    ``request_bytes`` is the size of the canonical request (a token is at least one byte), ``output_limit``
    the clamped limit of tokens for each of the ``n`` answers. Input counts at the dearest input class.
    """
    prompt = min(model.context_window, request_bytes + TOKENS_PER_REQUEST + TOKENS_PER_MESSAGE * messages)
    completion = n * min(output_limit, model.max_output_tokens)
    dearest = max(model.input_microusd_per_mtok or 0, model.cached_input_microusd_per_mtok or 0)
    cost = prompt * dearest + completion * (model.output_microusd_per_mtok or 0)
    return Usage(model_inflight=1, model_tokens=prompt + completion, cost_microusd=_round_up(cost))


def price(model: ModelSpec, *, prompt: int, cached: int, completion: int) -> int:
    """Micro-US-dollars of one call, rounded up; ``cached`` are those of ``prompt`` read from a cache."""
    fresh_price = model.input_microusd_per_mtok or 0
    cached_price = model.cached_input_microusd_per_mtok
    if cached_price is None:
        cached_price = fresh_price
    cached = min(cached, prompt)
    cost = (prompt - cached) * fresh_price + cached * cached_price
    return _round_up(cost + completion * (model.output_microusd_per_mtok or 0))


def _round_up(cost: int) -> int:
    return -(-cost // _PER_MTOK)
