"""The processes that can act, as operators see them."""

from __future__ import annotations

import datetime as dt

import msgspec

from tenantry.control.acknowledgements import Acknowledgements
from tenantry.core.ids import InstanceId
from tenantry.core.principal import Principal, Right
from tenantry.identity.rights import require


class InstanceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One process. ``lapsed``: its lease is over, and the reaper settles what it held. Aware UTC."""

    instance_id: InstanceId
    role: str
    address: str | None
    started_at: dt.datetime
    lease_expires_at: dt.datetime
    oldest_open_at: dt.datetime
    acked_switch_seq: int
    lapsed: bool


class Instances:
    """Use cases of reading processes."""

    def __init__(self, acknowledgements: Acknowledgements) -> None:
        self._acknowledgements = acknowledgements

    async def list_instances(self, principal: Principal) -> list[InstanceRow]:
        """Every process that has, or lately had, a lease; an operator's to see."""
        require(principal, Right.FLEET_APPLY)
        return await self.observe()

    async def observe(self) -> list[InstanceRow]:
        """The same for the platform's own metrics and readiness; one round trip."""
        return [
            InstanceRow(**{name: row[name] for name in InstanceRow.__struct_fields__})
            for row in await self._acknowledgements.list_instances()
        ]
