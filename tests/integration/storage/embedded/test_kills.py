"""The embedded server after `kill -9` of anything at any time: nothing is left to clean by hand."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.integration.storage.embedded.supervisor import (
    ROOT,
    MakeSupervisor,
    RefusedError,
    accounts,
    wait_ended,
    wait_until,
)


@pytest.mark.usefixtures("cluster")
def test_a_killed_postmaster_is_started_again_at_the_same_endpoint(supervise: MakeSupervisor) -> None:
    supervisor = supervise()
    first = supervisor.start()
    supervisor.ask("create table kept as select 7 as answer")
    backend = supervisor.occupy()
    os.kill(first.pid, signal.SIGKILL)
    assert supervisor("crash_seen")
    second = supervisor.start()
    assert second.socket_dir == first.socket_dir
    assert second.pid != first.pid
    wait_ended(backend, 0.1)
    assert supervisor.ask("select answer from kept") == 7


@pytest.mark.parametrize("ephemeral", [False, True])
@pytest.mark.parametrize("uid", accounts()[:1], indirect=True)
def test_a_start_that_fails_after_a_crash_gives_nothing_up(
    supervise: MakeSupervisor, *, ephemeral: bool
) -> None:
    supervisor = supervise()
    first = supervisor.start(ephemeral=ephemeral)
    supervisor.ask("create table kept as select 7 as answer")
    control_file = Path(str(supervisor.ask("show data_directory")), "global/pg_control")
    os.kill(first.pid, signal.SIGKILL)
    assert supervisor("crash_seen")
    hidden = control_file.rename(control_file.with_name("hidden"))
    for _ in range(2):
        with pytest.raises(RefusedError):
            supervisor.start(ephemeral=ephemeral)
    hidden.rename(control_file)
    second = supervisor.start(ephemeral=ephemeral)
    assert second.socket_dir == first.socket_dir
    assert supervisor.ask("select answer from kept") == 7


@pytest.mark.usefixtures("cluster")
def test_the_postmaster_ends_clean_when_its_supervisor_is_killed(
    work: Path, supervise: MakeSupervisor
) -> None:
    supervisor = supervise()
    first = supervisor.start()
    supervisor.ask("create table kept as select 7 as answer")
    supervisor.kill()
    wait_ended(first.pid)
    assert "database system is shut down" in (work / "data" / "postgres.log").read_text()
    again = supervise()
    second = again.start()
    assert second.socket_dir != first.socket_dir
    assert not first.socket_dir.parent.exists(), "what the dead one left is swept"
    assert again.ask("select answer from kept") == 7


@pytest.mark.usefixtures("cluster")
def test_a_postmaster_that_outlives_its_supervisor_is_taken_down_first(supervise: MakeSupervisor) -> None:
    supervisor = supervise()
    first = supervisor.start()
    backend = supervisor.occupy()
    os.kill(first.pid, signal.SIGSTOP)
    supervisor.kill()
    os.kill(first.pid, 0)
    again = supervise()
    again.start()
    wait_ended(first.pid, 0.1)
    wait_ended(backend, 0.1)
    assert again.ask("select 1") == 1


@pytest.mark.usefixtures("cluster")
def test_backends_that_outlive_both_are_ended_first(supervise: MakeSupervisor) -> None:
    supervisor = supervise()
    first = supervisor.start()
    backend = supervisor.occupy()
    os.kill(backend, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGKILL)
    supervisor.kill()
    wait_ended(first.pid)
    os.kill(backend, 0)
    again = supervise()
    again.start()
    wait_ended(backend, 0.1)
    assert again.ask("select 1") == 1


def test_a_stale_pid_file_that_names_a_living_stranger_hurts_neither(
    cluster: Path, supervise: MakeSupervisor
) -> None:
    supervisor = supervise()
    owner = cluster.stat().st_uid
    with subprocess.Popen(["sleep", "60"], user=owner if ROOT else None) as stranger:
        pid_file = cluster / "postmaster.pid"
        pid_file.write_text(f"{stranger.pid}\n{cluster}\n1\n5432\n/nowhere\n\n  1 1\nready\n")
        os.chown(pid_file, owner, -1)
        supervisor.start()
        assert supervisor.ask("select 1") == 1
        assert stranger.poll() is None, "a process that only has the number is let alone"
        stranger.kill()


def test_a_kill_in_the_middle_of_initdb_leaves_nothing_to_clean_by_hand(
    work: Path, supervise: MakeSupervisor
) -> None:
    unfinished = work / "data" / "postgres" / "data.new"
    for marker in ("PG_VERSION", "base/1/PG_VERSION", "global/pg_control"):
        supervisor = supervise()
        supervisor.send(
            "start", data=str(work / "data"), ephemeral=False, run_as=None, system=str(work / "system")
        )
        wait_until((unfinished / marker).exists)
        supervisor.kill()
        assert not (work / "data" / "postgres" / "data").exists()
    (unfinished / "junk").mkdir(exist_ok=True)
    again = supervise()
    again.start()
    assert again.ask("select 1") == 1
    assert not unfinished.exists()


@pytest.mark.parametrize("stopped", ["checkpointer", "postmaster"])
@pytest.mark.parametrize("uid", accounts()[:1], indirect=True)
@pytest.mark.usefixtures("cluster")
def test_a_server_that_does_not_stop_is_ended_by_force_and_said_so(
    supervise: MakeSupervisor, stopped: str
) -> None:
    supervisor = supervise()
    first = supervisor.start()
    checkpointer = supervisor.number("select pid from pg_stat_activity where backend_type = 'checkpointer'")
    os.kill(checkpointer, signal.SIGSTOP)
    if stopped == "postmaster":
        os.kill(first.pid, signal.SIGSTOP)
    assert supervisor("stop", timeout_s=0.2) == "unclean"
    wait_ended(first.pid, 0.1)
    wait_ended(checkpointer, 0.1)
    supervisor.start()
    assert supervisor.ask("select 1") == 1
