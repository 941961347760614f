"""The embedded server's processes: starting, watching, asking whether it serves, ending.

A postmaster is the child of one thread of ours, its keeper, which lives as long as the postmaster does. That
matters: the kernel's parent-death signal follows the *thread* that forked. So when the supervisor ends in any
way, `kill -9` included, the postmaster gets SIGINT and shuts down fast and clean.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from tenantry.storage.embedded_places import Account, EmbeddedPostgresError, open_plain

CHILD_PROGRAM = Path(__file__).with_name("embedded_child.py")
# Nothing of the supervisor's: no PG* variable, no preloaded library, no secret reaches the server.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
LOG_BYTES_MAX = 16 * 1024 * 1024
LOG_LOOK_S = 5.0
LOG_TAIL_BYTES = 2_000
ANSWER_BYTES_MAX = 65_536


def child_command(verb: str, account: Account, *arguments: str) -> list[str]:
    """The command of `embedded_child.py` that runs `verb` as `account`."""
    if not sys.executable:
        raise EmbeddedPostgresError(
            "the running Python does not know its own program: start it by its full path"
        )
    identity = (str(os.getpid()), str(account.uid), str(account.gid))
    return [sys.executable, "-I", "-S", str(CHILD_PROGRAM), verb, *identity, *arguments]


def run_child(command: Sequence[str], *, timeout_s: float) -> tuple[int, str]:
    """Run to the end; exit status and what it wrote, both streams. A late one is killed (status -9)."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    return process.returncode, output.decode("utf-8", "replace").strip()


def run_as(account: Account, command: Sequence[str], *, timeout_s: float) -> tuple[int, str]:
    """Run a program as `account`, killed if we die; exit status and what it wrote."""
    return run_child(child_command("exec", account, str(int(signal.SIGKILL)), *command), timeout_s=timeout_s)


def can_reach(account: Account, folder: Path) -> bool:
    """Whether `account` can enter `folder`."""
    status, _ = run_child(child_command("reach", account, str(folder)), timeout_s=10)
    return status == 0


def end_server(account: Account, folder: Path, *, grace_s: float) -> bool:
    """End every PostgreSQL process that works in `folder`; True when none is left."""
    status, _ = run_child(child_command("end", account, str(folder), str(grace_s)), timeout_s=grace_s + 30)
    return status == 0


class ServerLog:
    """The server's log: a file that its processes append to, cut at `LOG_BYTES_MAX`, one older part kept.

    A file and not a pipe, so that a stopped supervisor never blocks the server. The descriptor appends, which
    is why the file can be cut under it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = open_plain(path)
        self._start = os.fstat(self.fd).st_size

    def cut_if_large(self) -> None:
        """Move the content to `PATH.1` and begin again; lines written in between may be lost."""
        if os.fstat(self.fd).st_size <= LOG_BYTES_MAX:
            return
        older = self.path.with_name(self.path.name + ".1")
        older.unlink(missing_ok=True)
        kept = open_plain(older)
        try:
            _copy(self.fd, kept, LOG_BYTES_MAX)
        finally:
            os.close(kept)
        os.ftruncate(self.fd, 0)
        self._start = 0

    def tail(self) -> str:
        """The last lines since the log was opened, at most `LOG_TAIL_BYTES`."""
        size = os.fstat(self.fd).st_size
        begin = max(min(self._start, size), size - LOG_TAIL_BYTES)
        return os.pread(self.fd, size - begin, begin).decode("utf-8", "replace").strip()

    def close(self) -> None:
        os.close(self.fd)


class Keeper(threading.Thread):
    """Starts the postmaster, waits for its end, keeps its log small. Daemon: dying with us is its point."""

    def __init__(self, command: Sequence[str], log: ServerLog) -> None:
        super().__init__(name="tenantry-postgres", daemon=True)
        self.exited = threading.Event()
        self.returncode: int | None = None
        self.failure: OSError | None = None
        self._started_process = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._command = command
        self._log = log

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def launch(self) -> None:
        """Start; returns once there is a process. Errors: there is none, with the kernel's reason."""
        self.start()
        self._started_process.wait()
        if self.failure is not None:
            raise EmbeddedPostgresError(f"cannot start PostgreSQL: {self.failure.strerror}") from self.failure

    def signal(self, wanted: signal.Signals) -> None:
        """Signal the postmaster, or nobody once it has been waited for."""
        if self._process is not None:
            self._process.send_signal(wanted)

    def run(self) -> None:
        try:
            # A session of its own: Ctrl-C in a terminal reaches the supervisor, which decides.
            with subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._log.fd,
                stderr=self._log.fd,
                cwd="/",
                env=ENVIRONMENT,
                start_new_session=True,
            ) as process:
                self._process = process
                self._started_process.set()
                self._watch(process)
                self.returncode = process.wait()
        except OSError as error:
            self.failure = error
        finally:
            self.exited.set()
            self._started_process.set()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        pidfd = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            while not poll.poll(LOG_LOOK_S * 1000):
                self._log.cut_if_large()
        finally:
            os.close(pidfd)


def ask(socket_path: Path, *, user: str, database: str, timeout_s: float = 5.0) -> str | None:
    """Log in and out once: "" when the server lets us in, its SQLSTATE when not, None when nobody answers.

    Source: PostgreSQL documentation, 54.2.1 and 54.7 (protocol 3.0, start-up). It proves more than a port
    check: the mapping of accounts and the database are there too.
    """
    fields = f"user\0{user}\0database\0{database}\0application_name\0tenantry-embedded\0\0".encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(socket_path))
            connection.sendall(struct.pack("!II", 8 + len(fields), 3 << 16) + fields)
            answer = _verdict(connection)
            if answer == "":
                connection.sendall(b"X\0\0\0\4")
            return answer
    except OSError:
        return None


def _verdict(connection: socket.socket) -> str | None:
    received = b""
    while len(received) < ANSWER_BYTES_MAX:
        chunk = connection.recv(8192)
        if not chunk:
            return None
        received += chunk
        rest = received
        while len(rest) >= 5:
            kind, size = rest[:1], int.from_bytes(rest[1:5], "big")
            if len(rest) < 1 + size:
                break
            body, rest = rest[5 : 1 + size], rest[1 + size :]
            if kind == b"Z":
                return ""
            if kind == b"E":
                codes = [
                    field[1:].decode("ascii", "replace") for field in body.split(b"\0") if field[:1] == b"C"
                ]
                return codes[0] if codes else "XX000"
    return None


def _copy(source: int, target: int, bytes_max: int) -> None:
    offset = max(0, os.fstat(source).st_size - bytes_max)
    copied = 0
    while copied < bytes_max and (chunk := os.pread(source, 1 << 20, offset + copied)):
        os.write(target, chunk)
        copied += len(chunk)
