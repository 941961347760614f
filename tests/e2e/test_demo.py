"""``tenantry demo``: the account is true, and nothing is left."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from tests.e2e.platforms import COMMAND, children_of, clean_environment, is_running, wait_until


def left_behind(tmp: Path) -> list[Path]:
    return list(tmp.glob("tenantry-demo-*"))


@pytest.mark.timeout(240)
def test_the_demo_tells_what_happened_and_leaves_nothing(tmp_path: Path) -> None:
    environment = clean_environment({"TMPDIR": str(tmp_path)})
    done = subprocess.run(
        [*COMMAND, "demo"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    for words in (
        "web.fetch      denied",
        "no_web@",
        "ticket.update  allowed",
        "saw the credential of: borealis",
        "reached the web site: 0",
        "budget_exceeded",
        "beside dunes",
        "suspended",
        "nothing is left running or on disk",
    ):
        assert words in said, said
    books = next(line for line in said.splitlines() if "tokens in the ledger" in line)
    assert "✓" in books, books
    assert left_behind(tmp_path) == []


@pytest.mark.timeout(120)
def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "demo"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment({"TMPDIR": str(tmp_path)}),
    ) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "applying" in line:
                break
        children = children_of(demo.pid)
        assert len(children) >= 4, "three services and the platform"
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert not [pid for pid in children if is_running(pid)]
    assert left_behind(tmp_path) == []


@pytest.mark.timeout(120)
def test_killed_it_leaves_nothing_running_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    environment = clean_environment({"TMPDIR": str(tmp_path)})
    with subprocess.Popen(
        [*COMMAND, "demo"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "applying" in line:
                break
        children = children_of(demo.pid)
        demo.kill()
        demo.communicate()
    wait_until(lambda: not [pid for pid in children if is_running(pid)], 40)
    assert len(left_behind(tmp_path)) == 1
    code = "from tenantry.cli.demo_world import own_folder\nwith own_folder(): pass"
    subprocess.run([COMMAND[0], "-c", code], check=True, timeout=30, env=environment)
    assert left_behind(tmp_path) == []
