"""``tenantry apply``, ``diff`` and ``export``: the fleet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
import yaml

from tenantry.cli.fleet_document import read_fleet_file
from tenantry.cli.options import AsJson, Data
from tenantry.cli.output import Output, Tone
from tenantry.cli.session import Session
from tenantry_client import AppliedFleet, Change

File = Annotated[Path, typer.Argument(metavar="FILE", help="The fleet file, YAML.")]

MARKS: Final[dict[str, tuple[str, Tone]]] = {
    "added": ("+", "good"),
    "removed": ("-", "bad"),
    "changed": ("~", "warn"),
}
VALUE_CHARACTERS_MAX: Final = 60


def apply(file: File, *, data: Data = None, as_json: AsJson = False) -> None:
    """Make the fleet what FILE says; shows what it changes. Applying twice changes nothing.

    `${NAME}` in FILE is an environment variable. Secrets are named by reference and never printed; tenants that FILE
    does not name are left as they are.
    """
    session = Session(as_json=as_json, data=data)
    applied = apply_file(session, file)
    if as_json:
        session.output.json(applied)
        return
    _show(session.output, applied.changes)
    session.output.line(f"applied {file}", "good")


def apply_file(session: Session, file: Path) -> AppliedFleet:
    """Read and apply a fleet file."""
    document = read_fleet_file(file, with_values=True)
    return session.control().apply_fleet(document.fleet, document.values)


def diff(file: File, *, data: Data = None, as_json: AsJson = False) -> None:
    """Show what applying FILE would change, and change nothing."""
    session = Session(as_json=as_json, data=data)
    document = read_fleet_file(file, with_values=True)
    changes = session.control().diff_fleet(document.fleet, document.values)
    if as_json:
        session.output.json({"changes": changes})
    else:
        _show(session.output, changes)


def export(*, data: Data = None, as_json: AsJson = False) -> None:
    """Print the fleet as it stands, as a fleet file. No secret's value is in it."""
    session = Session(as_json=as_json, data=data)
    fleet = session.control().export_fleet()
    if as_json:
        session.output.json(fleet)
    else:
        session.output.raw(yaml.safe_dump(fleet, sort_keys=False, allow_unicode=True, width=100))


def _show(output: Output, changes: Sequence[Change]) -> None:
    if not changes:
        output.line("nothing differs", "dim")
    for change in changes:
        mark, tone = MARKS.get(change.change, ("?", "plain"))
        values = ""
        if change.change == "changed":
            values = f": {_short(change.before)} -> {_short(change.after)}"
        output.line(f"{mark} {change.path}{values}", tone)


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[:VALUE_CHARACTERS_MAX] + "..."
