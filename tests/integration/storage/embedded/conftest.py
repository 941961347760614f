"""Accounts, folders and clusters for the tests of the embedded server.

A test drives supervisors that are processes of their own. As root each runs twice, with root and with
`nobody` as the supervisor's account, if that one can run this Python; as an ordinary user once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.storage.embedded.supervisor import (
    ROOT,
    MakeSupervisor,
    Supervisor,
    accounts,
    wait_ended,
)

# What only root can show, such as a foreign account that is refused.
collect_ignore = [] if ROOT else ["test_root.py"]


@pytest.fixture(params=accounts())
def uid(request: pytest.FixtureRequest) -> int:
    """The supervisor's account."""
    assert isinstance(request.param, int)
    return request.param


def open_folder(uid: int) -> Path:
    """A folder of this account that every account can enter; pytest's own are closed to all."""
    folder = Path(tempfile.mkdtemp(prefix="embedded-test-"))
    folder.chmod(0o755)
    os.chown(folder, uid, -1)
    return folder


@pytest.fixture
def work(uid: int) -> Iterator[Path]:
    folder = open_folder(uid)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def supervise(uid: int, work: Path) -> Iterator[MakeSupervisor]:
    made: list[Supervisor] = []

    def make(*, path: Path | None = None, hostile: bool = False) -> Supervisor:
        made.append(Supervisor(uid, work, path=path, hostile=hostile))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.close()
    for started in (answer for supervisor in made for answer in supervisor.started):
        wait_ended(started.pid)
        shutil.rmtree(started.socket_dir.parent, ignore_errors=True)  # of those that were killed


@pytest.fixture(scope="session")
def template() -> Iterator[Callable[[int], Path]]:
    """A data folder with a stopped cluster for each account, made when first asked for."""
    made: dict[int, Path] = {}

    def get(uid: int) -> Path:
        if uid not in made:
            made[uid] = open_folder(uid)
            supervisor = Supervisor(uid, made[uid])
            supervisor.start()
            supervisor.close()
        return made[uid] / "data"

    yield get
    for folder in made.values():
        shutil.rmtree(folder)


@pytest.fixture
def cluster(uid: int, work: Path, template: Callable[[int], Path]) -> Path:
    """A ready cluster in the test's data folder, as if that folder had been moved there; its path."""
    subprocess.run(["cp", "-a", str(template(uid)), str(work / "data")], check=True, timeout=30)
    return work / "data" / "postgres" / "data"
