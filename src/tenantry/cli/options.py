"""Options that commands share, and the way a command begins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Data: TypeAlias = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="The installation's data folder [TENANTRY_DATA]."),
]
Tenant: TypeAlias = Annotated[str, typer.Option("--tenant", "-t", metavar="T", help="The tenant's id.")]
Reason: TypeAlias = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why; people who are stopped read it.")
]
