"""The reference pages say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command

from tenantry.cli.main import build_app
from tenantry.cli.reference import cli_page, settings_page

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"


@pytest.mark.parametrize(("page", "name"), [(cli_page, "cli"), (settings_page, "settings")])
def test_a_page_is_current(page: object, name: str) -> None:
    assert callable(page)
    text = (REFERENCE / f"{name}.md").read_text(encoding="utf-8")
    remedy = f"python -m tenantry.cli.reference {name} > docs/reference/{name}.md"
    assert text == page(), f"make it again: {remedy}"


def test_every_command_takes_json_and_says_what_it_does() -> None:
    groups = [("tenantry", get_command(build_app()))]
    seen = 0
    while groups:
        path, group = groups.pop()
        for name, command in getattr(group, "commands", {}).items():
            if getattr(command, "commands", None) is not None:
                groups.append((f"{path} {name}", command))
                continue
            seen += 1
            options = {option for parameter in command.params for option in parameter.opts}
            assert "--json" in options, f"{path} {name}"
            assert command.help, f"{path} {name}"
            for parameter in command.params:
                if parameter.param_type_name == "option":
                    assert parameter.help, f"{path} {name} {parameter.opts}"
    assert seen > 30
