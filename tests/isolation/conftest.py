"""Two tenants, one hostile, on a real database."""

from __future__ import annotations

from tests.support.fixtures import clock, cluster, database, fresh_database, make_tenant, scopes, shard

__all__ = ["clock", "cluster", "database", "fresh_database", "make_tenant", "scopes", "shard"]
