"""Embedded PostgreSQL: one cluster of our own, run as a child of the supervisor (DESIGN §5).

States, each left safely by `kill -9`:

    claimed    DATA/postgres.lock is held; DATA/postgres.json names the cluster's home
    built      HOME/data exists: initdb works in HOME/data.new, which is renamed last
    running    the postmaster is our child; its socket is in a runtime folder of this supervisor only
    stopped    the postmaster has ended, the runtime folder is gone, the locks are given back

Folders:

    DATA/postgres.lock .json .log      ours
    HOME                               DATA/postgres; as root, when the server's account cannot enter DATA,
                                       /var/lib/tenantry/clusters/ID; when ephemeral, the runtime folder
    HOME/owner.json lock conf/         ours, the server's account may read
    HOME/data                          the server's account's, 0700
    /tmp/tenantry-UID-RANDOM/{lock,s}  the runtime folder, short because a socket's path is at most 107 bytes

As root the server runs under an unprivileged account, and root opens nothing inside HOME/data to write.
"""

from __future__ import annotations

import contextlib
import re
import signal
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import msgspec

from tenantry.core.clock import SystemClock
from tenantry.storage import embedded_claim
from tenantry.storage.embedded_claim import Claim, Orphan, Place
from tenantry.storage.embedded_places import (
    RUNTIME_ROOT,
    SYSTEM_ROOT,
    EmbeddedPostgresError,
    make_given,
    own_account,
    owner_of,
    read_small,
    remove_tree,
    sync_folder,
    write_for,
)
from tenantry.storage.embedded_process import Keeper, ask, child_command, end_server, run_as, run_child
from tenantry.storage.embedded_settings import (
    DATABASE,
    PORT,
    SUPERUSER,
    account_map,
    host_based_access,
    server_command,
    server_settings,
)

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "Endpoint", "Orphan", "Stopped", "list_orphans"]

SOCKET = f".s.PGSQL.{PORT}"
START_S = 60.0
LOOK_S = 0.02
TAKE_OVER_S = 30.0
# The postmaster itself gives its children 5 s before it kills them.
IMMEDIATE_S = 7.0
NO_SUCH_DATABASE = "3D000"
NOT_LET_IN = "28000"


class Endpoint(msgspec.Struct, frozen=True):
    """Where the server is met: the socket's folder, the port that names it there, database, superuser."""

    socket_dir: Path
    port: int
    database: str
    superuser: str

    def dsn(self, role: str, *, database: str | None = None) -> str:
        """A URL for asyncpg or libpq that logs in as `role`; no secret in it, the kernel vouches for us."""
        name, folder = quote(database or self.database, safe=""), quote(str(self.socket_dir), safe="")
        return f"postgresql://{quote(role, safe='')}@/{name}?host={folder}&port={self.port}"


class Stopped(StrEnum):
    """How a server ended: CLEAN wrote a last checkpoint; after UNCLEAN the next start recovers."""

    CLEAN = "clean"
    UNCLEAN = "unclean"
    NOT_RUNNING = "not_running"


class EmbeddedPostgres:
    """One PostgreSQL 18 cluster for the data folder `data_dir`, which is made when missing.

    `ephemeral`: the cluster lives in the runtime folder and is removed by `stop`, or by the next start of any
    cluster of this user when the supervisor was killed. `run_as`: as root, the account for a *new* cluster,
    else `postgres` or `nobody`. Not for use from two threads at once. Cost: a first start about 1.5 s, a
    later one 0.2 s.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        ephemeral: bool = False,
        run_as: str | None = None,
        system_root: Path = SYSTEM_ROOT,
        runtime_root: Path = RUNTIME_ROOT,
    ) -> None:
        self._place = Place(data_dir, ephemeral, run_as, system_root, runtime_root)
        self._clock = SystemClock()
        self._claim: Claim | None = None
        self._keeper: Keeper | None = None

    def __enter__(self) -> Endpoint:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the postmaster lives; False after a crash, and then `start` recovers."""
        return self._keeper is not None and self._keeper.is_alive() and not self._keeper.exited.is_set()

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._keeper.pid if self._keeper is not None and self.running else None

    def wait_exited(self, timeout_s: float) -> bool:
        """Wait for the postmaster's end, at most `timeout_s`; True when it has ended or never ran."""
        return self._keeper is None or self._keeper.exited.wait(timeout_s)

    def start(self) -> Endpoint:
        """Serve, and return once a login works (at most 60 s); at once when it runs already.

        Ends what a killed supervisor left running on this data. After a crash of the server the endpoint
        stays the same, also when this start fails: whoever is connected to it waits there for the next one.
        Errors: `EmbeddedPostgresError`, with the server's last words when it gave any; then nothing of ours
        runs, and the locks are free unless it had run before (`stop` frees them).
        """
        has_run = self._keeper is not None
        try:
            if self._claim is not None and not self.running and not self._claim.sound():
                self.stop()
            if self._claim is None:
                self._claim = embedded_claim.take(self._place)
            claim = self._claim
            if not self.running:
                _end_leftovers(claim)
                _build(claim)
                _configure(claim)
                self._launch(claim)
        except BaseException as error:
            with contextlib.suppress(EmbeddedPostgresError):
                if has_run and self._claim is not None:
                    self._end_server(self._claim, 5.0)
                else:
                    self.stop(5.0)
            if isinstance(error, OSError):
                raise EmbeddedPostgresError(
                    f"cannot run PostgreSQL in {self._place.data_dir}: {error}"
                ) from error
            raise
        return Endpoint(socket_dir=claim.socket_dir, port=PORT, database=DATABASE, superuser=SUPERUSER)

    def stop(self, timeout_s: float = 30.0) -> Stopped:
        """End the server: fast for `timeout_s`, then without a checkpoint, then by force. Says how it went.

        Errors: `EmbeddedPostgresError` when even force did not end it; the locks stay ours.
        """
        claim, outcome = self._claim, Stopped.NOT_RUNNING
        if claim is not None:
            outcome = self._end_server(claim, timeout_s)
        self._keeper = self._claim = None
        if claim is not None:
            claim.release()
        return outcome

    def _end_server(self, claim: Claim, timeout_s: float) -> Stopped:
        keeper = self._keeper
        if keeper is None or not self.running:
            return Stopped.NOT_RUNNING
        keeper.signal(signal.SIGINT)
        if not keeper.exited.wait(timeout_s):
            keeper.signal(signal.SIGQUIT)
            keeper.exited.wait(IMMEDIATE_S)
        if not keeper.exited.is_set():
            end_server(claim.account, claim.cluster, grace_s=0)
            if not keeper.exited.wait(IMMEDIATE_S):
                raise EmbeddedPostgresError(
                    f"process {keeper.pid} survives SIGKILL: look at the disk it waits for"
                )
        return Stopped.CLEAN if _shut_down(claim) else Stopped.UNCLEAN

    def _launch(self, claim: Claim) -> None:
        command = server_command(
            claim.binaries.program("postgres"),
            cluster=claim.cluster,
            configuration=claim.configuration,
            socket_dir=claim.socket_dir,
        )
        death_signal = str(int(signal.SIGINT))
        keeper = Keeper(child_command("exec", claim.account, death_signal, *command), claim.log)
        self._keeper = keeper
        keeper.launch()
        deadline = self._clock.monotonic() + START_S
        answer: str | None = None
        while self._clock.monotonic() < deadline:
            answer = ask(claim.socket_dir / SOCKET, user=SUPERUSER, database=DATABASE)
            if answer == "":
                return
            if answer == NO_SUCH_DATABASE:
                _create_database(claim)
            elif answer == NOT_LET_IN or keeper.exited.wait(LOOK_S):
                break
        state = f"ended with status {keeper.returncode}" if keeper.exited.is_set() else f"answered {answer}"
        raise EmbeddedPostgresError(
            f"PostgreSQL in {claim.home} {state} instead of letting us in; its log {claim.log.path} ends: "
            f"{claim.log.tail() or '(nothing)'}"
        )


def list_orphans(system_root: Path = SYSTEM_ROOT) -> list[Orphan]:
    """Clusters outside their data folder that none names any more; to remove them is a person's act."""
    return embedded_claim.list_orphans(system_root)


def _shut_down(claim: Claim) -> bool:
    """Whether the cluster's own control file says so: after an immediate shutdown the status is 0 too."""
    command = [claim.binaries.program("pg_controldata"), str(claim.cluster)]
    _, said = run_as(claim.account, command, timeout_s=IMMEDIATE_S)
    return re.search(r"^Database cluster state: +shut down$", said, re.MULTILINE) is not None


def _end_leftovers(claim: Claim) -> None:
    """End what a killed supervisor or postmaster left behind in this cluster, and remove its stale files.

    Once no process works in the cluster, `postmaster.pid` is stale whatever pid it names: PostgreSQL itself
    would take any process of the account that has this pid by now for a live postmaster, and refuse.
    """
    for folder, stale in (
        (claim.unfinished, claim.unfinished),
        (claim.cluster, claim.cluster / "postmaster.pid"),
    ):
        if stale.is_symlink() or stale.exists():
            if not end_server(claim.account, folder, grace_s=TAKE_OVER_S):
                raise EmbeddedPostgresError(f"a PostgreSQL process in {folder} does not end: end it by hand")
            if stale == folder:
                remove_tree(folder)
            else:
                stale.unlink(missing_ok=True)
    for name in (SOCKET, f"{SOCKET}.lock"):
        (claim.socket_dir / name).unlink(missing_ok=True)


def _build(claim: Claim) -> None:
    """Make the cluster when there is none. It appears whole or not at all."""
    if owner_of(claim.cluster) is not None:
        version = (read_small(claim.cluster / "PG_VERSION") or "").strip()
        if version != claim.binaries.major:
            raise EmbeddedPostgresError(
                f"the cluster in {claim.home} is of PostgreSQL {version or '(unknown)'}, the programs are of "
                f"{claim.binaries.major}: dump it with the version it was made with, load it into a new one"
            )
        return
    make_given(claim.unfinished, claim.account)
    command = [
        claim.binaries.program("initdb"),
        "--pgdata",
        str(claim.unfinished),
        f"--username={SUPERUSER}",
        "--auth-local=peer",
        "--auth-host=reject",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--data-checksums",
        "--no-instructions",
    ]
    # A lasting cluster is synced here (0.1 s): the server later syncs only what it wrote itself.
    command += ["--no-sync"] if claim.place.ephemeral else []
    status, said = run_as(claim.account, command, timeout_s=START_S)
    if status != 0:
        raise EmbeddedPostgresError(f"initdb in {claim.home} failed with status {status}: {said[-2000:]}")
    claim.unfinished.rename(claim.cluster)
    sync_folder(claim.home)
    claim.record(built=not claim.place.ephemeral)


def _configure(claim: Claim) -> None:
    texts = {
        "postgresql.conf": server_settings(),
        "pg_hba.conf": host_based_access(),
        "pg_ident.conf": account_map((own_account(), claim.account)),
    }
    for name, text in texts.items():
        if read_small(claim.configuration / name) != text:
            write_for(claim.configuration / name, text, claim.account)


def _create_database(claim: Claim) -> None:
    """The platform's database, apart from `postgres`, so that it can be cloned while nobody is in it."""
    place = ["--host", str(claim.socket_dir), "--port", str(PORT), "--username", SUPERUSER, "--no-password"]
    command = [claim.binaries.program("createdb"), *place, f"--maintenance-db={SUPERUSER}", DATABASE]
    status, said = run_child(command, timeout_s=START_S)
    if status != 0:
        raise EmbeddedPostgresError(f"cannot create the database {DATABASE!r}: {said}")
