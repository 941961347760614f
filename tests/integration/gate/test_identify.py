"""What a run token becomes: a context whose parts may be shared, and a scope that may not."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.fixtures import MakeTenant
from tests.support.whole_gate import GateBench

from tenantry.gate.context import RunContext
from tenantry.storage.statements import load_statements


@pytest.mark.invariant(2)
async def test_requests_of_one_run_have_scopes_of_their_own(gate: GateBench, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    await gate.register(tenant)
    token = await gate.open_token(tenant)
    first, second = await asyncio.gather(gate.gate.identify(token), gate.gate.identify(token))
    assert first.subject is second.subject
    find_run = load_statements("tenantry.gate", "runs.sql")["find_run"]
    both_in = asyncio.Barrier(2)

    async def read(context: RunContext) -> str:
        async with context.scope as scope:
            await both_in.wait()
            row = await scope.fetch_one(find_run, scope.tenant_id, context.claims.run_id)
            assert row is not None
            return str(row["state"])

    async with asyncio.timeout(10):
        states = await asyncio.gather(read(first), read(second))
    assert set(states) == {"running"}
