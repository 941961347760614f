"""What the embedded server is told: its settings, who may connect, and as whom."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tenantry.storage.embedded_places import Account, EmbeddedPostgresError

SUPERUSER = "postgres"
DATABASE = "tenantry"
PORT = 5432
ROLES = (
    SUPERUSER,
    "tenantry_owner",
    "tenantry_gate",
    "tenantry_app",
    "tenantry_platform",
    "tenantry_control",
)
SHARED_MEMORY_BYTES_MIN = 256 * 1024 * 1024


def server_settings() -> str:
    """The text of postgresql.conf; ALTER SYSTEM still overrides it, except what `server_command` fixes.

    Timeouts and plan pins are `ALTER ROLE`'s, autovacuum of hot tables is the migrations'. `wal_level` is
    `replica`, not `minimal`: a base backup and recovery to a point in time work without a restart, for a few
    percent of log. Messages are terse because a DETAIL line quotes the row, and so a tenant's data.
    """
    settings = {
        "max_connections": "100",
        "shared_buffers": "'128MB'",
        "dynamic_shared_memory_type": _dynamic_memory(),
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "wal_level": "replica",
        "max_wal_size": "'1GB'",
        "jit": "off",
        "track_io_timing": "off",
        "password_encryption": "'scram-sha-256'",
        "timezone": "'UTC'",
        "log_timezone": "'UTC'",
        "log_destination": "'stderr'",
        "logging_collector": "off",
        "log_line_prefix": "'%m [%p] %q%u@%d '",
        "log_error_verbosity": "terse",
        "lc_messages": "'C'",
        "default_text_search_config": "'pg_catalog.simple'",
    }
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    return f"# Written by tenantry at each start. Change a setting with ALTER SYSTEM.\n{lines}"


def host_based_access() -> str:
    """The text of pg_hba.conf: the kernel says who is at the other end of the socket; nothing over TCP."""
    return "# Written by tenantry at each start.\nlocal all all peer map=tenantry\n"


def account_map(accounts: Iterable[Account]) -> str:
    """The text of pg_ident.conf: these accounts may be any of `ROLES`, every other account none.

    The server's own account is among them and gains nothing by it: it owns the files and the processes.
    """
    lines = ["# Written by tenantry at each start."]
    for name in sorted({account.name for account in accounts}):
        if '"' in name or "\n" in name or name.startswith("/"):
            raise EmbeddedPostgresError(
                f"the account name {name!r} cannot stand in pg_ident.conf: use another"
            )
        lines += [f'tenantry "{name}" {role}' for role in ROLES]
    return "\n".join(lines) + "\n"


def server_command(program: str, *, cluster: Path, configuration: Path, socket_dir: Path) -> list[str]:
    """The postmaster's command line, which no ALTER SYSTEM overrides: who gets in, and by which door."""
    fixed = {
        "config_file": str(configuration / "postgresql.conf"),
        "hba_file": str(configuration / "pg_hba.conf"),
        "ident_file": str(configuration / "pg_ident.conf"),
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": str(socket_dir),
        "unix_socket_permissions": "0700",
    }
    options = [part for name, value in fixed.items() for part in ("-c", f"{name}={value}")]
    return [program, "-D", str(cluster), *options]


def _dynamic_memory() -> str:
    """`posix` where /dev/shm has room; a container often has 64 MB there or none, and then files: `mmap`."""
    try:
        room = os.statvfs("/dev/shm")  # noqa: S108 - only measured
    except OSError:
        return "mmap"
    return "posix" if room.f_bavail * room.f_frsize >= SHARED_MEMORY_BYTES_MIN else "mmap"
