"""The reference pages, made from the code: ``python -m tenantry.cli.reference cli|settings``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any, Final, Literal, get_args, get_origin

from typer.main import get_command

from tenantry.cli.main import build_app
from tenantry.settings import describe_settings

HIDDEN: Final = frozenset({"help", "install_completion", "show_completion"})

CLI_HEAD: Final = """# Commands

`tenantry COMMAND --help` says the same. Every command takes `--json`: then its result is one JSON document on stdout,
and an error one on stderr.

| exit status | means |
| --- | --- |
| 0 | done |
| 1 | failed: the platform is away, a program failed, not every process confirmed |
| 2 | bad usage, or input that cannot be right |
| 3 | refused by the platform: a verdict, a right that the key has not, a thing that is not there |

Commands find the platform by the data folder (`--data`, `TENANTRY_DATA`): they talk to control over its socket there,
so that a saturated gateway never stands between an operator and a switch. `TENANTRY_URL` names another platform, and
`TENANTRY_API_KEY` the key to use; without it the operator's key in the data folder is used.
"""

SETTINGS_HEAD: Final = """# Settings

Each setting is an environment variable; where a command has an option for it, the option wins. An empty variable
counts as not set. A value that cannot be used stops the command with an error that names the variable.

| variable | default | counts or is | means |
| --- | --- | --- | --- |
"""

SETTINGS_TAIL: Final = """
Secrets among them are better given as variables than as options, which `ps` shows. The platform's own processes get
their settings over a pipe.
"""


def cli_page() -> str:
    """``docs/reference/cli.md``."""
    return CLI_HEAD + "".join(_sections(get_command(build_app()), "tenantry"))


def settings_page() -> str:
    """``docs/reference/settings.md``."""
    rows = [
        f"| `{setting.variable}` | {f'`{setting.default}`' if setting.default else '-'} | {setting.unit} | "
        f"{setting.doc} |\n"
        for setting in describe_settings()
    ]
    return SETTINGS_HEAD + "".join(rows) + SETTINGS_TAIL


def _sections(command: Any, path: str) -> Iterator[str]:  # noqa: ANN401 - typer's own copy of click
    inner = getattr(command, "commands", None)
    if inner is not None:
        for name, found in inner.items():
            yield from _sections(found, f"{path} {name}")
        return
    shown = [parameter for parameter in command.params if parameter.name not in HIDDEN]
    arguments = " ".join(str(p.metavar) for p in shown if p.param_type_name == "argument")
    words = inspect.cleandoc(command.help or "")
    yield f"\n## `{path}{' ' + arguments if arguments else ''}`\n\n{words}\n"
    rows = [row for parameter in shown if (row := _row(parameter)) is not None]
    if rows:
        yield "\n| option | means |\n| --- | --- |\n" + "".join(rows)


def _row(parameter: Any) -> str | None:  # noqa: ANN401 - likewise
    text = " ".join((parameter.help or "").split()).replace("|", "\\|")
    if parameter.param_type_name == "argument":
        return f"| `{parameter.metavar}` | {text} |\n" if text else None
    value = "" if parameter.is_flag else f" {_value_of(parameter)}"
    names = ", ".join(f"`{name}{value}`" for name in parameter.opts)
    default = parameter.default
    shown = f" Default: `{default}`." if not parameter.is_flag and default not in {None, ()} else ""
    needed = " Required." if parameter.required else ""
    return f"| {names} | {text}{needed}{shown} |\n"


def _value_of(parameter: Any) -> str:  # noqa: ANN401 - likewise
    annotation = parameter.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation))).replace("|", "\\|")
    return str(parameter.metavar or parameter.name.upper())


def main() -> int:
    """Print one page."""
    pages = {"cli": cli_page, "settings": settings_page}
    page = pages.get(sys.argv[1] if len(sys.argv) > 1 else "")
    if page is None:
        print("usage: python -m tenantry.cli.reference cli|settings", file=sys.stderr)
        return 2
    print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
