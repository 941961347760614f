"""``tenantry secret``: a tenant's secrets. A value comes from a variable, a file or stdin, and is never shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tenantry.cli.options import AsJson, Data, Tenant
from tenantry.cli.output import moment
from tenantry.cli.session import Session
from tenantry.core.errors import InvalidInputError
from tenantry.settings import find_variable

VALUE_BYTES_MAX = 64 * 1024

Name = Annotated[str, typer.Argument(metavar="NAME", help="The secret's name.")]
Workspace = Annotated[str, typer.Option("--workspace", "-w", metavar="W", help="Its workspace.")]
ValueEnv = Annotated[
    str | None, typer.Option("--value-env", metavar="VARIABLE", help="Take the value from this variable.")
]
ValueFile = Annotated[
    Path | None, typer.Option("--value-file", metavar="FILE", help="Take the value from this file.")
]


def secret_put(
    name: Name,
    *,
    tenant: Tenant,
    workspace: Workspace,
    system: Annotated[str, typer.Option(metavar="SYSTEM", help="The integration that it is for.")],
    agent_class: Annotated[
        list[str], typer.Option("--agent-class", metavar="CLASS", help="Who may use it; may be repeated.")
    ],
    capability: Annotated[
        Literal["read", "mutate"], typer.Option(help="Whether actions that change something may use it.")
    ] = "read",
    value_env: ValueEnv = None,
    value_file: ValueFile = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Store a secret, sealed under the tenant's key. Without a value option it is read from stdin."""
    session = Session(as_json=as_json, data=data)
    version = session.control().put_secret(
        tenant_id=tenant,
        workspace_id=workspace,
        name=name,
        system=system,
        agent_classes=agent_class,
        capability=capability,
        value=read_value(value_env, value_file),
    )
    _tell(session, version, f"stored {name}, version {version.version}")


def secret_rotate(
    name: Name,
    *,
    tenant: Tenant,
    workspace: Workspace,
    value_env: ValueEnv = None,
    value_file: ValueFile = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Give a secret a new value; every gateway uses it within a second."""
    session = Session(as_json=as_json, data=data)
    version = session.control().rotate_secret(
        tenant_id=tenant, workspace_id=workspace, name=name, value=read_value(value_env, value_file)
    )
    _tell(session, version, f"rotated {name} to version {version.version}")


def secret_revoke(
    name: Name,
    *,
    tenant: Tenant,
    workspace: Workspace,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Take a secret away; every gateway refuses it within a second, and its values are destroyed."""
    session = Session(as_json=as_json, data=data)
    session.control().revoke_secret(tenant_id=tenant, workspace_id=workspace, name=name)
    _tell(session, {"revoked": name}, f"revoked {name}")


def secret_list(
    *,
    tenant: Tenant,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", metavar="W", help="Only this workspace's.")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """A tenant's secrets and their versions; never a value."""
    session = Session(as_json=as_json, data=data)
    secrets = session.control().list_secrets(tenant_id=tenant, workspace_id=workspace)
    if as_json:
        session.output.json({"secrets": secrets})
        return
    session.output.table(
        ("workspace", "name", "version", "system", "classes", "may", "made", "revoked"),
        (
            (
                row.workspace_id,
                row.name,
                f"{row.version}{' (in force)' if row.current else ''}",
                row.system,
                row.agent_classes,
                row.capability,
                moment(row.created_at),
                moment(row.revoked_at),
            )
            for row in secrets
        ),
        empty="this tenant has no secrets",
    )


def read_value(variable: str | None, file: Path | None) -> str:
    """The value, from wherever it is; one newline at its end is the editor's. Errors: `InvalidInputError`."""
    if variable is not None and file is not None:
        raise InvalidInputError("give --value-env or --value-file, not both", path="--value-env")
    if variable is not None:
        value = find_variable(variable)
        if value is None:
            raise InvalidInputError(f"the variable {variable} is not set", path="--value-env")
        return value
    try:
        if file is not None:
            with file.open("rb") as source:
                content = source.read(VALUE_BYTES_MAX + 2)
        elif sys.stdin.isatty():
            entered: str = typer.prompt("value", hide_input=True)
            content = entered.encode()
        else:
            content = sys.stdin.buffer.read(VALUE_BYTES_MAX + 2)
        value = content.decode()
    except OSError as error:
        raise InvalidInputError(f"the value cannot be read: {error.strerror}", path="--value-file") from None
    except UnicodeError:
        raise InvalidInputError("the value is not UTF-8 text", path="$.value") from None
    value = value.removesuffix("\n")
    if not value or len(value.encode()) > VALUE_BYTES_MAX:
        raise InvalidInputError(f"a value has 1 to {VALUE_BYTES_MAX} bytes", path="$.value")
    return value


def _tell(session: Session, value: object, text: str) -> None:
    if session.as_json:
        session.output.json(value)
    else:
        session.output.line(text, "good")
