"""The composition root: settings in, objects out; plain constructors, no framework (ADR 1).

`Installation` names the files of a data folder, `DatabaseServer` is its database, `prepare` brings both up to
date before anything serves, and `build` makes what one child process of the supervisor serves.
"""

from __future__ import annotations

import asyncio
import enum
import os
import socket
from pathlib import Path
from typing import Final, Protocol, assert_never

import msgspec

from tenantry.adapters.registry import Adapters
from tenantry.api.app import ControlApp
from tenantry.api.idempotency import Answers
from tenantry.api.metrics import Metrics
from tenantry.api.serve import serve as serve_control
from tenantry.broker.broker import Broker
from tenantry.control.services import Services
from tenantry.core.clock import Clock
from tenantry.gate.batch import Batcher
from tenantry.gate.begin import Begin
from tenantry.gate.credential import FetchCredential
from tenantry.gate.gate import Gate
from tenantry.gate.identify import Identify, KnownLabels
from tenantry.gate.ledger import Ledger
from tenantry.gate.perform import Perform
from tenantry.gate.runs import Runs
from tenantry.gate.shed import ShedJournal
from tenantry.gate.views import Views
from tenantry.gateway.app import GatewayApp, Site
from tenantry.gateway.body import BodyBudget
from tenantry.gateway.entrance import Entrance
from tenantry.gateway.limits import DoorLimits
from tenantry.gateway.serve import serve
from tenantry.gateway.shed import Shed
from tenantry.identity.keys import ApiKeys
from tenantry.identity.limiter import FailedAuthLimiter
from tenantry.identity.operator_keys import ensure_operator_key
from tenantry.identity.tokens import RunTokens
from tenantry.jobs.background import background_jobs
from tenantry.jobs.runner import Jobs
from tenantry.settings import Settings
from tenantry.storage.database import DatabaseTarget, PoolSizes, Shard
from tenantry.storage.directory import Directory
from tenantry.storage.embedded import EmbeddedPostgres, list_orphans
from tenantry.storage.migrate import migrate
from tenantry.storage.scope import Scopes
from tenantry.storage.seal import RootKey
from tenantry.switches.instance import Instance
from tenantry.telemetry.logs import get_logger

GATEWAY_POOLS: Final = PoolSizes(gate=2, app=4, control=1)
CONTROL_POOLS: Final = PoolSizes(gate=2, app=6, platform=2, control=4)
CONTROL_DRAIN_S: Final = 5
CLOSE_S: Final = 5.0
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class ChildRole(enum.StrEnum):
    """What a child process of the supervisor is."""

    GATEWAY = "gateway"
    CONTROL = "control"


class ChildSpec(msgspec.Struct, frozen=True):
    """What a child is told: its settings as variables, its database, its inherited listening descriptors.

    Holds secrets; travels over a pipe, never as an argument.
    """

    role: ChildRole
    name: str
    variables: dict[str, str]
    target: DatabaseTarget
    listeners: list[int]


class Installation:
    """The files of a data folder."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.root_key = data / "root.key"
        self.run_token_key = data / "run-token.jwk"
        self.operator_key = data / "operator.key"
        self.control_socket = data / "control.sock"


class DatabaseServer:
    """The database of an installation: one that we run, or one that we are told of. Calls block."""

    def __init__(self, settings: Settings, installation: Installation, *, ephemeral: bool) -> None:
        self._url = settings.database_url
        self._root_key = load_root_key(settings, installation)
        self._embedded = (
            None
            if self._url is not None
            else EmbeddedPostgres(installation.data, ephemeral=ephemeral, run_as=settings.database_user)
        )
        self._target: DatabaseTarget | None = None

    @property
    def target(self) -> DatabaseTarget:
        """Where it is met, once started."""
        assert self._target is not None, "start comes first"
        return self._target

    def start(self) -> None:
        """Serve; returns at once when it serves already. Errors: `TenantryError` with the remedy."""
        if self._embedded is not None:
            self._target = DatabaseTarget.from_endpoint(self._embedded.start())
        else:
            assert self._url is not None
            self._target = DatabaseTarget.from_url(self._url, self._root_key)

    def is_down(self) -> bool:
        """Whether the server that we run has ended; an external one is its owner's to watch."""
        return self._embedded is not None and not self._embedded.running

    def stop(self) -> None:
        """End the server that we run."""
        if self._embedded is not None:
            self._embedded.stop()


def load_root_key(settings: Settings, installation: Installation) -> RootKey:
    """The root key of the settings, else of the data folder, made there at the first start."""
    if settings.root_key is not None:
        return RootKey.from_text(settings.root_key)
    return RootKey.from_file(installation.root_key)


async def prepare(
    settings: Settings, installation: Installation, target: DatabaseTarget, clock: Clock
) -> list[str]:
    """Bring database and keys up to date before anything serves; the names of the files applied.

    Errors: `TenantryError` naming the migration, the key file or what the server lacks.
    """
    applied = await migrate(target)
    RunTokens.from_file(installation.run_token_key, clock)
    sizes = PoolSizes(gate=0, app=1, platform=1, control=0)
    shard = await Shard.open(target, load_root_key(settings, installation), sizes, clock)
    try:
        scope = Scopes(shard, clock).platform(reason="start of the platform", operator="supervisor")
        async with scope:
            await ensure_operator_key(scope, Directory(shard), installation.operator_key, clock)
    finally:
        await shard.close()
    return applied


class Serving(Protocol):
    """What one child process serves."""

    async def serve(self, stop: asyncio.Event, started: asyncio.Event) -> None:
        """Serve until `stop` is set and the open requests have ended; sets `started` once it accepts."""

    async def close(self) -> None:
        """Give back leases and connections."""


async def build(spec: ChildSpec, settings: Settings, clock: Clock) -> Serving:
    """What the specification asks for, connected and with its lease taken. Errors: `TenantryError`."""
    match spec.role:
        case ChildRole.GATEWAY:
            return await Gateway.build(spec, settings, clock)
        case ChildRole.CONTROL:
            return await Control.build(spec, settings, clock)
        case _:
            assert_never(spec.role)


class Gateway:
    """One gateway process: its doors, its gate, its ways out and its place among the instances."""

    def __init__(
        self, spec: ChildSpec, settings: Settings, clock: Clock, shard: Shard, instance: Instance
    ) -> None:
        self._listener = socket.socket(fileno=spec.listeners[0])
        self._settings = settings
        self._shard = shard
        self._instance = instance
        self._log = get_logger("gateway")
        installation = Installation(settings.data.expanduser().absolute())
        self._folder = os.open(installation.data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._clock = clock
        self._installation = installation

    @classmethod
    async def build(cls, spec: ChildSpec, settings: Settings, clock: Clock) -> Gateway:
        """Connect, take the lease, compose. Errors: `StorageUnavailableError`."""
        installation = Installation(settings.data.expanduser().absolute())
        root_key = load_root_key(settings, installation)
        shard = await Shard.open(spec.target, root_key, GATEWAY_POOLS, clock)
        instance = Instance(await shard.control_connection(), clock, role="gateway", address=spec.name)
        gateway = cls(spec, settings, clock, shard, instance)
        await gateway._compose()
        return gateway

    async def _compose(self) -> None:
        clock, shard, instance = self._clock, self._shard, self._instance
        scopes = Scopes(shard, clock)
        tokens = RunTokens.from_file(self._installation.run_token_key, clock)
        keys = ApiKeys(scopes, Directory(shard), clock)
        self._batcher = await make_batcher(shard, instance, clock)
        self._ledger = Ledger(self._batcher, clock)
        instance.report_open(self._ledger.oldest_open_age_s)
        self._adapters = Adapters(clock)
        self._shed = ShedJournal(scopes, instance.instance_id, clock)
        views, labels = Views(), KnownLabels()
        begin = Begin(self._ledger, views, labels, clock)
        gate = Gate(
            Identify(tokens, scopes, views),
            begin,
            FetchCredential(Broker(clock)),
            Perform(self._adapters, instance, clock),
            self._ledger,
            Runs(scopes, views, begin, self._ledger, tokens, clock),
            self._shed,
            clock,
        )
        limits = door_limits(self._settings)
        entrance = Entrance(
            gate=gate,
            keys=keys,
            tokens=tokens,
            scopes=scopes,
            failures=FailedAuthLimiter(clock),
            shed=Shed(clock, limits),
            bodies=BodyBudget(limits),
            limits=limits,
            clock=clock,
        )
        self._app = GatewayApp(entrance, self._site(), is_ready=lambda: instance.ready, on_fault=self._report)
        self._batcher.start()
        self._shed.start()
        await instance.start()

    def _site(self) -> Site:
        settings = self._settings
        port = self._listener.getsockname()[1]
        return Site(
            hosts=allowed_hosts(settings),
            origins=settings.allowed_origins,
            public_url=public_url(settings, port),
            control_socket=f"/proc/self/fd/{self._folder}/{self._installation.control_socket.name}",
        )

    async def serve(self, stop: asyncio.Event, started: asyncio.Event) -> None:
        """Serve until `stop`, or until this process can follow the switches no longer, which it raises."""
        followed = asyncio.create_task(self._instance.followed())
        followed.add_done_callback(lambda _: stop.set())
        try:
            drain_s = -(-self._settings.drain_ms // 1000)
            await serve(self._app, self._listener, stop, started=started, drain_s=drain_s)
            if followed.done() and not followed.cancelled():
                followed.result()
        finally:
            followed.cancel()

    async def close(self) -> None:
        """Settle what is open, give the lease back, close every connection."""
        await self._shed.close()
        await self._ledger.drain(CLOSE_S)
        await self._instance.stop()
        await self._batcher.close()
        await self._adapters.close()
        await self._shard.close()
        os.close(self._folder)

    def _report(self, error: Exception, request_id: str) -> None:
        self._log.error("a fault nobody foresaw", request_id=request_id, exc_info=error)


class Control:
    """The control process: people's use cases on a port and a socket of their own, and the background jobs."""

    def __init__(self, spec: ChildSpec, settings: Settings, clock: Clock, shard: Shard) -> None:
        self._listeners = [socket.socket(fileno=fd) for fd in spec.listeners]
        self._name = spec.name
        self._installation = Installation(settings.data.expanduser().absolute())
        self._settings = settings
        self._clock = clock
        self._shard = shard
        self._log = get_logger("control")

    @classmethod
    async def build(cls, spec: ChildSpec, settings: Settings, clock: Clock) -> Control:
        """Connect, take the lease, compose. Errors: `StorageUnavailableError`."""
        root_key = load_root_key(settings, Installation(settings.data.expanduser().absolute()))
        shard = await Shard.open(spec.target, root_key, CONTROL_POOLS, clock)
        control = cls(spec, settings, clock, shard)
        await control._compose()
        return control

    async def _compose(self) -> None:
        shard, clock = self._shard, self._clock
        self._instance = Instance(await shard.control_connection(), clock, role="control", address=self._name)
        services = await Services.open(shard, clock, instance_id=self._instance.instance_id)
        self._jobs = await self._make_jobs()
        metrics, answers = Metrics(self._jobs.lags), Answers(clock)
        # The port is anybody's who can reach it; the socket is this user's, and the gateways'.
        self._apps = [
            ControlApp(
                services,
                metrics,
                answers,
                clock,
                hosts=hosts,
                is_ready=lambda: self._instance.ready,
                on_fault=self._report,
            )
            for hosts in (allowed_hosts(self._settings), None)
        ]
        self._batcher.start()
        await self._instance.start()
        self._jobs.start()

    async def _make_jobs(self) -> Jobs:
        """The jobs settle and end runs as the gate does, over a ledger of this process's own."""
        shard, clock, instance = self._shard, self._clock, self._instance
        self._batcher = await make_batcher(shard, instance, clock)
        self._ledger = Ledger(self._batcher, clock)
        instance.report_open(self._ledger.oldest_open_age_s)
        scopes, views = Scopes(shard, clock), Views()
        tokens = RunTokens.from_file(self._installation.run_token_key, clock)
        begin = Begin(self._ledger, views, KnownLabels(), clock)
        runs = Runs(scopes, views, begin, self._ledger, tokens, clock)
        return await background_jobs(
            shard,
            clock,
            settle=self._ledger.settle,
            close_run=runs.close,
            on_fault=lambda job, error: self._log.error("a job failed", job=job, exc_info=error),
        )

    async def serve(self, stop: asyncio.Event, started: asyncio.Event) -> None:
        """Serve until `stop`, or until this process can follow the switches no longer, which it raises."""
        followed = asyncio.create_task(self._instance.followed())
        followed.add_done_callback(lambda _: stop.set())
        try:
            await serve_control(
                list(zip(self._apps, self._listeners, strict=True)),
                stop,
                started=started,
                drain_s=CONTROL_DRAIN_S,
            )
            if followed.done() and not followed.cancelled():
                followed.result()
        finally:
            followed.cancel()

    async def close(self) -> None:
        """Stop the jobs, give the lease back, close every connection."""
        await self._jobs.stop()
        await self._ledger.drain(CLOSE_S)
        await self._instance.stop()
        await self._batcher.close()
        await self._shard.close()

    def _report(self, error: Exception, request_id: str) -> None:
        self._log.error("a fault nobody foresaw", request_id=request_id, exc_info=error)


async def make_batcher(shard: Shard, instance: Instance, clock: Clock) -> Batcher:
    """The group commit of one process, on both of its gate connections; not yet started."""
    return Batcher(
        await shard.gate_connection(),
        await shard.gate_connection(),
        shard_id=shard.shard_id,
        instance_id=instance.instance_id,
        clock=clock,
    )


def door_limits(settings: Settings) -> DoorLimits:
    """The doors' bounds, as far as they are settings."""
    return DoorLimits(
        tenant_inflight_max=settings.tenant_inflight_max,
        tenant_requests_per_second=settings.tenant_requests_per_second,
        tenant_requests_burst=settings.tenant_requests_per_second,
        model_timeout_ms=settings.model_timeout_ms,
        run_deadline_ms=settings.run_deadline_ms,
    )


def allowed_hosts(settings: Settings) -> tuple[str, ...]:
    """Values of Host that are answered: what was configured, and the address listened on."""
    own = f"[{settings.host}]" if ":" in settings.host else settings.host
    local = ("localhost", "127.0.0.1", "[::1]") if settings.host in LOOPBACK else ()
    return tuple(dict.fromkeys((*settings.allowed_hosts, own, *local)))


def public_url(settings: Settings, port: int) -> str:
    """Where agents reach the doors. Listening on every address, they are told of loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - compared only
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def list_orphan_clusters() -> list[tuple[Path, Path | None]]:
    """Embedded clusters that no data folder names any more, each with the folder that it belonged to."""
    return [(orphan.home, orphan.data_dir) for orphan in list_orphans()]
