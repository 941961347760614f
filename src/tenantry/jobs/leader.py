"""One process a shard runs the background jobs: whoever holds an advisory lock, with its reserved connection.

The lock ends with the connection, so a leader that dies is followed at once. Two leaders for a moment do no
harm: every job is idempotent, and the gate settles an action once.
"""

from __future__ import annotations

from collections.abc import Mapping

from tenantry.core.errors import TenantryError
from tenantry.storage.database import ControlConnection
from tenantry.storage.statements import Statement, load_statements


class Leader:
    """The lease; it lasts as long as the session of `connection` does."""

    def __init__(self, connection: ControlConnection) -> None:
        self._connection = connection
        self._statements: Mapping[str, Statement] = load_statements("tenantry.jobs", "leader.sql")

    async def is_held(self) -> bool:
        """Take the lease, or see that it is still ours; one round trip. False when the database is away."""
        try:
            row = await self._connection.fetch_one(self._statements["hold"])
        except TenantryError:
            return False
        return row is not None and bool(row["held"])
