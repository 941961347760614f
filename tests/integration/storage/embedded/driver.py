"""A supervisor to be killed: takes requests as JSON lines, answers each with one line. Run as a script.

`python embedded_driver.py UID` imports everything, then becomes UID for good (0 stays as it is).
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import sys
import threading
from pathlib import Path
from typing import Any

import asyncpg

from tenantry.storage.embedded import EmbeddedPostgres, Endpoint, list_orphans


class Driver:
    def __init__(self) -> None:
        self.server: EmbeddedPostgres | None = None
        self.endpoint: Endpoint | None = None

    def start(self, data: str, *, ephemeral: bool, run_as: str | None, system: str) -> dict[str, Any]:
        if self.server is None:
            self.server = EmbeddedPostgres(
                Path(data), ephemeral=ephemeral, run_as=run_as, system_root=Path(system)
            )
        self.endpoint = self.server.start()
        return {"socket_dir": str(self.endpoint.socket_dir), "pid": self.server.pid}

    def stop(self, timeout_s: float = 30) -> str:
        assert self.server is not None
        return str(self.server.stop(timeout_s))

    def crash_seen(self) -> bool:
        assert self.server is not None
        return self.server.wait_exited(10)

    def orphans(self, system: str) -> list[list[str]]:
        return [[str(orphan.home), str(orphan.data_dir)] for orphan in list_orphans(Path(system))]

    def ask(self, statement: str, role: str = "postgres") -> object:
        return asyncio.run(self._run(statement, role))

    def occupy(self, statement: str) -> int:
        """Run a statement in the background; answers with its backend's process id."""
        known: list[int] = []
        begun = threading.Event()

        async def work() -> None:
            assert self.endpoint is not None
            connection = await asyncpg.connect(self.endpoint.dsn("postgres"))
            known.append(connection.get_server_pid())
            begun.set()
            await connection.execute(statement)

        def run() -> None:
            try:
                asyncio.run(work())
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return

        threading.Thread(target=run, daemon=True).start()
        assert begun.wait(10)
        return known[0]

    async def _run(self, statement: str, role: str) -> object:
        assert self.endpoint is not None
        connection = await asyncpg.connect(self.endpoint.dsn(role))
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()


def main() -> None:
    uid = int(sys.argv[1])
    if uid != os.geteuid():
        os.setgroups([])
        os.setgid(pwd.getpwuid(uid).pw_gid)
        os.setuid(uid)
    driver = Driver()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: object = {"value": getattr(driver, request["do"])(**request["with"])}
        except Exception as error:  # noqa: BLE001 - the test decides what it expected
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    if driver.server is not None:
        driver.server.stop()


if __name__ == "__main__":
    main()
