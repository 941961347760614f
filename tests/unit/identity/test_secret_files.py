"""Private files: whole or not at all, for the owner only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tenantry.core.clock import SystemClock
from tenantry.core.errors import InvalidInputError
from tenantry.identity.secret_files import create_private_file, read_private_file, replace_private_file

CLOCK = SystemClock()


def test_the_first_writer_wins_and_all_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "operator.key"
    assert read_private_file(path) is None
    assert create_private_file(path, b"one", CLOCK) == b"one"
    assert create_private_file(path, b"two", CLOCK) == b"one"
    replace_private_file(path, b"three", CLOCK)
    assert read_private_file(path) == b"three"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["operator.key"]


def test_a_generous_umask_changes_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create_private_file(tmp_path / "k", b"x", CLOCK)
    finally:
        os.umask(before)
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_open_to_others_is_refused_with_its_remedy(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(b"x")
    path.chmod(mode)
    with pytest.raises(InvalidInputError, match="chmod 600"):
        read_private_file(path)
    assert path.stat().st_mode & 0o777 == mode


def test_links_folders_pipes_and_long_files_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    create_private_file(target, b"x", CLOCK)
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "folder").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    replace_private_file(tmp_path / "long", b"x" * 20_000, CLOCK)
    for name in ("link", "folder", "pipe", "long"):
        with pytest.raises(InvalidInputError):
            read_private_file(tmp_path / name)
    with pytest.raises(InvalidInputError):
        create_private_file(tmp_path / "link", b"mine", CLOCK)
    assert target.read_bytes() == b"x"
