"""Everything that control does for people, put together as the control process does."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
from tests.support.cluster import connect_as
from tests.support.tenants import OPERATOR, ROOT_KEY

from tenantry.control.fleet import Applied, Fleet
from tenantry.core.clock import SystemClock
from tenantry.core.ids import KeyId, PrincipalId, TenantId, WorkspaceId
from tenantry.core.principal import Principal, Role
from tenantry.journal.admin import AdminJournal
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.database import PoolSizes, Shard
from tenantry.storage.scope import Scopes

CLOCK = SystemClock()
READS = '@id("reads") permit (principal, action in Action::"risk/read", resource);'


def person(tenant: str, role: Role = Role.TENANT_ADMIN, workspace: str | None = None) -> Principal:
    return Principal(
        PrincipalId(f"prn_{role}_{tenant}"),
        KeyId(f"key_{tenant}"),
        role,
        TenantId(tenant),
        None if workspace is None else WorkspaceId(workspace),
    )


def fleet_file() -> dict[str, Any]:
    """A small fleet of two tenants, as the file's JSON."""
    return {
        "version": 1,
        "guardrails": {
            "text": '@id("none") forbid (principal, action in Action::"risk/high_risk", resource);'
        },
        "quota_classes": {
            "small": {
                "tenant": {"requests_per_minute": 600, "tool_calls_day": 100, "journal_bytes": 1_000_000},
                "run": {"tool_calls_day": 10},
            },
            "large": {"tenant": {"tool_calls_day": 1_000}},
        },
        "providers": {"acme": {"base_url": "http://127.0.0.1:9/v1", "credential": {"env": "ACME"}}},
        "models": {"tiny": {"provider": "acme", "context_window": 8_000, "max_output_tokens": 100}},
        "tenants": {
            "borealis": {
                "display_name": "Borealis",
                "quota_class": "small",
                "workspaces": {"support": {"external_account_id": "a_1"}},
                "agents": {
                    "triage": {"workspace": "support", "agent_class": "support", "policy_profile": "open"}
                },
                "policy": {"text": READS},
                "integrations": {
                    "zendesk": {
                        "base_url": "https://tickets.example",
                        "auth": {"secret": "token"},
                        "actions": {"ticket.update": {"risk": "write", "path": "/t/{record_id}"}},
                    }
                },
                "secrets": {
                    "token": {
                        "workspace": "support",
                        "system": "zendesk",
                        "agent_classes": ["support"],
                        "capability": "mutate",
                        "value": {"env": "TOKEN"},
                    }
                },
            },
            "dunes": {
                "display_name": "Dunes",
                "quota_class": "small",
                "workspaces": {"main": {"external_account_id": "a_2"}},
                "agents": {
                    "runaway": {"workspace": "main", "agent_class": "batch", "policy_profile": "open"}
                },
                "limits": {"tool_calls_day": 7},
            },
        },
    }


VALUES = {"tenants.borealis.secrets.token": "tk-borealis", "providers.acme.credential": "sk-acme"}


@dataclasses.dataclass
class Control:
    target: DatabaseTarget
    shard: Shard
    scopes: Scopes
    journal: AdminJournal
    fleet: Fleet

    async def apply(
        self, document: dict[str, Any], values: dict[str, str] | None = None, principal: Principal = OPERATOR
    ) -> Applied:
        return await self.fleet.apply(principal, msgspec.json.encode(document), values or {})

    async def admin(self) -> asyncpg.Connection[asyncpg.Record]:
        """The superuser, whom row security does not hold."""
        return await connect_as(self.target, self.target.admin)

    async def value(self, sql: str, *args: object) -> Any:  # noqa: ANN401 - a column's type is the query's
        """One value, read as the superuser."""
        connection = await self.admin()
        try:
            return await connection.fetchval(sql, *args)
        finally:
            await connection.close()


@contextlib.asynccontextmanager
async def open_control(target: DatabaseTarget) -> AsyncIterator[Control]:
    shard = await Shard.open(target, ROOT_KEY, PoolSizes(gate=0, app=4, platform=2, control=3), CLOCK)
    try:
        scopes = Scopes(shard, CLOCK)
        journal = AdminJournal(CLOCK, "ins_test")
        yield Control(target, shard, scopes, journal, Fleet(scopes, shard.keyring, journal))
    finally:
        await shard.close()
