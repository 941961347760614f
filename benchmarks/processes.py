"""The programs that a door is measured with: the example provider, and a gateway as the supervisor starts it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.fleet import PROVIDER_KEY
from tenantry.bootstrap import ChildRole, ChildSpec
from tenantry.gateway.serve import listen
from tenantry.settings import Settings

if TYPE_CHECKING:
    from benchmarks.world import World

PROVIDER: Final = Path(__file__).resolve().parents[1] / "examples/model_server.py"
READY_S: Final = 30.0
END_S: Final = 10.0


@contextlib.contextmanager
def provider() -> Iterator[str]:
    """The example model server on a free port; its base URL, which ends in ``/v1``."""
    command = [sys.executable, str(PROVIDER), "--port", "0", "--key", PROVIDER_KEY, "--exit-with-stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            word, _, url = process.stdout.readline().strip().partition(" ")
            assert word == "ready", "the example provider does not start; it said why above"
            yield url
        finally:
            process.stdin.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.asynccontextmanager
async def gateway(world: World) -> AsyncIterator[int]:
    """A gateway process on the world's database and keys; its port on 127.0.0.1."""
    listener = listen("127.0.0.1", 0)
    port: int = listener.getsockname()[1]
    settings = Settings(data=world.folder, port=port)
    spec = ChildSpec(
        role=ChildRole.GATEWAY,
        name="gateway-1",
        variables=settings.to_environment(),
        target=world.target,
        listeners=[listener.fileno()],
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tenantry.cli.process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=[listener.fileno()],
        env=dict(os.environ),
    )
    listener.close()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(spec) + b"\n")
        async with asyncio.timeout(READY_S):
            line = await process.stdout.readline()
        assert line.strip() == b"ready", "the gateway does not start; it said why above"
        yield port
    finally:
        process.stdin.close()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(END_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
