"""What only root can show: clusters and programs outside a closed folder, foreign accounts refused."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.storage.embedded.supervisor import (
    NOBODY,
    PYTHON_PATH,
    MakeSupervisor,
    RefusedError,
    account_named,
    modes,
)

from tenantry.storage.embedded_binaries import find_install

pytestmark = pytest.mark.parametrize("uid", [0], indirect=True)


@pytest.fixture
def closed(work: Path) -> Path:
    folder = work / "closed"
    folder.mkdir(mode=0o700)
    return folder


def test_a_data_folder_out_of_the_account_s_reach_gets_a_cluster_outside(
    work: Path, closed: Path, supervise: MakeSupervisor
) -> None:
    data, system = closed / "data", work / "system"
    before = modes(closed)
    supervisor = supervise()
    supervisor.start(data)
    supervisor.ask("create table kept as select 7 as answer")
    assert supervisor("stop") == "clean"
    assert modes(closed) == before
    (home,) = (system / "clusters").iterdir()
    assert (home.stat().st_uid, stat.S_IMODE(home.stat().st_mode)) == (0, 0o750)
    assert (home / "data").stat().st_uid == account_named("postgres", "nobody").pw_uid
    assert supervisor("orphans", system=str(system)) == []

    shutil.copytree(data, closed / "copy")
    with pytest.raises(RefusedError, match="seems a copy"):
        supervise().start(closed / "copy")
    data.rename(closed / "moved")
    moved = supervise()
    moved.start(closed / "moved")
    assert moved.ask("select answer from kept") == 7
    moved("stop")

    shutil.rmtree(closed / "moved")
    assert supervisor("orphans", system=str(system)) == [[str(home), str(closed / "moved")]]
    assert (home / "data" / "PG_VERSION").exists(), "an orphan is reported, not removed"


def test_a_lost_outside_cluster_is_told_and_never_replaced(
    work: Path, closed: Path, supervise: MakeSupervisor
) -> None:
    supervisor = supervise()
    supervisor.start(closed / "data")
    supervisor("stop")
    shutil.rmtree(work / "system")
    with pytest.raises(RefusedError, match=r"is missing at .*to begin with an empty one"):
        supervisor.start(closed / "data")


def test_a_hostile_system_folder_is_refused(work: Path, closed: Path, supervise: MakeSupervisor) -> None:
    (work / "system").mkdir()
    os.chown(work / "system", NOBODY, -1)
    with pytest.raises(RefusedError, match=r"belongs to user id 65534, not to 0"):
        supervise().start(closed / "data")
    os.chown(work / "system", 0, -1)
    (work / "system").chmod(0o777)
    with pytest.raises(RefusedError, match="can be written to by others"):
        supervise().start(closed / "data")
    assert stat.S_IMODE((work / "system").stat().st_mode) == 0o777


@pytest.mark.parametrize("ephemeral", [True, False])
def test_programs_out_of_the_account_s_reach_are_copied_once(
    work: Path, closed: Path, supervise: MakeSupervisor, ephemeral: bool
) -> None:
    install = find_install()
    unneeded = shutil.ignore_patterns("include", "*.a", "pgxs")
    shutil.copytree(install.parent, closed / install.parent.name, ignore=unneeded)
    libraries = install.parent.with_name(install.parent.name + ".libs")
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name)
    left = work / "system" / "pg-1-x.999999999.new"
    left.mkdir(parents=True)
    before = modes(closed)
    supervisor = supervise(path=closed)
    started = supervisor.start(ephemeral=ephemeral)
    program = str(Path(f"/proc/{started.pid}/exe").readlink())
    supervisor.ask("create extension vector")
    assert supervisor("stop") == "clean"
    assert modes(closed) == before
    if ephemeral:
        assert program.startswith(str(started.socket_dir.parent))
        assert not Path(program).exists()
        return
    (copy,) = (work / "system").iterdir()
    assert program.startswith(str(copy))
    made = copy.stat().st_ino
    supervisor.start()
    assert supervisor("stop") == "clean"
    assert copy.stat().st_ino == made
    assert all(path.lstat().st_uid == 0 and not path.lstat().st_mode & 0o022 for path in copy.rglob("*"))


def test_a_cluster_keeps_the_account_it_was_made_under(work: Path, supervise: MakeSupervisor) -> None:
    supervisor = supervise()
    supervisor.start(run_as="nobody")
    supervisor("stop")
    again = supervise()
    again.start()
    assert (work / "data" / "postgres" / "data").stat().st_uid == NOBODY
    again("stop")
    with pytest.raises(RefusedError, match="belongs to 'nobody', not to 'daemon'"):
        supervise().start(run_as="daemon")


def test_no_other_account_gets_in_even_with_every_folder_open(supervise: MakeSupervisor) -> None:
    supervisor = supervise()
    socket_dir = supervisor.start(run_as=account_named("postgres", "games").pw_name).socket_dir
    strangers = (pwd.getpwnam("daemon").pw_uid, NOBODY, 12345)
    for stranger in strangers:
        assert ask_as(stranger, socket_dir, "postgres") == [None], "the folder is closed to it"
    opened = ((socket_dir.parent, 0o755), (socket_dir, 0o755), (socket_dir / ".s.PGSQL.5432", 0o777))
    for path, mode in opened:
        path.chmod(mode)
    for stranger in strangers:
        assert ask_as(stranger, socket_dir, "postgres", "tenantry_app", "daemon") == ["28000"] * 3
    assert ask_as(0, socket_dir, "postgres") == [""]


def ask_as(uid: int, socket_dir: Path, *roles: str) -> object:
    """What the server answers a process of `uid`, which loads its code as root and then gives root up."""
    program = (
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from tenantry.storage.embedded_process import ask\n"
        "uid, path, roles = int(sys.argv[1]), Path(sys.argv[2], '.s.PGSQL.5432'), sys.argv[3:]\n"
        "os.setgroups([]); os.setgid(uid); os.setuid(uid)\n"
        "print(json.dumps([ask(path, user=role, database='tenantry') for role in roles]))\n"
    )
    command = [sys.executable, "-B", "-c", program, str(uid), str(socket_dir), *roles]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": PYTHON_PATH}
    said = subprocess.run(
        command, check=True, capture_output=True, env=environment, cwd="/", timeout=20
    ).stdout
    return json.loads(said)
