"""What the tests of the embedded server share: a supervisor that can be killed, and waits on processes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pwd
import select
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tenantry.storage.embedded_binaries import find_install

DRIVER = Path(__file__).with_name("driver.py")
SOURCE = Path(__file__).parents[4] / "src"
PYTHON_PATH = os.pathsep.join((str(SOURCE), str(find_install().parents[1])))
NOBODY = 65534
ROOT = os.geteuid() == 0
# Counts for minutes, in a backend that looks at no latch.
BUSY = "do $$ begin for i in 1..20000000000 loop end loop; end $$"


class RefusedError(Exception):
    """What the supervisor answered instead of a value."""


@dataclass(frozen=True)
class Started:
    socket_dir: Path
    pid: int


@functools.cache
def python_for(uid: int) -> str | None:
    """A Python that this account can run with our packages: this one, or the system's of the same version."""
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for program in (sys.executable, system):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(
                [program, "-B", "-c", "import asyncpg, tenantry.storage.embedded"],
                check=True,
                capture_output=True,
                env={"PYTHONPATH": PYTHON_PATH},
                cwd="/",
                user=uid if ROOT else None,
                group=pwd.getpwuid(uid).pw_gid if ROOT else None,
                extra_groups=[] if ROOT else None,
            )
            return program
    return None


def accounts() -> list[int]:
    """The accounts that can supervise here: as root that and, if it can run this code, nobody; else we."""
    if not ROOT:
        return [os.geteuid()]
    return [0, NOBODY] if python_for(NOBODY) is not None else [0]


class Supervisor:
    """A process that runs an `EmbeddedPostgres`; `work` is a folder of its account that all can enter."""

    def __init__(self, uid: int, work: Path, *, path: Path | None = None, hostile: bool = False) -> None:
        self.work = work
        self.started: list[Started] = []
        python_path = f"{path}{os.pathsep}{PYTHON_PATH}" if path is not None else PYTHON_PATH
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": python_path, "HOME": str(work)}
        if hostile:
            environment |= {
                "PGPORT": "1",
                "PGOPTIONS": "-c nonsense=1",
                "PGDATABASE": "x",
                "PGDATA": "/nowhere",
            }
        self.process = subprocess.Popen(
            [python_for(uid) or sys.executable, "-B", str(DRIVER), str(uid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd="/",
        )

    def send(self, do: str, **arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, "with": arguments}).encode() + b"\n")
        self.process.stdin.flush()

    def __call__(self, do: str, **arguments: object) -> object:
        self.send(do, **arguments)
        assert self.process.stdout is not None
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise RefusedError(answer["error"])
        return answer["value"]

    def start(
        self, data: Path | None = None, *, ephemeral: bool = False, run_as: str | None = None
    ) -> Started:
        folder, system = str(data or self.work / "data"), str(self.work / "system")
        answer = self("start", data=folder, ephemeral=ephemeral, run_as=run_as, system=system)
        assert isinstance(answer, dict)
        self.started.append(Started(socket_dir=Path(answer["socket_dir"]), pid=answer["pid"]))
        return self.started[-1]

    def ask(self, statement: str, role: str = "postgres") -> object:
        return self("ask", statement=statement, role=role)

    def number(self, statement: str) -> int:
        answer = self.ask(statement)
        assert isinstance(answer, int)
        return answer

    def occupy(self) -> int:
        """Keep a backend busy; its process id."""
        answer = self("occupy", statement=BUSY)
        assert isinstance(answer, int)
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        """End the process; it stops its server first when it was not killed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(40)
        self.process.stdout.close()


MakeSupervisor = Callable[..., Supervisor]


def wait_ended(pid: int, timeout_s: float = 20) -> None:
    """Wait until a process, not our child, has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(timeout_s * 1000), f"process {pid} still lives"
    finally:
        os.close(pidfd)


def wait_until(true: Callable[[], bool], timeout_s: float = 10) -> None:
    """For what sends no signal: a file's appearance."""
    never = threading.Event()
    for _ in range(int(timeout_s / 0.002)):
        if true():
            return
        never.wait(0.002)
    raise AssertionError("did not come true")


def modes(path: Path) -> list[tuple[str, int, int, int]]:
    """Mode and owner of a path and of all its parents."""
    found = []
    for part in (path, *path.parents):
        status = part.stat()
        found.append((str(part), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid))
    return found


def account_named(*names: str) -> pwd.struct_passwd:
    """The first of these accounts that exists."""
    for name in names:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError(f"none of {names}")
