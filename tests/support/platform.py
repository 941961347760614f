"""A real platform for the tests of its faults: ``tenantry up``, the example services with their books, and levers.

    async with running_platform(gateways=3) as platform: ...

Everything is a process of its own, as in production: supervisor, control, gateways, PostgreSQL, a model
provider and a ticket service. The test stands outside with the operator's key, the superuser's connection
(`platform_probe`), the use cases of people (`platform_control`) and signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.embedded_settings import DATABASE, PORT, SUPERUSER
from tests.e2e.platforms import START_S, children_of, data_folder, launch
from tests.e2e.platforms import Platform as Served
from tests.examples.servers import Server, running
from tests.support.platform_client import Run, open_run
from tests.support.platform_control import PlatformControl, open_control
from tests.support.platform_fleet import MODEL_KEY, tenant_document, ticket_token
from tests.support.platform_probe import Probe, open_probe

TICKET_TENANTS = ("borealis", "aurora")
_NUMBERS = itertools.count(1)


@dataclass
class Platform:
    """What runs. Synchronous parts work without a loop; `client`, `probe` and `control` belong to the test's."""

    served: Served
    model: Server
    tickets: Server
    gateways: int
    log: list[str]
    _stopped: set[int] = field(default_factory=set)

    @property
    def url(self) -> str:
        return self.served.url

    @property
    def data(self) -> Path:
        return self.served.data

    @property
    def operator_key(self) -> str:
        return (self.data / "operator.key").read_text().strip()

    @property
    def target(self) -> DatabaseTarget:
        """The database as the superuser meets it; the socket's folder stays the same over restarts."""
        record = json.loads((self.data / "postgres.json").read_text())
        return DatabaseTarget(record["socket_dir"], PORT, DATABASE, SUPERUSER)

    def gateway_pids(self) -> list[int]:
        """Who listens on the public port."""
        inode = _listening_inode(int(self.url.rpartition(":")[2]))
        return sorted(pid for pid in children_of(self.served.process.pid) if inode in _sockets_of(pid))

    def database_pid(self) -> int:
        """The postmaster."""
        for pid in children_of(self.served.process.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip().startswith("postgres"):
                    return pid
        raise ProcessLookupError("no postmaster runs")

    def faults(self) -> list[str]:
        """What its processes logged as failures that nobody foresaw."""
        return [line for line in self.log if "nobody foresaw" in line or "this process failed" in line]

    def stop(self, pid: int) -> None:
        """SIGSTOP, undone at the latest when the platform ends."""
        os.kill(pid, signal.SIGSTOP)
        self._stopped.add(pid)

    def resume(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        self._stopped.discard(pid)

    def resume_all(self) -> None:
        for pid in list(self._stopped):
            self.resume(pid)

    def database_tree(self) -> list[int]:
        """The postmaster and its backends."""
        root = self.database_pid()
        return [root, *children_of(root)]

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[aiohttp.ClientSession]:
        """A client without a connection limit; each request on a connection of its own, so over all gateways."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=50)
        async with aiohttp.ClientSession(self.url, connector=connector, timeout=timeout) as session:
            yield session

    def probe(self) -> contextlib.AbstractAsyncContextManager[Probe]:
        return open_probe(self.target)

    def control(self) -> contextlib.AbstractAsyncContextManager[PlatformControl]:
        return open_control(self.target, self.data)

    async def add_tenant(self, prefix: str = "t", **limits: int) -> str:
        """Register a tenant with workspace ``main`` and agent ``helper``; `limits` are the tenant's."""
        name = f"{prefix}_{next(_NUMBERS)}"
        await self.apply({name: tenant_document(name, limits=limits)}, {})
        return name

    async def apply(self, tenants: dict[str, Any], values: dict[str, str]) -> None:
        async with self.control() as control:
            await control.apply(self.model.url, tenants, values)

    async def add_ticket_tenants(self) -> None:
        """The tenants that the ticket service knows, each with its own credential."""
        tenants = {name: tenant_document(name, tickets_url=self.tickets.url) for name in TICKET_TENANTS}
        values = {f"tenants.{name}.secrets.desk": ticket_token(name) for name in TICKET_TENANTS}
        await self.apply(tenants, values)

    async def open_run(self, client: aiohttp.ClientSession, tenant: str, **options: Any) -> Run:  # noqa: ANN401
        return await open_run(client, self.operator_key, tenant, **options)

    async def until_ready(self, timeout_s: float = 20.0) -> None:
        """Wait until every gateway that should run does, and answers."""
        async with asyncio.timeout(timeout_s), self.client() as client:
            streak = 0
            while streak < 3 * self.gateways:
                streak = streak + 1 if await self._is_ready(client) else 0
                if not streak:
                    await asyncio.sleep(0.05)

    async def _is_ready(self, client: aiohttp.ClientSession) -> bool:
        if len(self.gateway_pids()) != self.gateways:
            return False
        try:
            async with client.get("/readyz", timeout=aiohttp.ClientTimeout(total=2)) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


@contextlib.contextmanager
def serve_platform(books: Path, *, gateways: int = 3) -> Iterator[Platform]:
    """Start everything, about 6 s; end it all, whatever state it is in. For fixtures wider than one test's loop."""
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(running("model_server.py", books / "model.jsonl", "--key", MODEL_KEY))
        credentials = [
            part for name in TICKET_TENANTS for part in ("--credential", f"{name}={ticket_token(name)}")
        ]
        tickets = stack.enter_context(
            running("ticket_service.py", books / "tickets.jsonl", *credentials, "--ticket", "zd_99102")
        )
        data = stack.enter_context(data_folder())
        log: list[str] = []
        served = stack.enter_context(_serving(data, log, "--ephemeral", "--gateways", str(gateways)))
        platform = Platform(served, model, tickets, gateways, log)
        stack.callback(platform.resume_all)
        yield platform


@contextlib.asynccontextmanager
async def running_platform(books: Path, *, gateways: int = 3) -> AsyncIterator[Platform]:
    """`serve_platform` for one test."""
    with serve_platform(books, gateways=gateways) as platform:
        yield platform


@contextlib.contextmanager
def _serving(data: Path, log: list[str], *options: str) -> Iterator[Served]:
    """``tenantry up`` until the block ends, its log in memory; it never outlives this process."""
    with launch(data, *options) as process:
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        assert stdin is not None and stdout is not None and stderr is not None
        listener = threading.Thread(target=lambda: log.extend(stderr), daemon=True)
        listener.start()
        timer = threading.Timer(START_S, process.kill)
        timer.start()
        try:
            word, _, url = stdout.readline().strip().partition(" ")
            timer.cancel()
            assert word == "ready", "".join(log)
            yield Served(data, process, url)
        finally:
            timer.cancel()
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            listener.join(5)


def _listening_inode(port: int) -> str:
    wanted = f":{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(wanted) and fields[3] == "0A":
            return fields[9]
    raise LookupError(f"nobody listens on port {port}")


def _sockets_of(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    return found
