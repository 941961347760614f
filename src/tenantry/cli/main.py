"""The command line: what commands there are, and what their ends mean.

Exit status: 0 done, 1 failed, 2 bad usage or bad input, 3 refused by the platform.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
import typer
from typer.main import get_command

from tenantry.cli import fleet, keys, policies, runs, secrets, switches, tenants
from tenantry.cli.demo import demo
from tenantry.cli.doctor import doctor
from tenantry.cli.output import Output
from tenantry.cli.up import up
from tenantry.core.errors import ForbiddenError, InvalidInputError, NotFoundError, TenantryError
from tenantry_client import ApiError, ClientError

DONE: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2
REFUSED: Final = 3
INTERRUPTED: Final = 130
# Answers that mean the request itself is wrong, not that the platform will not do it.
_BAD_INPUT: Final = frozenset({400, 405, 406, 408, 409, 411, 413, 415, 421, 422})


def _show_version(given: bool) -> None:  # noqa: FBT001 - the option's own signature
    if given:
        from tenantry import __version__

        print(f"tenantry {__version__}")
        raise typer.Exit


def tenantry(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Show the version.", callback=_show_version)
    ] = False,
) -> None:
    """Run many customers' AI agents on one platform, and keep what each does inside its boundary."""
    del version


def build_app() -> typer.Typer:
    """Every command."""
    app = typer.Typer(
        name="tenantry",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(tenantry)
    app.command()(up)
    app.command()(demo)
    app.command()(doctor)
    for fleet_command in (fleet.apply, fleet.diff, fleet.export):
        app.command()(fleet_command)
    _add_tenant_commands(app)
    run = _group(app, "run", "Runs of agents.")
    run.command("exec")(runs.run_exec)
    run.command("start")(runs.run_start)
    run.command("list")(runs.run_list)
    run.command("show")(runs.run_show)
    switches.add_part_commands(run, "run")
    switches.add_part_commands(_group(app, "workspace", "Switches of one workspace."), "workspace")
    switches.add_part_commands(_group(app, "agent", "Switches of one agent."), "agent")
    _group(app, "switch", "The history of switches.").command("list")(switches.switch_list)
    _group(app, "quota", "Meters and limits.").command("show")(tenants.quota_show)
    _add_write_commands(app)
    return app


def _add_tenant_commands(app: typer.Typer) -> None:
    tenant = _group(app, "tenant", "Tenants, their state and their switches.")
    tenant.command("list")(tenants.tenant_list)
    tenant.command("show")(tenants.tenant_show)
    tenant.command("kill")(switches.tenant_kill)
    tenant.command("revive")(switches.tenant_revive)
    tenant.command("mode")(switches.tenant_mode)
    tenant.command("freeze")(switches.tenant_freeze)
    tenant.command("unfreeze")(switches.tenant_unfreeze)


def _add_write_commands(app: typer.Typer) -> None:
    key = _group(app, "key", "API keys of a tenant's people and services.")
    key.command("create")(keys.key_create)
    key.command("list")(keys.key_list)
    key.command("revoke")(keys.key_revoke)
    secret = _group(app, "secret", "A tenant's secrets; no command ever prints a value.")
    secret.command("put")(secrets.secret_put)
    secret.command("rotate")(secrets.secret_rotate)
    secret.command("revoke")(secrets.secret_revoke)
    secret.command("list")(secrets.secret_list)
    policy = _group(app, "policy", "Policies as code.")
    policy.command("check")(policies.policy_check)
    policy.command("activate")(policies.policy_activate)
    policy.command("history")(policies.policy_history)
    policy.command("rollback")(policies.policy_rollback)


def _group(app: typer.Typer, name: str, words: str) -> typer.Typer:
    group = typer.Typer(help=words, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = get_command(build_app())
    try:
        command.main(given, prog_name="tenantry")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (TenantryError, ClientError) as error:
        _tell(error, as_json="--json" in given)
        return status_of(error)
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody to tell.
        sys.stderr.close()
        return FAILED
    return DONE


def status_of(error: Exception) -> int:
    """The exit status that an error means."""
    match error:
        case ApiError():
            if error.status in _BAD_INPUT and error.verdict is None:
                return BAD_USAGE
            return REFUSED if error.status < 500 or error.verdict is not None else FAILED
        case InvalidInputError():
            return BAD_USAGE
        case ForbiddenError() | NotFoundError():
            return REFUSED
        case _:
            return FAILED


def _tell(error: Exception, *, as_json: bool) -> None:
    output = Output(as_json=as_json)
    if as_json:
        problem = error.problem if isinstance(error, ApiError) else {"title": str(error)}
        path = getattr(error, "path", None)
        shown = {**({} if path in {None, "$"} else {"path": path}), **problem}
        sys.stderr.write(msgspec.json.encode({"error": shown}).decode() + "\n")
        return
    path = error.path if isinstance(error, InvalidInputError) and error.path != "$" else None
    words = str(error) if path is None or path in str(error) else f"{error} (at {path})"
    output.note(f"error: {words}", "bad")


if __name__ == "__main__":
    sys.exit(main())
