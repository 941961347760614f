"""All use cases of people, as one value: what a face is given."""

from __future__ import annotations

import dataclasses
from typing import Self

from tenantry.control.acknowledgements import Acknowledgements
from tenantry.control.fleet import Fleet
from tenantry.control.instances import Instances
from tenantry.control.keys import Keys
from tenantry.control.people import People
from tenantry.control.policies import Policies
from tenantry.control.quotas import Quotas
from tenantry.control.runs import Runs
from tenantry.control.secrets import Secrets
from tenantry.control.switches import Switches
from tenantry.control.tenants import Tenants
from tenantry.core.clock import Clock
from tenantry.identity.keys import ApiKeys
from tenantry.identity.limiter import FailedAuthLimiter
from tenantry.journal.admin import AdminJournal
from tenantry.storage.database import Shard
from tenantry.storage.directory import Directory
from tenantry.storage.scope import Scopes


@dataclasses.dataclass(frozen=True, slots=True)
class Services:
    """One for a control process."""

    people: People
    tenants: Tenants
    keys: Keys
    secrets: Secrets
    policies: Policies
    quotas: Quotas
    runs: Runs
    switches: Switches
    fleet: Fleet
    instances: Instances

    @classmethod
    async def open(cls, shard: Shard, clock: Clock, *, instance_id: str) -> Self:
        """Put together on `shard`, with two of its reserved control connections.

        Errors: `StorageUnavailableError`.
        """
        scopes = Scopes(shard, clock)
        keys = ApiKeys(scopes, Directory(shard), clock)
        journal = AdminJournal(clock, instance_id)
        acknowledgements = Acknowledgements(await shard.control_connection(), clock)
        await acknowledgements.start()
        switching = await shard.control_connection()
        return cls(
            people=People(keys, FailedAuthLimiter(clock)),
            tenants=Tenants(scopes),
            keys=Keys(scopes, keys, journal),
            secrets=Secrets(scopes, journal),
            policies=Policies(scopes, journal),
            quotas=Quotas(scopes, switching, journal),
            runs=Runs(scopes, journal),
            switches=Switches(scopes, switching, acknowledgements, journal, clock),
            fleet=Fleet(scopes, shard.keyring, journal),
            instances=Instances(acknowledgements),
        )
