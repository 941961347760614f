"""Fixtures for tests on a real database: one cluster and one clone a process, tenants made by each test.

A folder's `conftest.py` names those it wants: `from tests.support.fixtures import cluster, database, ...`.
Cluster and clone hang on the run's configuration, so that folders share them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import pytest

from tenantry.core.clock import SystemClock
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.database import PoolSizes, Shard
from tenantry.storage.scope import Scopes
from tests.support.cluster import Cluster, run_apart, running_cluster
from tests.support.tenants import ROOT_KEY, TestTenant, register_tenant


class MakeTenant(Protocol):
    """The type of the fixture `make_tenant`."""

    async def __call__(
        self, *, name: str | None = None, limits: dict[str, int] | None = None
    ) -> TestTenant: ...


_CLUSTER = pytest.StashKey[Cluster]()
_DATABASE = pytest.StashKey[DatabaseTarget]()


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The process's own PostgreSQL with a migrated template, stopped when the run ends."""
    if _CLUSTER not in pytestconfig.stash:
        stack = contextlib.ExitStack()
        pytestconfig.add_cleanup(stack.close)
        folder = tmp_path_factory.mktemp("cluster")
        pytestconfig.stash[_CLUSTER] = stack.enter_context(running_cluster(folder))
    return pytestconfig.stash[_CLUSTER]


@pytest.fixture(scope="session")
def database(pytestconfig: pytest.Config, cluster: Cluster) -> DatabaseTarget:
    """One clone for all tests of the process; each makes its own tenants in it."""
    if _DATABASE not in pytestconfig.stash:
        pytestconfig.stash[_DATABASE] = run_apart(cluster.clone())
    return pytestconfig.stash[_DATABASE]


@pytest.fixture
def fresh_database(cluster: Cluster) -> Iterator[DatabaseTarget]:
    """A clone for this test alone: for what is platform-wide, such as the clock, the fleet or migrations."""
    target = run_apart(cluster.clone())
    yield target
    run_apart(cluster.drop(target))


@pytest.fixture
def clock() -> SystemClock:
    return SystemClock()


@pytest.fixture
async def shard(database: DatabaseTarget, clock: SystemClock) -> AsyncIterator[Shard]:
    """The process's database opened with a few connections of each kind."""
    opened = await Shard.open(database, ROOT_KEY, PoolSizes(gate=2, app=4, platform=2, control=3), clock)
    yield opened
    await opened.close()


@pytest.fixture
def scopes(shard: Shard, clock: SystemClock) -> Scopes:
    return Scopes(shard, clock)


@pytest.fixture
def make_tenant(database: DatabaseTarget, clock: SystemClock) -> MakeTenant:
    """A maker of registered tenants in `database`, to be awaited; `limits` are columns of `scopes`."""

    async def make(*, name: str | None = None, limits: dict[str, int] | None = None) -> TestTenant:
        return await register_tenant(database, clock, name=name, limits=limits)

    return make
