"""Hostile and strange paths, planted files, and the small parts of the embedded server."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from pathlib import Path

import pytest
from tests.integration.storage.embedded.supervisor import (
    MakeSupervisor,
    RefusedError,
)

from tenantry.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tenantry.storage.embedded_places import own_account
from tenantry.storage.embedded_process import (
    LOG_BYTES_MAX,
    LOG_TAIL_BYTES,
    ServerLog,
    child_command,
    run_child,
)
from tenantry.storage.embedded_settings import account_map, host_based_access


def test_a_long_data_path_with_strange_signs_works_and_a_longer_one_is_told(
    work: Path, supervise: MakeSupervisor
) -> None:
    folder = work / ("d" * 200) / ("ü %s'\"$(x)`" * 10) / ("e" * 200)
    supervisor = supervise()
    supervisor.start(folder)
    assert supervisor.ask("select 1") == 1
    supervisor("stop")
    for data, words in (
        (work / "/".join(["f" * 200] * 5), "longer than 800 bytes"),
        (work / "a\nb", "control character"),
    ):
        with pytest.raises(RefusedError, match=words):
            supervise().start(data)
    assert not (work / "a\nb").exists()


@pytest.mark.parametrize("name", ["postgres.lock", "postgres.log", "postgres.json"])
@pytest.mark.parametrize("make", ["symlink", "hardlink", "fifo"])
def test_a_planted_file_is_neither_followed_nor_written(tmp_path: Path, name: str, make: str) -> None:
    victim, data = tmp_path / "victim", tmp_path / "data"
    data.mkdir()
    victim.write_text('{"home": "/", "cluster": "../../.."}')
    match make:
        case "symlink":
            (data / name).symlink_to(victim)
        case "hardlink":
            (data / name).hardlink_to(victim)
        case _:
            os.mkfifo(data / name)
    before = (victim.read_text(), victim.stat().st_mode, victim.stat().st_uid)
    with pytest.raises(EmbeddedPostgresError, match=name):
        EmbeddedPostgres(data, system_root=tmp_path / "system").start()
    assert (victim.read_text(), victim.stat().st_mode, victim.stat().st_uid) == before
    assert not (data / "postgres").exists()


@pytest.mark.parametrize(
    "text", ["", "[", "[1]", "7", "[" * 60_000, '{"cluster": "../../x"}', '{"cluster": "\ud800"}', "\0" * 99]
)
def test_a_damaged_record_is_told_and_kept(tmp_path: Path, text: str) -> None:
    record = tmp_path / "data" / "postgres.json"
    record.parent.mkdir()
    content = text.encode(errors="surrogatepass")
    record.write_bytes(content)
    with pytest.raises(EmbeddedPostgresError, match=r"postgres\.json is damaged"):
        EmbeddedPostgres(record.parent, system_root=tmp_path / "system").start()
    assert record.read_bytes() == content


@pytest.mark.parametrize("make", ["folder", "symlink", "file"])
def test_a_foreign_thing_in_the_cluster_s_place_is_refused_and_untouched(
    uid: int, work: Path, supervise: MakeSupervisor, make: str
) -> None:
    place, foreign = work / "data" / "postgres", work / "foreign"
    for folder in (work / "data", foreign):
        folder.mkdir()
        os.chown(folder, uid, -1)
    (foreign / "thing").write_text("kept")
    match make:
        case "folder":
            foreign.rename(place)
            os.chown(place, uid, -1)
        case "symlink":
            place.symlink_to(foreign)
        case _:
            place.write_text("kept")
    with pytest.raises(RefusedError, match="move it away"):
        supervise().start()
    assert (place if make == "file" else place / "thing").read_text() == "kept"


@pytest.mark.usefixtures("cluster")
def test_a_socket_folder_swapped_for_a_link_is_not_followed(work: Path, supervise: MakeSupervisor) -> None:
    supervisor = supervise()
    first = supervisor.start()
    trap = work / "trap"
    trap.mkdir(mode=0o777)
    trap.chmod(0o777)
    (trap / ".s.PGSQL.5432").write_text("kept")
    os.kill(first.pid, signal.SIGKILL)
    assert supervisor("crash_seen")
    shutil.rmtree(first.socket_dir)
    first.socket_dir.symlink_to(trap)
    second = supervisor.start()
    assert second.socket_dir != first.socket_dir
    assert supervisor.ask("select 1") == 1
    assert [path.name for path in trap.iterdir()] == [".s.PGSQL.5432"]
    assert (trap / ".s.PGSQL.5432").read_text() == "kept"


def test_the_log_is_cut_while_it_is_written_and_keeps_one_older_part(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "postgres.log")
    os.write(log.fd, b"old\n" * (LOG_BYTES_MAX // 4) + b"last\n")
    log.cut_if_large()
    assert os.fstat(log.fd).st_size == 0
    assert (tmp_path / "postgres.log.1").read_bytes().endswith(b"old\nlast\n")
    os.write(log.fd, b"new\n")
    log.cut_if_large()
    assert log.tail() == "new"
    os.write(log.fd, b"x" * 10_000)
    assert len(log.tail()) == LOG_TAIL_BYTES
    log.close()
    assert stat.S_IMODE((tmp_path / "postgres.log.1").stat().st_mode) == 0o600


def test_a_child_whose_parent_is_gone_does_not_begin(tmp_path: Path) -> None:
    command = child_command("exec", own_account(), "2", "/bin/touch", str(tmp_path / "begun"))
    command[command.index(str(os.getpid()))] = "1"
    assert run_child(command, timeout_s=10)[0] == 125
    assert not (tmp_path / "begun").exists()


def test_access_files_let_in_exactly_whom_they_name() -> None:
    lines = [line for line in host_based_access().splitlines() if not line.startswith("#")]
    assert lines == ["local all all peer map=tenantry"]
    own = own_account()
    assert len(account_map((own, own)).splitlines()) == 1 + 6
    for name in ('a"b', "/regex.*", "a\nb"):
        with pytest.raises(EmbeddedPostgresError, match="cannot stand in"):
            account_map((type(own)(uid=1, gid=1, name=name),))
