"""The step between the supervisor and a program of PostgreSQL, run as a script in a process of its own.

`python -I -S embedded_child.py VERB PARENT_PID UID GID ARGUMENT...` gives up root for UID and GID, and then:

- `exec SIGNAL PROGRAM...` asks the kernel for SIGNAL on the parent's death and becomes PROGRAM;
- `reach PATH` ends with 0 when this account can enter the folder PATH, with 1 when it cannot;
- `end PATH GRACE_S` ends every PostgreSQL process whose working folder is PATH: 0 when none is left, else 1.

Why a process and not `preexec_fn`: that one runs Python between fork and exec, which can deadlock when the
parent has threads. Why not `setpriv --pdeathsig`: not every system has it. Why the account's own rights for
`end`: without CAP_SYS_PTRACE, as in a container, root cannot see another account's working folder; and a
signal sent with these rights cannot hit anybody else's process.

Imports nothing of tenantry: the interpreter is isolated, and each start pays for what it loads (15 ms).
"""

# pathlib would double that:
# ruff: noqa: PTH208, PTH115, PTH119, PTH123

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38

EXIT_NO = 1
EXIT_ORPHANED = 125
EXIT_CANNOT_EXEC = 126


def main(arguments: list[str]) -> int:
    """Drop the rights, run the verb, return the exit status."""
    verb, parent, uid, gid = arguments[0], int(arguments[1]), int(arguments[2]), int(arguments[3])
    become(uid, gid)
    match verb, arguments[4:]:
        case "exec", [death_signal, *command]:
            return become_program(command, parent=parent, death_signal=int(death_signal))
        case "reach", [path]:
            return reach(path)
        case "end", [path, grace_s]:
            return end(path, grace_ms=int(float(grace_s) * 1000))
        case _:
            sys.stderr.write(f"unknown verb {verb!r}\n")
            return 2


def become(uid: int, gid: int) -> None:
    """Give up root for good: groups, saved ids and any later gain through a setuid program."""
    if os.geteuid() != uid:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    os.umask(0o077)
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def become_program(command: list[str], *, parent: int, death_signal: int) -> int:
    """Become `command`; returns only when that is impossible.

    The death signal is asked for after the change of account, which would clear it, and the parent is looked
    at after that, in case it died before we asked.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        return EXIT_ORPHANED
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
    return EXIT_CANNOT_EXEC


def reach(path: str) -> int:
    """Whether this account can enter `path`: by doing it, as modes alone do not tell (ACLs, mounts)."""
    try:
        os.chdir(path)
    except OSError:
        return EXIT_NO
    return 0


def end(path: str, *, grace_ms: int) -> int:
    """Fast shutdown, then immediate, then SIGKILL; each followed by a bounded wait.

    A server that lost its postmaster has backends only: they get SIGTERM, as SIGINT would cancel one query.
    SIGCONT goes along, for a stopped process acts on nothing but SIGKILL.
    """
    for wanted, wait_ms in ((signal.SIGINT, grace_ms), (signal.SIGQUIT, 5_000), (signal.SIGKILL, 5_000)):
        found = server_processes(path)
        if not found:
            return 0
        leaders = [pid for pid in found if is_postmaster(pid, found)]
        if wanted is signal.SIGINT:
            for pid in leaders or found:
                deliver(found[pid], signal.SIGINT if leaders else signal.SIGTERM)
        else:
            for pidfd in found.values():
                deliver(pidfd, wanted)
        for pidfd in found.values():
            deliver(pidfd, signal.SIGCONT)
        for pidfd in found.values():
            await_end(pidfd, wait_ms)
            os.close(pidfd)
    return EXIT_NO if server_processes(path) else 0


def server_processes(path: str) -> dict[int, int]:
    """Process id -> pidfd of each PostgreSQL process that works in the folder `path`.

    The pidfd is opened before the second look: a pid that was reused in between is never signalled.
    """
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or not works_in(name, path):
            continue
        try:
            pidfd = os.pidfd_open(int(name))
        except OSError:
            continue
        if works_in(name, path):
            found[int(name)] = pidfd
        else:
            os.close(pidfd)
    return found


def works_in(name: str, path: str) -> bool:
    """Whether process `name` runs a PostgreSQL server program with `path` as its working folder.

    The program may have been removed since it started, as after `git clean`.
    """
    try:
        program = os.readlink(f"/proc/{name}/exe").removesuffix(" (deleted)")
        return os.path.basename(program) == "postgres" and os.readlink(f"/proc/{name}/cwd") == path
    except OSError:
        return False


def is_postmaster(pid: int, found: dict[int, int]) -> bool:
    """Whether `pid` is the parent of the others: not their child, and not retitled as a backend."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            title = file.read(4096)
        with open(f"/proc/{pid}/stat", "rb") as file:
            parent = int(file.read(4096).rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return False
    return parent not in found and not title.startswith(b"postgres: ")


def deliver(pidfd: int, wanted: signal.Signals) -> None:
    """Send a signal; one that has ended, or is not ours to signal, is for the next look to find."""
    try:
        signal.pidfd_send_signal(pidfd, wanted)
    except OSError:
        return


def await_end(pidfd: int, wait_ms: int) -> None:
    """Wait until the process has ended, at most `wait_ms`."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(wait_ms)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
