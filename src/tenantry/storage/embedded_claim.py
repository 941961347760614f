"""Claiming a data folder: which account, which home, which locks, which runtime folder; giving them back.

DATA/postgres.json names the cluster's home before the home is made, and says `built` once it holds a cluster,
so a lost home is told and never silently replaced by an empty one.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import msgspec

from tenantry.core.clock import SystemClock
from tenantry.storage.embedded_binaries import Binaries, find_install, reachable_binaries
from tenantry.storage.embedded_places import (
    Account,
    EmbeddedPostgresError,
    account_of,
    dead_runtimes,
    lock_file,
    make_given,
    make_passage,
    make_public,
    make_runtime,
    own_account,
    owner_of,
    read_record,
    read_small,
    remove_tree,
    require_own,
    server_account,
    sync_folder,
    write_record,
)
from tenantry.storage.embedded_process import ServerLog, can_reach, end_server

# PostgreSQL's own limit for a path is 1023 bytes, and it appends to the cluster's.
DATA_PATH_BYTES_MAX = 800
CLUSTER_ID = re.compile(r"[0-9a-f]{16}")


class Place(msgspec.Struct, frozen=True):
    """What to claim and where; `run_as` is the account for a new cluster."""

    data_dir: Path
    ephemeral: bool
    run_as: str | None
    system_root: Path
    runtime_root: Path


class Claim(msgspec.Struct, frozen=True):
    """What a started supervisor holds until it stops."""

    place: Place
    account: Account
    binaries: Binaries
    home: Path
    runtime: Path
    locks: tuple[int, ...]
    log: ServerLog

    @property
    def cluster(self) -> Path:
        return self.home / "data"

    @property
    def unfinished(self) -> Path:
        return self.home / "data.new"

    @property
    def configuration(self) -> Path:
        return self.home / "conf"

    @property
    def socket_dir(self) -> Path:
        return self.runtime / "s"

    def sound(self) -> bool:
        """Whether the socket's folder is still the one that was made: no link, and the account's own."""
        with contextlib.suppress(EmbeddedPostgresError, OSError):
            require_own(self.runtime)
            return owner_of(self.socket_dir) == self.account.uid
        return False

    def record(self, *, built: bool) -> None:
        """Write DATA/postgres.json."""
        fields = {
            "home": str(self.home),
            "cluster": self.home.name if self.home.parent == _clusters(self.place.system_root) else None,
            "built": "yes" if built else None,
            "ephemeral": "yes" if self.place.ephemeral else None,
            "socket_dir": str(self.socket_dir),
        }
        write_record(self.place.data_dir / "postgres.json", fields, own_account())

    def release(self) -> None:
        """Remove the runtime folder, and with it an ephemeral cluster; give the locks back."""
        remove_tree(self.runtime)
        self.log.close()
        for fd in self.locks:
            os.close(fd)


class Orphan(msgspec.Struct, frozen=True):
    """A cluster outside its data folder that this folder no longer names, or whose data folder is gone."""

    home: Path
    data_dir: Path | None


def take(place: Place) -> Claim:
    """Claim the data folder. Nothing is held when it raises."""
    place = msgspec.structs.replace(place, data_dir=_checked(place.data_dir))
    account = server_account(place.run_as)
    _make_data_dir(place.data_dir, account)
    with contextlib.ExitStack() as undo:
        locks = [_locked(place.data_dir / "postgres.lock", place.data_dir)]
        undo.callback(os.close, locks[0])
        record = read_record(place.data_dir / "postgres.json") or {}
        account, home = _settle(place, account, record)
        remove_dead_runtimes(place.runtime_root)
        runtime, runtime_lock = make_runtime(place.runtime_root, account)
        undo.callback(os.close, runtime_lock)
        undo.callback(remove_tree, runtime)
        locks.append(runtime_lock)
        make_given(runtime / "s", account)
        binaries = _binaries(place, account, runtime)
        log = ServerLog(place.data_dir / "postgres.log")
        undo.callback(log.close)
        claim = Claim(place, account, binaries, home or runtime, runtime, (), log)
        claim.record(built=home is not None and owner_of(home / "data") is not None)
        if home is None:
            make_passage(claim.configuration, account)
        else:
            _make_home(place, home, account)
            locks.append(_locked(home / "lock", home))
        undo.pop_all()
        return msgspec.structs.replace(claim, locks=tuple(locks))


def remove_dead_runtimes(runtime_root: Path) -> None:
    """Remove what killed supervisors of this user left in `runtime_root`, their ephemeral servers first."""
    with dead_runtimes(runtime_root) as folders:
        for folder in folders:
            with contextlib.suppress(EmbeddedPostgresError):
                if all(_ended(folder / name) for name in ("data.new", "data")):
                    remove_tree(folder)


def list_orphans(system_root: Path) -> list[Orphan]:
    """Clusters under `system_root` that no data folder names; removes nothing. Errors: not ours to read."""
    orphans = []
    for home in sorted(_clusters(system_root).glob("*")):
        if CLUSTER_ID.fullmatch(home.name):
            try:
                data_dir = (read_record(home / "owner.json") or {}).get("data_dir")
            except OSError as error:
                raise EmbeddedPostgresError(f"cannot read {home}: {error.strerror}; ask as root") from error
            if data_dir is None or not _names(Path(data_dir), home.name):
                orphans.append(Orphan(home=home, data_dir=Path(data_dir) if data_dir is not None else None))
    return orphans


def _ended(cluster: Path) -> bool:
    owner = owner_of(cluster)
    return owner is None or end_server(account_of(owner), cluster, grace_s=0)


def _checked(data_dir: Path) -> Path:
    data_dir = data_dir.absolute()
    if any(ord(sign) < 32 for sign in str(data_dir)):
        raise EmbeddedPostgresError(
            f"the data folder {str(data_dir)!r} holds a control character: use another"
        )
    if len(os.fsencode(data_dir)) > DATA_PATH_BYTES_MAX:
        raise EmbeddedPostgresError(
            f"the path of the data folder is longer than {DATA_PATH_BYTES_MAX} bytes, too long for "
            "PostgreSQL: choose a shorter one"
        )
    return data_dir.resolve()


def _make_data_dir(data_dir: Path, account: Account) -> None:
    """As root 0710 with the account's group, so that it can pass to the cluster and list nothing."""
    if owner_of(data_dir) is None:
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            make_passage(data_dir, account, mode=0o710)


def _locked(path: Path, thing: Path) -> int:
    fd = lock_file(path)
    if fd is None:
        holder = (read_small(path) or "").strip()
        raise EmbeddedPostgresError(
            f"another process ({holder or 'unknown'}) already runs the database in {thing}: "
            "stop it first, or give another --data"
        )
    return fd


def _settle(place: Place, account: Account, record: dict[str, str]) -> tuple[Account, Path | None]:
    """The account and the home (None: the runtime folder). A cluster keeps the account it was made under."""
    built = "built" in record
    if place.ephemeral:
        if built:
            raise EmbeddedPostgresError(f"{place.data_dir} holds a lasting cluster: give another --data")
        return account, None
    home = _home(place, account, record.get("cluster"))
    owner = owner_of(home / "data") if owner_of(home) is not None else None
    if owner is None:
        if built:
            raise EmbeddedPostgresError(
                f"the cluster of {place.data_dir} is missing at {home}: restore it, or remove "
                f"{place.data_dir / 'postgres.json'} to begin with an empty one"
            )
        return account, home
    if os.geteuid() not in {0, owner} or owner == 0:
        raise EmbeddedPostgresError(f"the cluster in {home} belongs to user id {owner}: start as that user")
    keeper = account_of(owner)
    if place.run_as not in {None, keeper.name}:
        raise EmbeddedPostgresError(
            f"the cluster in {home} belongs to {keeper.name!r}, not to {place.run_as!r}"
        )
    return keeper, home


def _home(place: Place, account: Account, cluster_id: str | None) -> Path:
    inside = place.data_dir / "postgres"
    if cluster_id is not None:
        if CLUSTER_ID.fullmatch(cluster_id) is None:
            raise EmbeddedPostgresError(f"{place.data_dir / 'postgres.json'} is damaged: restore it")
        return _clusters(place.system_root) / cluster_id
    if account.uid == os.geteuid() or owner_of(inside) is not None or can_reach(account, place.data_dir):
        return inside
    return _clusters(place.system_root) / SystemClock().random_bytes(8).hex()


def _make_home(place: Place, home: Path, account: Account) -> None:
    """Make the home, or see that it is ours and this data folder's."""
    if owner_of(home) is None:
        if home.parent == _clusters(place.system_root):
            make_public(place.system_root)
            make_public(home.parent)
        temporary = home.with_name(home.name + ".new")
        remove_tree(temporary)
        make_passage(temporary, account)
        make_passage(temporary / "conf", account)
        write_record(temporary / "owner.json", {"data_dir": str(place.data_dir)}, account)
        temporary.rename(home)
        sync_folder(home.parent)
        return
    require_own(home)
    owner = read_record(home / "owner.json")
    if owner is None:
        raise EmbeddedPostgresError(f"{home} is there and is not a cluster of tenantry: move it away")
    other = owner.get("data_dir", "")
    if other != str(place.data_dir):
        # The data folder was moved; or copied, and then two would write to one cluster.
        if home.parent == _clusters(place.system_root) and other and _names(Path(other), home.name):
            raise EmbeddedPostgresError(
                f"the cluster in {home} belongs to {other}, of which {place.data_dir} seems a copy: start "
                f"that one, or remove {place.data_dir / 'postgres.json'} to begin with an empty cluster"
            )
        write_record(home / "owner.json", {"data_dir": str(place.data_dir)}, account)


def _binaries(place: Place, account: Account, runtime: Path) -> Binaries:
    copies = runtime if place.ephemeral else place.system_root
    return reachable_binaries(account, install=find_install(), copies=copies, lasting=not place.ephemeral)


def _clusters(system_root: Path) -> Path:
    return system_root / "clusters"


def _names(data_dir: Path, cluster_id: str) -> bool:
    """Whether `data_dir` has a record that names this cluster."""
    try:
        return (read_record(data_dir / "postgres.json") or {}).get("cluster") == cluster_id
    except (EmbeddedPostgresError, OSError):
        return False
