"""The supervisor of ``tenantry up``: one a data folder, it owns database, sockets and processes.

    locked -> listening -> database -> prepared -> control, gateways ready -> (fleet applied) -> serving
           -> draining -> ended

Whatever ends it (SIGTERM, Ctrl-C, an error, ``kill -9``) leaves nothing running: children end with their stdin,
the database with this process, the lock and the sockets with the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from tenantry.bootstrap import ChildRole, ChildSpec, DatabaseServer, Installation, prepare
from tenantry.cli.children import Child
from tenantry.cli.sockets import bind_pair, bind_private, url_of
from tenantry.core.clock import SystemClock
from tenantry.core.errors import TenantryError
from tenantry.settings import Settings, own_environment

LOOK_S: Final = 0.25
# After the drain a child closes its connections to the database; then it is killed.
CLOSE_S: Final = 5.0
DATABASE_STARTS_MAX: Final = 5


class AlreadyServedError(TenantryError):
    """Another supervisor serves from the data folder."""


class UnusableFolderError(TenantryError):
    """The data folder cannot be used; names it and the remedy."""


class Supervisor:
    """Runs an installation until it is told to stop. `say` gets one line of progress at a time."""

    def __init__(
        self, settings: Settings, *, ephemeral: bool, exit_with_stdin: bool, say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._exit_with_stdin = exit_with_stdin
        self._ephemeral = ephemeral
        self._say = say
        self._clock = SystemClock()
        self._stop = asyncio.Event()
        self._stops = 0
        self._children: list[Child] = []
        self.url = ""
        self.control_url = ""
        self.served = False

    async def run(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Serve; `ready` is awaited once everything answers. Returns after a signal, when all has ended.

        Errors: `TenantryError` naming what does not start and the remedy; then nothing is left running.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        if self._exit_with_stdin:
            self._watch_stdin(loop)
        with contextlib.ExitStack() as stack:
            data = make_folder(self._settings.data)
            stack.enter_context(locked(data))
            listeners = self._listen(stack, data)
            installation = Installation(data)
            database = DatabaseServer(self._settings, installation, ephemeral=self._ephemeral)
            try:
                self._say("database: starting")
                await asyncio.to_thread(database.start)
                self._say("database: bringing it up to date")
                await prepare(self._settings, installation, database.target, self._clock)
                await self._serve(database, listeners, ready)
            finally:
                await self._end(database)

    def _listen(self, stack: contextlib.ExitStack, data: Path) -> dict[str, socket.socket]:
        host = self._settings.host
        public, control = bind_pair(host, self._settings.port)
        stack.enter_context(public)
        stack.enter_context(control)
        path = data / "control.sock"
        private = stack.enter_context(bind_private(path))
        stack.callback(path.unlink, missing_ok=True)
        self.url, self.control_url = url_of(public, host), url_of(control, host)
        return {"public": public, "control": control, "private": private}

    async def _serve(
        self,
        database: DatabaseServer,
        listeners: dict[str, socket.socket],
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        if self._stop.is_set():
            return
        self._say("control and gateways: starting")
        own = ("control", "private")
        self._children = [self._child("control", ChildRole.CONTROL, database, listeners, own)]
        self._children += [
            self._child(f"gateway-{number}", ChildRole.GATEWAY, database, listeners, ("public",))
            for number in range(1, self._settings.gateways + 1)
        ]
        for child in self._children:
            child.start()
        stopped = asyncio.create_task(self._stop.wait())
        watched = [asyncio.create_task(self._watch(database))]
        watched += [asyncio.create_task(child.wait_failed()) for child in self._children]
        begun = asyncio.create_task(self._begin(ready))
        try:
            await asyncio.wait({stopped, begun, *watched}, return_when=asyncio.FIRST_COMPLETED)
            if begun.done():
                begun.result()
            await asyncio.wait({stopped, *watched}, return_when=asyncio.FIRST_COMPLETED)
            for watch in watched:
                if watch.done() and not self._stop.is_set():
                    watch.result()
        finally:
            everything: tuple[asyncio.Task[object], ...] = (stopped, begun, *watched)
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    async def _begin(self, ready: Callable[[], Awaitable[None]]) -> None:
        for child in self._children:
            await child.wait_ready()
        self.served = True
        await ready()

    def _child(
        self,
        name: str,
        role: ChildRole,
        database: DatabaseServer,
        listeners: dict[str, socket.socket],
        own: tuple[str, ...],
    ) -> Child:
        fds = [listeners[listener].fileno() for listener in own]

        def spec() -> bytes:
            return msgspec.json.encode(
                ChildSpec(
                    role=role,
                    name=name,
                    # Children see the ports that were taken, not those that were asked for.
                    variables=self._settings.with_options(
                        port=listeners["public"].getsockname()[1]
                    ).to_environment(),
                    target=database.target,
                    listeners=fds,
                )
            )

        return Child(name, spec, fds, own_environment(), self._clock, self._say)

    async def _watch(self, database: DatabaseServer) -> None:
        """Start the embedded server again when it died; the endpoint stays the same."""
        failures = 0
        while True:
            await asyncio.sleep(LOOK_S)
            if not database.is_down():
                failures = 0
                continue
            self._say("database: it ended; starting it again")
            try:
                await asyncio.to_thread(database.start)
            except TenantryError:
                failures += 1
                if failures >= DATABASE_STARTS_MAX:
                    raise
                await asyncio.sleep(LOOK_S * 2**failures)

    async def _end(self, database: DatabaseServer) -> None:
        drain_s = self._settings.drain_ms / 1000 + CLOSE_S
        control, gateways = self._children[:1], self._children[1:]
        if self._children:
            self._say("draining")
        await asyncio.gather(*(child.stop(drain_s) for child in gateways))
        await asyncio.gather(*(child.stop(CLOSE_S) for child in control))
        self._say("database: stopping")
        await asyncio.to_thread(database.stop)

    def _watch_stdin(self, loop: asyncio.AbstractEventLoop) -> None:
        def wait() -> None:
            with contextlib.suppress(OSError):
                while os.read(0, 4096):
                    pass
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._stop.set)

        threading.Thread(target=wait, name="stdin-watch", daemon=True).start()

    def _signalled(self) -> None:
        self._stops += 1
        self._stop.set()
        if self._stops > 1:
            for child in self._children:
                child.cut()


def make_folder(path: Path) -> Path:
    """The data folder, made 0700 when missing. Errors: it is a link, a file, or somebody else's."""
    folder = path.expanduser().absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.stat(follow_symlinks=False)
    except OSError as error:
        raise UnusableFolderError(f"cannot make the data folder {folder}: {error.strerror}") from None
    if not folder.is_dir() or folder.is_symlink():
        raise UnusableFolderError(f"{folder} is not a folder: move it away or name another with --data")
    if status.st_uid != os.geteuid():
        raise UnusableFolderError(
            f"{folder} belongs to user id {status.st_uid}, not to {os.geteuid()}: name another with --data"
        )
    if status.st_mode & 0o022:
        raise UnusableFolderError(f"{folder} can be written to by others; run: chmod go-w {folder}")
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel gives back however this process ends."""
    path = folder / "up.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            raise AlreadyServedError(
                f"another `tenantry up` (process {holder or 'unknown'}) serves from {folder}: end it, or "
                "name another folder with --data"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
