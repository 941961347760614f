"""``tenantry run``: runs of agents, opened around a program or by hand, listed, shown, stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tenantry.cli.options import AsJson, Data, Tenant
from tenantry.cli.output import Tone, moment
from tenantry.cli.session import Session
from tenantry.core.errors import InvalidInputError
from tenantry_client import OpenedRun

INPUT_BYTES_MAX = 1024 * 1024

Agent = Annotated[str, typer.Option("--agent", "-a", metavar="A", help="The agent's name.")]
Workspace = Annotated[
    str | None, typer.Option("--workspace", "-w", metavar="W", help="The agent's workspace, to be sure.")
]
Input = Annotated[
    str | None, typer.Option("--input", metavar="JSON", help="The run's input; @FILE reads it, - is stdin.")
]
Deadline = Annotated[
    int | None, typer.Option("--deadline-ms", min=1, help="How long the run may live, at most 24 h.")
]


def run_exec(
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- CMD...", help="The program to run, as it is.", show_default=False),
    ],
    *,
    tenant: Tenant,
    agent: Agent,
    workspace: Workspace = None,
    given: Input = None,
    deadline_ms: Deadline = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Open a run, run CMD here with the doors' variables, close the run as CMD ended.

    CMD needs no change: it finds OPENAI_BASE_URL, OPENAI_API_KEY and their like, its input as JSON on stdin, and its
    result is the last JSON value on its stdout. With --json what CMD prints goes to stderr. Exit status 0 when CMD
    succeeded, 1 when it failed, 3 when the run was refused.
    """
    from tenantry.cli.run_exec import Program

    session = Session(as_json=as_json, data=data)
    echo = sys.stderr.buffer if as_json else sys.stdout.buffer

    def opened(run: OpenedRun) -> None:
        session.output.note(f"run {run.run_id} of {tenant}/{agent} is open")

    ended = Program(session.doors(), echo).run(
        command,
        tenant_id=tenant,
        agent_id=agent,
        workspace_id=workspace,
        input_json=read_input(given),
        deadline_ms=deadline_ms,
        on_open=opened,
    )
    if as_json:
        session.output.json(ended)
    else:
        tone: Tone = "good" if ended.state == "succeeded" else "bad"
        session.output.note(f"run {ended.run_id} {ended.state} (status {ended.exit_code})", tone)
    if ended.artifacts is not None:
        session.output.note(f"its files stay in {ended.artifacts}")
    if ended.problem is not None:
        session.output.note(f"the platform does not know yet that it ended: {ended.problem}", "bad")
    if ended.exit_code != 0 or not ended.finished:
        raise typer.Exit(1)


def run_start(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name.")],
    *,
    tenant: Tenant,
    workspace: Workspace = None,
    given: Input = None,
    deadline_ms: Deadline = None,
    key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="KEY", help="The same key opens the same run again."),
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Open an external run and print its token and doors, for an agent that runs elsewhere.

    The token is all that the agent needs, and is shown once. The run ends at its deadline, or by
    `POST /api/v1/runs/{id}/finish` with the token.
    """
    from tenantry.cli.run_exec import door_variables

    session = Session(as_json=as_json, data=data)
    run = session.doors().open_run(
        tenant_id=tenant,
        agent_id=agent,
        workspace_id=workspace,
        input=read_input(given),
        deadline_ms=deadline_ms,
        mode="external",
        idempotency_key=key,
    )
    if as_json:
        session.output.json(run)
        return
    session.output.note(f"run {run.run_id} is open until {run.expires_at}; its agent's environment:")
    for name, value in door_variables(run).items():
        session.output.line(f"export {name}={value}")


def read_input(given: str | None) -> object:
    """The value of --input: JSON, ``@FILE`` or ``-``. Errors: `InvalidInputError`."""
    if given is None:
        return None
    try:
        if given == "-":
            text = sys.stdin.read(INPUT_BYTES_MAX + 1)
        elif given.startswith("@"):
            with Path(given[1:]).open(encoding="utf-8") as file:
                text = file.read(INPUT_BYTES_MAX + 1)
        else:
            text = given
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"--input cannot be read: {error}", path="--input") from None
    if len(text) > INPUT_BYTES_MAX:
        raise InvalidInputError("--input holds at most 1 MiB", path="--input")
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeEncodeError) as error:
        raise InvalidInputError(f"--input is not JSON: {error}", path="--input") from None


def run_list(
    *,
    tenant: Tenant,
    agent: Annotated[
        str | None, typer.Option("--agent", "-a", metavar="A", help="Only runs of this agent.")
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="Only running, succeeded, failed, cancelled or expired ones.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 50,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """A tenant's runs, newest first."""
    session = Session(as_json=as_json, data=data)
    runs = session.control().list_runs(tenant_id=tenant, agent_id=agent, state=state, limit=limit)
    if as_json:
        session.output.json({"runs": runs})
        return
    session.output.table(
        ("run", "agent", "workspace", "state", "mode", "started", "ended"),
        (
            (
                row.run_id,
                row.agent_id,
                row.workspace_id,
                row.state,
                row.mode,
                moment(row.started_at),
                moment(row.ended_at),
            )
            for row in runs
        ),
        empty="no runs yet",
    )


def run_show(
    run_id: Annotated[str, typer.Argument(metavar="RUN")],
    *,
    tenant: Tenant,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """A run, its result, and what it did: each action with its verdict and the policies that decided."""
    session = Session(as_json=as_json, data=data)
    shown = session.control().show_run(tenant_id=tenant, run_id=run_id)
    if as_json:
        session.output.json(shown)
        return
    run = shown.run
    session.output.fields(
        (
            ("run", run.run_id),
            ("agent", f"{run.agent_id} in {run.workspace_id}"),
            ("state", f"{run.state}{', killed' if shown.killed else ''}"),
            ("started", moment(run.started_at)),
            ("ended", moment(run.ended_at)),
            ("labels", shown.labels or None),
            ("result", shown.result),
        )
    )
    session.output.table(
        ("at", "action", "on", "verdict", "state", "tokens", "because"),
        (
            (
                moment(entry.begun_at),
                entry.action_name,
                entry.target_system,
                entry.verdict,
                entry.status or entry.state,
                entry.used_tokens,
                entry.reason,
            )
            for entry in shown.actions
        ),
        empty="it did nothing yet",
    )
