"""What the demo runs: other people's services, a platform, and agents; all of it gone afterwards.

Every process ends with the pipe on its stdin, so that nothing outlives a demo that was killed; a folder that such a
demo left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tenantry.core.errors import TenantryError
from tenantry.settings import agent_environment

PREFIX: Final = "tenantry-demo-"
START_S: Final = 120.0
END_S: Final = 30.0
AGENT_S: Final = 120.0
BOOKS_BYTES_MAX: Final = 64 * 1024 * 1024
EXAMPLE_FILES: Final = ("fleet.yaml", "model_server.py", "ticket_service.py", "web_site.py", "agents")


class DemoError(TenantryError):
    """The demo cannot go on; says what is missing or what failed, with its last words."""


def find_examples() -> Path:
    """The folder of the examples: of the clone that this program runs from, or of the one it runs in.

    Errors: `DemoError`.
    """
    for folder in (Path(__file__).resolve().parents[3] / "examples", Path.cwd() / "examples"):
        if all((folder / name).exists() for name in EXAMPLE_FILES):
            return folder
    raise DemoError("the demo needs the examples/ folder: run it from a clone of the repository")


def require_agents_packages() -> None:
    """Check that the example agents can run here. Errors: `DemoError`."""
    if importlib.util.find_spec("openai") is None:
        raise DemoError("the demo's agents need the `openai` package: install it beside tenantry")


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A private folder that is removed at the end; folders of demos that were killed are removed first."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            fd = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(fd)


class Service:
    """A process that says ``ready URL`` and serves until its stdin closes."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.name = name
        self.url = url
        self._process = process
        self._log = log

    @classmethod
    def start(
        cls, name: str, command: list[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> Service:
        """Start it and wait until it serves. Errors: `DemoError` with its last words."""
        with log.open("ab") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=dict(environment if environment is not None else agent_environment()),
                # Ctrl-C is the demo's; what it started ends in the demo's order.
                start_new_session=True,
            )
        assert process.stdout is not None
        timer = threading.Timer(START_S, process.kill)
        timer.start()
        try:
            word, _, url = process.stdout.readline().decode("utf-8", "replace").strip().partition(" ")
        finally:
            timer.cancel()
        service = cls(name, process, url, log)
        if word != "ready":
            service.stop()
            raise DemoError(f"{name} does not start; it said: {service.last_words()}")
        return service

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        with contextlib.suppress(OSError):
            return self._log.read_bytes()[-2000:].decode("utf-8", "replace").strip() or "(nothing)"
        return "(nothing)"

    def books(self) -> dict[str, Any]:
        """An example server's own books."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        try:
            connection.request("GET", "/books")
            books: dict[str, Any] = json.loads(connection.getresponse().read(BOOKS_BYTES_MAX))
            return books
        finally:
            connection.close()

    def stop(self) -> None:
        """Ask it to end, and see that it did."""
        process = self._process
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Cli:
    """Runs ``tenantry`` commands as a person would, against one data folder."""

    def __init__(self, data: Path, extra: Mapping[str, str]) -> None:
        self._environment = {**agent_environment(), "TENANTRY_DATA": str(data), **extra}

    def start(self, *arguments: str, niceness: int = 0) -> subprocess.Popen[bytes]:
        """A command that goes on beside us; its answer is JSON on stdout."""
        lowered = ["nice", "-n", str(niceness)] if niceness and shutil.which("nice") else []
        return subprocess.Popen(
            [*lowered, *command_line(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )

    def wait(self, process: subprocess.Popen[bytes], *, may_fail: bool = False) -> dict[str, Any]:
        """Its answer. Errors: `DemoError` with its last words, unless it may fail."""
        try:
            out, err = process.communicate(timeout=AGENT_S)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            process.communicate(timeout=END_S)
            raise
        text = out if out.strip() else err
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError:
            answer = {}
        if not answer or (process.returncode != 0 and not may_fail):
            raise DemoError(f"a command failed: {err.decode('utf-8', 'replace')[-2000:].strip()}")
        return answer

    def run(self, *arguments: str, may_fail: bool = False) -> dict[str, Any]:
        """A command's answer."""
        return self.wait(self.start(*arguments), may_fail=may_fail)


def command_line() -> list[str]:
    """How this very program is started again."""
    return [sys.executable, "-m", "tenantry"]
