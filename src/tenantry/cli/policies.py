"""``tenantry policy``: policies as code, checked, activated, taken back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from tenantry.cli.options import AsJson, Data, Tenant
from tenantry.cli.output import moment
from tenantry.cli.session import Session
from tenantry.core.errors import InvalidInputError

POLICY_BYTES_MAX = 256 * 1024
LAYER = re.compile(r"tenant|(?:workspace|profile)/[a-z0-9][a-z0-9_.-]{0,62}")

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="LAYER=FILE...",
        help="Which file is which layer: tenant=..., workspace/NAME=..., profile/NAME=...",
    ),
]
Why = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it stands in the history.")]


def policy_check(
    files: Files,
    *,
    tenant: Tenant,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Check policies against a tenant's actions and the platform's guardrails; changes nothing.

    Every problem is told as `layer:line:column: words`. Exit status 2 when there is one.
    """
    session = Session(as_json=as_json, data=data)
    problems = session.control().check_policies(tenant_id=tenant, layers=read_layers(files))
    if as_json:
        session.output.json({"problems": problems})
    elif not problems:
        session.output.line("no problems", "good")
    else:
        for problem in problems:
            place = f"{problem.layer}:{problem.line}:{problem.column}"
            session.output.line(f"{place}: {problem.message}", "bad")
    if problems:
        raise typer.Exit(2)


def policy_activate(
    files: Files,
    *,
    tenant: Tenant,
    reason: Why,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Put policies in force; what was decided under the ones before begins no more."""
    session = Session(as_json=as_json, data=data)
    version = session.control().activate_policies(tenant_id=tenant, layers=read_layers(files), reason=reason)
    _tell(session, version)


def policy_rollback(
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The version to go back to.")],
    *,
    tenant: Tenant,
    reason: Why,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Put an earlier version in force again, as a new version."""
    session = Session(as_json=as_json, data=data)
    _tell(session, session.control().roll_back_policies(tenant_id=tenant, version=version, reason=reason))


def policy_history(
    *,
    tenant: Tenant,
    version: Annotated[
        int | None, typer.Option(min=1, metavar="VERSION", help="Show this version's text.")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """The versions of a tenant's policies, newest first: by whom, when and why."""
    session = Session(as_json=as_json, data=data)
    if version is not None:
        found = session.control().show_policy_version(tenant_id=tenant, version=version)
        if as_json:
            session.output.json(found)
            return
        for layer, text in sorted((found.layers or {}).items()):
            session.output.line(f"// ---- {layer}, version {found.policy_version}", "dim")
            session.output.line(text.rstrip())
        return
    versions = session.control().list_policy_versions(tenant_id=tenant)
    if as_json:
        session.output.json({"versions": versions})
        return
    session.output.table(
        ("version", "activated", "by", "reason"),
        ((row.policy_version, moment(row.activated_at), row.author, row.reason) for row in versions),
        empty="this tenant has no policies",
    )


def read_layers(files: list[str]) -> dict[str, str]:
    """Layers from ``LAYER=FILE`` words. Errors: `InvalidInputError`."""
    layers: dict[str, str] = {}
    for word in files:
        layer, equals, name = word.partition("=")
        if not equals or LAYER.fullmatch(layer) is None or layer in layers:
            raise InvalidInputError(
                f"{word!r}: name each layer once, as tenant=FILE, workspace/NAME=FILE or profile/NAME=FILE",
                path="LAYER=FILE",
            )
        try:
            with Path(name).open("rb") as file:
                content = file.read(POLICY_BYTES_MAX + 1)
            layers[layer] = content.decode()
        except OSError as error:
            raise InvalidInputError(f"cannot read {name}: {error.strerror}", path="LAYER=FILE") from None
        except UnicodeDecodeError:
            raise InvalidInputError(f"{name} is not UTF-8", path="LAYER=FILE") from None
        if len(content) > POLICY_BYTES_MAX:
            raise InvalidInputError(f"{name} is longer than {POLICY_BYTES_MAX} bytes", path="LAYER=FILE")
    return layers


def _tell(session: Session, version: int) -> None:
    if session.as_json:
        session.output.json({"policy_version": version})
    else:
        session.output.line(f"version {version} is in force", "good")
