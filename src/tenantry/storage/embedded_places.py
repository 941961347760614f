"""Where the embedded server lives: accounts, folders, locks and small records (DESIGN §5).

The rule for every function here: a path that it did not make keeps its mode and its owner. Folders made for
the server's account belong to root with that account's group (0750), so that the account can pass through
them and never swap what root will open; only the cluster itself and the socket's folder belong to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tenantry.core.errors import TenantryError

RECORD_BYTES_MAX = 65_536
SYSTEM_ROOT = Path("/var/lib/tenantry")
# Fixed, and not TMPDIR: the path of a socket may not pass 107 bytes, and TMPDIR may be long.
RUNTIME_ROOT = Path("/tmp")  # noqa: S108 - each folder in it is made by mkdtemp, 0700 from its first moment


class EmbeddedPostgresError(TenantryError):
    """The embedded PostgreSQL cannot run here; names the path or account and the remedy."""


class Account(msgspec.Struct, frozen=True):
    """An account of the operating system, as the kernel and as peer authentication know it."""

    uid: int
    gid: int
    name: str


def own_account() -> Account:
    """The account that this process runs as. Errors: it has no entry in the user database."""
    return account_of(os.geteuid())


def account_of(uid: int) -> Account:
    """The account with this id. Errors: it has no entry in the user database, which PostgreSQL demands."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise EmbeddedPostgresError(
            f"user id {uid} has no entry in the user database, so PostgreSQL refuses to run under it: "
            "add one, run as another user, or give --database-url"
        ) from None
    return Account(uid=uid, gid=entry.pw_gid, name=entry.pw_name)


def server_account(run_as: str | None) -> Account:
    """The account to run a new cluster under: ourselves, or as root `run_as`, `postgres` or `nobody`."""
    own = own_account()
    if own.uid != 0:
        if run_as not in {None, own.name}:
            raise EmbeddedPostgresError(f"only root can run PostgreSQL as {run_as!r}; this is {own.name!r}")
        return own
    for name in (run_as,) if run_as is not None else ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid == 0:
                raise EmbeddedPostgresError(
                    f"PostgreSQL refuses to run as {name!r}, which is root: name another"
                )
            return Account(uid=entry.pw_uid, gid=entry.pw_gid, name=entry.pw_name)
    raise EmbeddedPostgresError(
        f"PostgreSQL does not run as root and there is no account {run_as or 'postgres or nobody'!r}: "
        "add one, run as an ordinary user, or give --database-url"
    )


def owner_of(path: Path) -> int | None:
    """The owner's uid of a real folder, None when nothing is there. Errors: a link or a file is there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        raise EmbeddedPostgresError(f"{path} is not a folder: move it away")
    return status.st_uid


def require_own(path: Path) -> None:
    """Refuse a folder that is a link, is not ours, or that others may write to."""
    owner = owner_of(path)
    if owner != os.geteuid():
        raise EmbeddedPostgresError(f"{path} belongs to user id {owner}, not to {os.geteuid()}: move it away")
    if path.lstat().st_mode & 0o022:
        raise EmbeddedPostgresError(
            f"{path} can be written to by others: move it away or take that right back"
        )


def make_passage(path: Path, account: Account, *, mode: int = 0o750) -> None:
    """Make a folder of ours that `account` can pass through: 0700 for ourselves, else its group's `mode`."""
    path.mkdir(mode=0o700)
    if account.uid != os.geteuid():
        os.chown(path, -1, account.gid)
        path.chmod(mode)


def make_public(folder: Path) -> None:
    """Make a folder that everyone may pass and list, or see that the one there is ours."""
    if owner_of(folder) is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            folder.chmod(0o755)
    require_own(folder)


def make_given(path: Path, account: Account) -> None:
    """Make a folder, 0700, that belongs to `account`."""
    path.mkdir(mode=0o700)
    if account.uid != os.geteuid():
        os.chown(path, account.uid, account.gid)


def write_for(path: Path, text: str, account: Account) -> None:
    """Put a whole file of ours in place in one step, readable by `account` and not writable by it."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            if account.uid != os.geteuid():
                os.fchown(file.fileno(), -1, account.gid)
                os.fchmod(file.fileno(), 0o640)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_small(path: Path) -> str | None:
    """A small regular file as text, None when nothing is there; follows no link, waits on no pipe."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise EmbeddedPostgresError(f"cannot read {path}: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise EmbeddedPostgresError(f"{path} is not a plain file: move it away")
        return file.read(RECORD_BYTES_MAX).decode("utf-8", "surrogateescape")


def write_record(path: Path, fields: dict[str, str | None], account: Account) -> None:
    """A record of ours as JSON; paths with bytes outside UTF-8 survive."""
    write_for(path, json.dumps(fields, indent=1) + "\n", account)


def read_record(path: Path) -> dict[str, str] | None:
    """The record's text fields, None when there is no record. Errors: it is no record of ours."""
    text = read_small(path)
    if text is None:
        return None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise EmbeddedPostgresError(
            f"{path} is damaged: restore it, or remove it to begin with a new cluster"
        )
    return {key: value for key, value in fields.items() if isinstance(value, str)}


def lock_file(path: Path) -> int | None:
    """Take the lock on `path`, made when missing; its descriptor, or None while another process has it.

    Source: flock(2), which the kernel gives back however the process ends. The descriptor does not pass to
    programs that this process starts.
    """
    fd = open_plain(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def open_plain(path: Path) -> int:
    """Open a file of ours to read and append, made 0600 when missing. Errors: a link, or somebody else's."""
    try:
        fd = os.open(
            path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise EmbeddedPostgresError(f"cannot open {path}: {error.strerror}") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
        os.close(fd)
        raise EmbeddedPostgresError(f"{path} is not a plain file of user id {os.geteuid()}: move it away")
    return fd


def make_runtime(runtime_root: Path, account: Account) -> tuple[Path, int]:
    """A new folder with a short random name, and the lock that says its owner lives.

    The lock file gets its name once it is locked, so no sweeper ever meets it free.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"tenantry-{os.geteuid()}-", dir=runtime_root))
    fd = lock_file(folder / "lock.new")
    assert fd is not None, "nobody else knows the name yet"
    (folder / "lock.new").rename(folder / "lock")
    if account.uid != os.geteuid():
        os.chown(folder, -1, account.gid)
        folder.chmod(0o750)
    return folder, fd


@contextlib.contextmanager
def dead_runtimes(runtime_root: Path) -> Iterator[list[Path]]:
    """Folders of `make_runtime` whose owner is gone, locked inside the block so that one sweeper acts."""
    with contextlib.ExitStack() as stack:
        found = []
        for folder in sorted(runtime_root.glob(f"tenantry-{os.geteuid()}-*")):
            with contextlib.suppress(EmbeddedPostgresError, OSError):
                if owner_of(folder) != os.geteuid() or not (folder / "lock").exists():
                    continue
                fd = lock_file(folder / "lock")
                if fd is not None:
                    stack.callback(os.close, fd)
                    found.append(folder)
        yield found


def remove_tree(path: Path) -> None:
    """Remove a folder of ours and all below it; follows no link. What cannot go now is left."""
    shutil.rmtree(path, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Make names in `path` survive a loss of power."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
