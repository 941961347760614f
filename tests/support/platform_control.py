"""What people do to a running platform, through the use cases that its control process serves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tenantry.control.acknowledgements import Acknowledgements
from tenantry.control.fleet import Fleet
from tenantry.control.switches import Switches, SwitchOrder, SwitchResult
from tenantry.core.clock import SystemClock
from tenantry.journal.admin import AdminJournal
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.database import PoolSizes, Shard
from tenantry.storage.scope import Scopes
from tenantry.storage.seal import RootKey
from tests.support.platform_fleet import MODEL_KEY, platform_document
from tests.support.tenants import OPERATOR

CLOCK = SystemClock()


@dataclass(frozen=True)
class Switched:
    """A switch's answer, and when it was asked for and had returned (CLOCK_MONOTONIC, ns)."""

    result: SwitchResult
    asked_ns: int
    returned_ns: int


class PlatformControl:
    """An operator with the use cases of control."""

    def __init__(self, fleet: Fleet, switches: Switches) -> None:
        self._fleet = fleet
        self._switches = switches

    async def apply(self, model_url: str, tenants: dict[str, Any], values: dict[str, str]) -> None:
        document = {**platform_document(model_url), "tenants": tenants}
        given = {"providers.example.credential": MODEL_KEY, **values}
        await self._fleet.apply(OPERATOR, msgspec.json.encode(document), given)

    async def switch(self, tenant: str, verb: str, *, wait_ms: int = 5_000) -> Switched:
        order = msgspec.convert(
            {"level": "tenant", "verb": verb, "reason": "a test", "tenant_id": tenant, "wait_ms": wait_ms},
            SwitchOrder,
        )
        asked_ns = time.monotonic_ns()
        result = await self._switches.switch(OPERATOR, order)
        return Switched(result, asked_ns, time.monotonic_ns())


@contextlib.asynccontextmanager
async def open_control(target: DatabaseTarget, data: Path) -> AsyncIterator[PlatformControl]:
    """The use cases on connections of their own, under the installation's root key."""
    root_key = RootKey.from_file(data / "root.key", create=False)
    shard = await Shard.open(target, root_key, PoolSizes(gate=0, app=2, platform=1, control=2), CLOCK)
    try:
        scopes = Scopes(shard, CLOCK)
        journal = AdminJournal(CLOCK, "ins_test")
        acknowledgements = Acknowledgements(await shard.control_connection(), CLOCK)
        await acknowledgements.start()
        switches = Switches(scopes, await shard.control_connection(), acknowledgements, journal, CLOCK)
        yield PlatformControl(Fleet(scopes, shard.keyring, journal), switches)
    finally:
        await shard.close()
