"""``tenantry up`` as a process, and ``tenantry`` commands against it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tenantry.bootstrap import list_orphan_clusters
from tenantry.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
COMMAND = [sys.executable, "-m", "tenantry"]
START_S = 60.0


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TENANTRY_")}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), **(extra or {})}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str

    def json(self) -> Any:  # noqa: ANN401 - whatever the command printed
        return json.loads(self.out)


def run_cli(*arguments: str, env: Mapping[str, str] | None = None, stdin: str | None = None) -> Done:
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=50,
        check=False,
        env=clean_environment(env),
    )
    return Done(done.returncode, done.stdout, done.stderr)


def call_cli(*arguments: str, env: Mapping[str, str] | None = None, stdin: str | None = None) -> Done:
    """The same without a new process, which costs half a second."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    given = io.TextIOWrapper(io.BytesIO((stdin or "").encode()), encoding="utf-8")
    with (
        mock.patch.dict(os.environ, clean_environment(env), clear=True),
        mock.patch.object(sys, "stdin", given),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = main(arguments)
    said = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return Done(status, *said)


@dataclass
class Platform:
    """A supervisor and what it serves."""

    data: Path
    process: subprocess.Popen[str]
    url: str

    def cli(self, *arguments: str, env: Mapping[str, str] | None = None, stdin: str | None = None) -> Done:
        """A command against this platform; within this process, unless it runs programs or serves."""
        run = run_cli if arguments[:1] == ("up",) or arguments[:2] == ("run", "exec") else call_cli
        return run(*arguments, env={"TENANTRY_DATA": str(self.data), **(env or {})}, stdin=stdin)

    def get(self, path: str, base: str | None = None) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"{base or self.url}{path}", timeout=10) as answer:  # noqa: S310 - our own
                return answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read()
        except OSError:
            # A gateway that was killed takes with it what it had just accepted.
            return 0, b""

    def children(self) -> list[int]:
        """Every process that the supervisor started."""
        return children_of(self.process.pid)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal the supervisor; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [
            int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()
        ]
    return []


def wait_until(holds: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Look until it holds: for what another process does, and no signal tells of."""
    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "did not come about in time"
        pause.wait(0.05)


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@contextlib.contextmanager
def data_folder() -> Iterator[Path]:
    """A place for a data folder; nothing is left of it, nor of a cluster that root keeps elsewhere."""
    parent = Path(tempfile.mkdtemp(prefix="tenantry-e2e-"))
    try:
        yield parent / "data"
    finally:
        shutil.rmtree(parent, ignore_errors=True)
        for home, folder in list_orphan_clusters():
            if folder == parent / "data":
                shutil.rmtree(home)


def launch(data: Path, *options: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "up", "--data", str(data), "--port", "0", "--exit-with-stdin", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(env),
    )


@contextlib.contextmanager
def serving(data: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Platform]:
    """A platform until the block ends; it never outlives this process."""
    process = launch(data, *options, env=env)
    said: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None
    stderr = process.stderr
    listener = threading.Thread(target=lambda: said.extend(stderr), daemon=True)
    listener.start()
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    try:
        word, _, url = process.stdout.readline().strip().partition(" ")
        timer.cancel()
        assert word == "ready", "".join(said)
        yield Platform(data, process, url)
    finally:
        timer.cancel()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        listener.join(5)
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
