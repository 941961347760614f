"""The embedded server from first start to stop: what it is, who gets in, two starters, honest errors."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest
from tests.integration.storage.embedded.supervisor import (
    MakeSupervisor,
    RefusedError,
    modes,
    wait_ended,
)

from tenantry.storage.embedded import Endpoint


def test_data_survives_stop_and_start_and_nothing_is_left_running(
    work: Path, supervise: MakeSupervisor
) -> None:
    supervisor = supervise(hostile=True)
    before = modes(work)
    first = supervisor.start()
    assert supervisor.start() == first, "starting what runs changes nothing"
    assert str(supervisor.ask("show server_version")).startswith("18.")
    assert supervisor.ask("select current_database()::text") == "tenantry"
    assert supervisor.ask("show data_checksums") == "on"
    assert supervisor.ask("show fsync") == "on"
    assert supervisor.ask("select datlocale from pg_database where datname = 'tenantry'") == "C.UTF-8"
    supervisor.ask("create extension vector")
    supervisor.ask("create table kept as select 41 + 1 as answer")
    assert supervisor("stop") == "clean"
    assert supervisor("stop") == "not_running"
    wait_ended(first.pid)
    assert not first.socket_dir.parent.exists()
    supervisor.start()
    assert supervisor.ask("select answer from kept") == 42
    assert supervisor("stop") == "clean"
    assert modes(work) == before
    cluster = work / "data" / "postgres" / "data"
    assert stat.S_IMODE(cluster.stat().st_mode) == 0o700
    assert cluster.stat().st_uid != 0, "the server never runs as root"


@pytest.mark.usefixtures("cluster")
def test_the_platform_s_roles_log_in_and_no_other_role_does(supervise: MakeSupervisor) -> None:
    supervisor = supervise()
    supervisor.start()
    for role in ("tenantry_owner", "tenantry_gate", "tenantry_app", "tenantry_platform", "tenantry_control"):
        supervisor.ask(f"create role {role} login")
        assert supervisor.ask("select current_user::text", role=role) == role
    supervisor.ask("create role stranger login superuser")
    with pytest.raises(RefusedError, match=r"(?i)peer authentication failed"):
        supervisor.ask("select 1", role="stranger")


@pytest.mark.usefixtures("cluster")
def test_no_tcp_whatever_alter_system_says(supervise: MakeSupervisor) -> None:
    supervisor = supervise()
    supervisor.start()
    supervisor.ask("alter system set listen_addresses = '*'")
    supervisor.ask("alter system set unix_socket_permissions = '0777'")
    supervisor("stop")
    started = supervisor.start()
    assert supervisor.ask("show listen_addresses") == ""
    assert stat.S_IMODE(Path(started.socket_dir, ".s.PGSQL.5432").stat().st_mode) == 0o700
    inodes = {
        line.split()[9]
        for table in ("tcp", "tcp6", "udp", "udp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
    }
    targets = [str(entry.readlink()) for entry in Path(f"/proc/{started.pid}/fd").iterdir()]
    sockets = {target[8:-1] for target in targets if target.startswith("socket:[")}
    assert sockets
    assert not sockets & inodes


def test_the_dsn_quotes_what_it_is_given() -> None:
    endpoint = Endpoint(socket_dir=Path("/a b/?#&"), port=1, database="d/x", superuser="postgres")
    assert endpoint.dsn("r@h") == "postgresql://r%40h@/d%2Fx?host=%2Fa%20b%2F%3F%23%26&port=1"
    assert endpoint.dsn("r", database="other") == "postgresql://r@/other?host=%2Fa%20b%2F%3F%23%26&port=1"


@pytest.mark.usefixtures("cluster")
def test_a_second_supervisor_is_told_and_the_first_is_undisturbed(
    work: Path, supervise: MakeSupervisor
) -> None:
    first, second = supervise(), supervise()
    first.start()
    with pytest.raises(
        RefusedError, match=r"already runs the database in .*data: stop it first, or give another --data"
    ):
        second.start()
    (work / "link").symlink_to(work / "data")
    with pytest.raises(RefusedError, match="already runs the database"):
        second.start(work / "link")
    assert first.ask("select 1") == 1
    first("stop")
    second.start()
    assert second.ask("select 1") == 1


def test_an_ephemeral_cluster_goes_with_stop_and_after_a_kill_with_the_next_start(
    uid: int, work: Path, supervise: MakeSupervisor
) -> None:
    killed, living = supervise(), supervise()
    lost = killed.start(ephemeral=True)
    kept = living.start(work / "other", ephemeral=True)
    os.kill(lost.pid, signal.SIGSTOP)
    killed.kill()
    again = supervise()
    started = again.start(ephemeral=True)
    wait_ended(lost.pid, 0.1)
    left = set(Path("/tmp").glob(f"tenantry-{uid}-*"))  # noqa: S108 - the platform's own place
    assert lost.socket_dir.parent not in left
    assert {kept.socket_dir.parent, started.socket_dir.parent} <= left
    assert living.ask("select 1") == 1
    for supervisor in (again, living):
        assert supervisor("stop") == "clean"
    assert not kept.socket_dir.parent.exists()
    assert not started.socket_dir.parent.exists()
    assert not (work / "data" / "postgres").exists()
    assert not (work / "system").exists()


@pytest.mark.usefixtures("cluster")
def test_an_ephemeral_start_never_takes_a_lasting_cluster_s_folder(supervise: MakeSupervisor) -> None:
    with pytest.raises(RefusedError, match="holds a lasting cluster"):
        supervise().start(ephemeral=True)


def test_what_the_server_said_is_in_the_error_and_the_repair_works(
    cluster: Path, supervise: MakeSupervisor
) -> None:
    supervisor = supervise()
    override = cluster / "postgresql.auto.conf"
    good = override.read_text()
    override.write_text(good + "shared_buffers = 'plenty'\n")
    with pytest.raises(RefusedError, match=r"(?s)ended with status 1 .*shared_buffers"):
        supervisor.start()
    override.write_text(good)
    other = supervise()
    other.start()
    assert other.ask("select 1") == 1


def test_another_version_s_cluster_and_a_lost_one_are_told(
    work: Path, cluster: Path, supervise: MakeSupervisor
) -> None:
    supervisor = supervise()
    version = cluster / "PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(RefusedError, match=r"is of PostgreSQL 17, the programs are of 18"):
        supervisor.start()
    version.parent.rename(work / "elsewhere")
    with pytest.raises(RefusedError, match=r"is missing at .*restore it"):
        supervisor.start()
    (work / "elsewhere").rename(version.parent)
    version.write_text("18\n")
    supervisor.start()
    assert supervisor.ask("select 1") == 1


def test_an_account_that_is_not_there_is_told(supervise: MakeSupervisor) -> None:
    with pytest.raises(RefusedError, match=r"no account 'no_such_one'|only root can run"):
        supervise().start(run_as="no_such_one")
    with pytest.raises(RefusedError, match=r"refuses to run as 'root'|only root can run"):
        supervise().start(run_as="root")
