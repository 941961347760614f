"""docs/tutorial.md works as it stands: its commands are run in its order, on another port."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenantry.bootstrap import list_orphan_clusters

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```sh( terminal)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SET_UP = "make demo"


def blocks() -> list[tuple[bool, str]]:
    """Each block and whether it holds a terminal; the one that sets the clone up is done already."""
    found = [(bool(kind), text) for kind, text in BLOCK.findall(TUTORIAL.read_text(encoding="utf-8"))]
    return [(kind, text) for kind, text in found if SET_UP not in text]


def free_pair() -> int:
    """A port that is free with the next one."""
    for _ in range(50):
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
                return port
    raise AssertionError("no two free ports side by side")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with the examples and the commands on its path, as in a clone that was set up."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "bin").mkdir()
    for name, arguments in (("tenantry", "-m tenantry"), ("python", "")):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    yield tmp_path
    data = tmp_path / ".tenantry"
    shutil.rmtree(data, ignore_errors=True)
    for home, folder in list_orphan_clusters():
        if folder == data:
            shutil.rmtree(home)


def environment(place: Path) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("TENANTRY_", "OPENAI_"))
    }
    return {**kept, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}


@pytest.mark.timeout(150)
def test_the_tutorial_works(place: Path) -> None:
    platform, provider = free_pair(), free_pair()

    def moved(text: str) -> str:
        return text.replace("8700", str(platform)).replace("9911", str(provider))

    env = environment(place)
    with contextlib.ExitStack() as stack:
        for is_terminal, text in blocks():
            if is_terminal:
                process = stack.enter_context(
                    subprocess.Popen(
                        ["/bin/sh", "-c", f"exec {moved(text).strip()}"],
                        cwd=place,
                        env=env,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        text=True,
                    )
                )
                stack.callback(process.terminate)
                assert process.stdout is not None
                assert process.stdout.readline().startswith("ready ")
        script = "\n".join(moved(text) for is_terminal, text in blocks() if not is_terminal)
        done = subprocess.run(
            ["/bin/sh", "-eu", "-c", script],
            cwd=place,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for word in (
        "budget_exceeded",
        "no_models@2",
        "refused, as it should be",
        "suspended, as it should be",
        "confirmed at",
    ):
        assert word in said, said
