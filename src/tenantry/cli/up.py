"""``tenantry up``: the platform in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tenantry.cli.options import AsJson, Data
from tenantry.cli.output import Output
from tenantry.cli.session import ADDRESS_FILE, Address
from tenantry.settings import Settings


def up(
    *,
    data: Data = None,
    host: Annotated[str | None, typer.Option(help="Where to listen [TENANTRY_HOST].")] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65534, help="The gateways' port, control's is the next one; 0 takes a free pair."
        ),
    ] = None,
    gateways: Annotated[
        int | None, typer.Option(min=1, max=64, help="Gateway processes that share the port.")
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(
            help="An external PostgreSQL; better as TENANTRY_DATABASE_URL, which `ps` does not show."
        ),
    ] = None,
    fleet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Apply this fleet file before saying ready.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="The least level that is logged: debug, info, warning, error.")
    ] = None,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Throw the embedded database away at the end.")
    ] = False,
    exit_with_stdin: Annotated[
        bool,
        typer.Option("--exit-with-stdin", help="End when stdin does, so as not to outlive who started it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the platform until SIGTERM or Ctrl-C; prints `ready http://H:P` once it serves.

    Starts PostgreSQL under the data folder (or uses the one given), brings it up to date, and runs the gateways and
    control as processes of their own. Logs go to stderr, one JSON object a line.
    """
    from tenantry.cli.supervisor import Supervisor

    settings = Settings.from_environment().with_options(
        data=data, host=host, port=port, gateways=gateways, database_url=database_url, log_level=log_level
    )
    settings = Settings.from_environment(settings.to_environment())
    output = Output(as_json=as_json)
    supervisor = Supervisor(settings, ephemeral=ephemeral, exit_with_stdin=exit_with_stdin, say=output.note)

    async def ready() -> None:
        address = Address(supervisor.url, supervisor.control_url, os.getpid())
        path = settings.data / ADDRESS_FILE
        await asyncio.to_thread(write_private, path, msgspec.json.encode(address))
        if fleet is not None:
            await asyncio.to_thread(_apply, settings, fleet)
        if as_json:
            output.json({"ready": supervisor.url, "control": supervisor.control_url})
        else:
            output.line(f"ready {supervisor.url}")

    try:
        asyncio.run(supervisor.run(ready))
    finally:
        # Only the supervisor that wrote it takes it away: another one may be what stopped this one.
        if supervisor.served:
            with contextlib.suppress(OSError):
                (settings.data / ADDRESS_FILE).unlink(missing_ok=True)


def _apply(settings: Settings, fleet: Path) -> None:
    from tenantry.cli.fleet import apply_file
    from tenantry.cli.session import Session

    session = Session(data=settings.data)
    apply_file(session, fleet)


def write_private(path: Path, content: bytes) -> None:
    """Put a small file in place in one step, for its owner only."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    draft.replace(path)
