"""What commands print: tables and sentences for people, one JSON document with ``--json``.

Results go to stdout, progress and errors to stderr. Text that came from elsewhere is shown as it is: no markup,
no control characters.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, TextIO

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH: Final = 160
Tone = Literal["good", "bad", "warn", "dim", "plain", "head"]
STYLES: dict[Tone, str] = {
    "good": "green",
    "bad": "red",
    "warn": "yellow",
    "dim": "dim",
    "plain": "",
    "head": "bold cyan",
}


class Output:
    """One command's output."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)

    def json(self, value: Any) -> None:  # noqa: ANN401 - whatever the platform answered
        """One JSON document on stdout."""
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")
        sys.stdout.flush()

    def raw(self, text: str) -> None:
        """Text on stdout as it is, for other programs to read."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def line(self, text: str, tone: Tone = "plain") -> None:
        """One line of the result."""
        self.out.print(Text(clean(text), style=STYLES[tone]))

    def note(self, text: str, tone: Tone = "dim") -> None:
        """One line beside the result, on stderr."""
        self.err.print(Text(clean(text), style=STYLES[tone]))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
        """A table, or the sentence `empty` when there are no rows."""
        shown = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        for column in columns:
            shown.add_column(column, overflow="fold")
        for row in rows:
            shown.add_row(*(Text(clean(cell(value))) for value in row))
        if shown.row_count:
            self.out.print(shown)
        else:
            self.line(empty, "dim")

    def fields(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Names and values, one pair a line; None is left out."""
        grid = Table.grid(padding=(0, 2))
        for name, value in pairs:
            if value is not None:
                grid.add_row(Text(name, style="dim"), Text(clean(cell(value))))
        self.out.print(grid)


def _console(file: TextIO) -> Console:
    """A console; what is no terminal gets wide lines, which programs and logs take better than folded ones."""
    width = None if file.isatty() else PLAIN_WIDTH
    return Console(file=file, width=width, highlight=False, soft_wrap=True)


def moment(text: str | None) -> str | None:
    """An RFC 3339 time in UTC as people read it, to the second."""
    if text is None:
        return None
    return text.partition(".")[0].removesuffix("Z").removesuffix("+00:00").replace("T", " ")


def cell(value: object) -> str:
    """A value as people read it."""
    match value:
        case None:
            return "-"
        case True:
            return "yes"
        case False:
            return "no"
        case int():
            return f"{value:,}"
        case str():
            return value
        case list() | tuple():
            return ", ".join(cell(inner) for inner in value) or "-"
        case _:
            return msgspec.json.encode(value).decode()


def clean(text: str) -> str:
    """Without what moves a terminal's cursor, changes its colours or hides text."""
    return "".join(sign if sign in "\n\t" or sign.isprintable() else "\ufffd" for sign in text)
