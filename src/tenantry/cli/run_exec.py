"""``tenantry run exec``: a run around a program that knows nothing of us.

    opened -> program runs -> finished (succeeded, failed or cancelled, as the program ended)

The program gets the doors' variables and none of the platform's own. It runs in a process group of its own,
and signals that we get go on to that group. Whatever happens to the program, the run is finished.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

import msgspec

from tenantry.cli.agent_output import Tail
from tenantry.core.errors import TenantryError
from tenantry.settings import agent_environment
from tenantry_client import ApiError, Client, ClientError, OpenedRun

PIECE_BYTES: Final = 64 * 1024
# Once more as JSON, a character of text that is JSON already takes two bytes at most, but for those above ASCII.
TEXT_CHARACTERS_MAX: Final = 40_000
FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The program is gone, but something that it started may hold its stdout open.
PIPE_S: Final = 5.0
_DOORS: Final = ("OPENAI_", "ANTHROPIC_")


class ProgramError(TenantryError):
    """The program cannot be started."""


class ExecResult(msgspec.Struct, frozen=True):
    """How a run went.

    `exit_code` is the program's, negative for a signal; `finished` says whether the platform knows.
    """

    run_id: str
    state: str
    exit_code: int
    result: Any
    finished: bool
    artifacts: str | None = None
    problem: str | None = None


class Program:
    """One run of one program. `echo` gets what it prints, as it prints it."""

    def __init__(self, client: Client, echo: BinaryIO, *, signals: bool = True) -> None:
        self._client = client
        self._echo = echo
        self._signals = signals
        self._interrupted = 0

    def run(
        self,
        command: Sequence[str],
        *,
        tenant_id: str,
        agent_id: str,
        workspace_id: str | None = None,
        input_json: object = None,
        deadline_ms: int | None = None,
        on_open: Callable[[OpenedRun], None] | None = None,
    ) -> ExecResult:
        """Open a run, run `command` to its end, finish the run.

        Errors: `ApiError` when the run is refused; `ProgramError` when there is no such program (then no run
        was opened, or it was finished as failed); `ClientError` when the platform does not answer.
        """
        if shutil.which(command[0]) is None:
            raise ProgramError(f"there is no program {command[0]!r}")
        opened = self._client.open_run(
            tenant_id=tenant_id,
            agent_id=agent_id,
            workspace_id=workspace_id,
            input=input_json,
            deadline_ms=deadline_ms,
            mode="attached",
        )
        if on_open is not None:
            on_open(opened)
        out = Path(tempfile.mkdtemp(prefix="tenantry-out-"))
        tail = Tail()
        exit_code: int | None = None
        try:
            exit_code = self._run(command, door_environment(opened, out), input_json, tail)
        finally:
            state, finished, problem = self._finish(opened, exit_code, tail)
            artifacts = _left_in(out)
        assert exit_code is not None
        return ExecResult(opened.run_id, state, exit_code, tail.result(), finished, artifacts, problem)

    def _run(self, command: Sequence[str], environment: dict[str, str], given: object, tail: Tail) -> int:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                process_group=0,
            )
        except OSError as error:
            raise ProgramError(f"cannot run {command[0]!r}: {error.strerror}") from None
        with self._passing_signals_to(process):
            assert process.stdin is not None
            assert process.stdout is not None
            feeder = threading.Thread(target=_feed, args=(process.stdin, given), daemon=True)
            reader = threading.Thread(target=self._read, args=(process.stdout, tail), daemon=True)
            feeder.start()
            reader.start()
            status = process.wait()
            reader.join(PIPE_S)
            feeder.join(PIPE_S)
        return status

    def _read(self, stdout: BinaryIO, tail: Tail) -> None:
        while data := os.read(stdout.fileno(), PIECE_BYTES):
            tail.add(data)
            with contextlib.suppress(OSError, ValueError):
                self._echo.write(data)
                self._echo.flush()

    @contextlib.contextmanager
    def _passing_signals_to(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        def forward(number: int, _frame: FrameType | None) -> None:
            self._interrupted += 1
            # Who asks twice is not asking any more.
            sent = signal.SIGKILL if self._interrupted > 2 else number
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sent)

        if not self._signals:
            yield
            return
        before = {number: signal.signal(number, forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _finish(self, opened: OpenedRun, exit_code: int | None, tail: Tail) -> tuple[str, bool, str | None]:
        state = "succeeded" if exit_code == 0 else "failed"
        if self._interrupted and exit_code != 0:
            state = "cancelled"
        try:
            try:
                self._client.finish_run(opened, state=state, result=tail.result())
            except ApiError as error:
                if error.path is None or not error.path.startswith("$.result"):
                    raise
                # A result that JSON allows and the platform does not hold goes as text, its end at least.
                text = msgspec.json.encode(tail.result()).decode("utf-8", "replace")
                self._client.finish_run(opened, state=state, result=text[-TEXT_CHARACTERS_MAX:])
        except ClientError as error:
            return state, False, str(error)
        return state, True, None


def door_environment(opened: OpenedRun, out: Path) -> dict[str, str]:
    """An agent's environment: ours without the platform's and other doors' variables, and its run's doors."""
    inherited = {name: value for name, value in agent_environment().items() if not name.startswith(_DOORS)}
    # A proxy for the outer world must not get the run's token.
    host = urlsplit(opened.doors.openai_base_url).hostname or ""
    direct = {name: ",".join(filter(None, (inherited.get(name), host))) for name in ("NO_PROXY", "no_proxy")}
    return {**inherited, **direct, **door_variables(opened), "TENANTRY_OUT": str(out)}


def door_variables(opened: OpenedRun) -> Mapping[str, str]:
    """The doors of one run, as CONTRACT names them."""
    base = opened.doors.openai_base_url.removesuffix("/v1")
    return {
        "OPENAI_BASE_URL": f"{base}/v1",
        "OPENAI_API_KEY": opened.token,
        "ANTHROPIC_BASE_URL": base,
        "ANTHROPIC_API_KEY": opened.token,
        "TENANTRY_MCP_URL": f"{base}/mcp",
        "TENANTRY_RUN_TOKEN": opened.token,
        "TENANTRY_RUN_ID": opened.run_id,
    }


def _feed(stdin: BinaryIO, given: object) -> None:
    """The input as JSON on stdin; a program that does not read it is no fault."""
    with contextlib.suppress(OSError):
        try:
            if given is not None:
                stdin.write(msgspec.json.encode(given) + b"\n")
        finally:
            stdin.close()


def _left_in(out: Path) -> str | None:
    """The folder, when the program left something there; else it is removed."""
    try:
        out.rmdir()
    except OSError:
        return str(out)
    return None
