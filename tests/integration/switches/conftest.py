"""Switches are platform-wide: each test has a database of its own."""

from __future__ import annotations

import pytest
from tests.support.fixtures import MakeTenant
from tests.support.tenants import TestTenant, register_tenant

from tenantry.core.clock import SystemClock
from tenantry.storage.connect import DatabaseTarget


@pytest.fixture
def make_tenant_in(fresh_database: DatabaseTarget, clock: SystemClock) -> MakeTenant:
    """A maker of registered tenants in `fresh_database`."""

    async def make(*, name: str | None = None, limits: dict[str, int] | None = None) -> TestTenant:
        return await register_tenant(fresh_database, clock, name=name, limits=limits)

    return make
