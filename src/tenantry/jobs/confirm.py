"""Switches that some process had not acknowledged in time: confirmed once every living one has."""

from __future__ import annotations

from collections.abc import Mapping

from tenantry.storage.database import ControlConnection
from tenantry.storage.statements import Statement, load_statements


class ConfirmSwitches:
    """Writes down what whoever asked did not wait for."""

    def __init__(self, connection: ControlConnection) -> None:
        self._connection = connection
        self._statements: Mapping[str, Statement] = load_statements("tenantry.switches", "store.sql")

    async def run(self) -> int:
        """How many were confirmed; one statement. Errors: `StorageUnavailableError`."""
        return await self._connection.execute(self._statements["confirm_late"])
