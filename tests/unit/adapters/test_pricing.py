"""Bounds are sound and prices round up."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tenantry.adapters.pricing import bound_usage, price
from tenantry.core.quota import Usage
from tenantry.registry.specs import ModelSpec

COUNTS = st.integers(0, 10_000_000)
PRICES = st.none() | st.integers(0, 500_000_000)
MODELS = st.builds(
    ModelSpec,
    provider=st.just("acme"),
    context_window=st.integers(1, 2_000_000),
    max_output_tokens=st.integers(1, 200_000),
    input_microusd_per_mtok=PRICES,
    cached_input_microusd_per_mtok=PRICES,
    output_microusd_per_mtok=PRICES,
)


def test_by_hand() -> None:
    model = ModelSpec(
        provider="acme",
        context_window=1_000,
        max_output_tokens=100,
        input_microusd_per_mtok=150_000,
        cached_input_microusd_per_mtok=75_000,
        output_microusd_per_mtok=600_000,
    )
    assert model.is_priced
    # 100 bytes + 16 a request + 2 x 16 a message, and 3 answers of 50
    assert bound_usage(model, request_bytes=100, messages=2, output_limit=50, n=3) == Usage(
        model_inflight=1, model_tokens=298, cost_microusd=-(-(148 * 150_000 + 150 * 600_000) // 1_000_000)
    )
    assert bound_usage(model, request_bytes=10**9, messages=2, output_limit=10**9).model_tokens == 1_100
    assert price(model, prompt=10, cached=4, completion=1) == 2  # 0.9 + 0.3 + 0.6 = 1.8
    assert price(model, prompt=0, cached=0, completion=0) == 0
    assert price(model, prompt=4, cached=400, completion=0) == 1


def test_unpriced_is_not_free() -> None:
    model = ModelSpec(provider="a", context_window=1, max_output_tokens=1)
    assert not model.is_priced
    assert not msgspec.structs.replace(model, input_microusd_per_mtok=0).is_priced


@given(MODELS, COUNTS, st.integers(0, 500), COUNTS, st.integers(1, 8), st.data())
def test_no_bill_within_the_limits_is_above_the_bound(
    model: ModelSpec, size: int, messages: int, limit: int, n: int, data: st.DataObject
) -> None:
    bound = bound_usage(model, request_bytes=size, messages=messages, output_limit=limit, n=n)
    prompt = data.draw(st.integers(0, min(model.context_window, size)))
    cached = data.draw(st.integers(0, prompt))
    completion = data.draw(st.integers(0, n * min(limit, model.max_output_tokens)))
    assert prompt + completion <= bound.model_tokens
    assert price(model, prompt=prompt, cached=cached, completion=completion) <= bound.cost_microusd
