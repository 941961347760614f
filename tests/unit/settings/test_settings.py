"""Settings: read from variables, written back, wrong ones named and never repeated."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.core.errors import InvalidInputError
from tenantry.settings import Settings, describe_settings, variable_of

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "settings.md"
BAD = [
    ("TENANTRY_PORT", "65535"),
    ("TENANTRY_PORT", "-1"),
    ("TENANTRY_PORT", "80.0"),
    ("TENANTRY_PORT", "eighty"),
    ("TENANTRY_PORT", "٣"),
    ("TENANTRY_PORT", "9" * 10_000),
    ("TENANTRY_GATEWAYS", "0"),
    ("TENANTRY_GATEWAYS", "1000"),
    ("TENANTRY_LOG_LEVEL", "loud"),
    ("TENANTRY_DATA", "a\nb"),
    ("TENANTRY_HOST", "\x1b[2J"),
    ("TENANTRY_DATABASE_URL", "postgresql://u:hunter2@h/db\n"),
    ("TENANTRY_API_KEY", "hunter2\udcff"),
    ("TENANTRY_ROOT_KEY", "hunter2" * 1000),
    ("TENANTRY_ALLOWED_HOSTS", "a b"),
]


def test_nothing_set_gives_the_defaults() -> None:
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment({"TENANTRY_PORT": ""}).port == Settings().port


def test_every_variable_is_read() -> None:
    settings = Settings.from_environment(
        {
            "TENANTRY_DATA": "/srv/x",
            "TENANTRY_PORT": "9000",
            "TENANTRY_GATEWAYS": "3",
            "TENANTRY_ALLOWED_HOSTS": "a.example, b.example,",
            "TENANTRY_LOG_LEVEL": "debug",
            "UNRELATED": "x",
        }
    )
    assert settings.data == Path("/srv/x")
    assert (settings.port, settings.gateways) == (9000, 3)
    assert settings.allowed_hosts == ("a.example", "b.example")


@pytest.mark.parametrize(("variable", "value"), BAD)
def test_a_bad_value_names_its_variable_and_is_not_repeated(variable: str, value: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Settings.from_environment({variable: value})
    assert caught.value.path == variable
    assert variable in str(caught.value)
    assert "hunter2" not in str(caught.value)


@given(
    port=st.integers(0, 65534),
    gateways=st.integers(1, 64),
    hosts=st.lists(st.from_regex(r"[a-z][a-z0-9.]{0,20}", fullmatch=True), max_size=4),
    url=st.none() | st.from_regex(r"http://[a-z]{1,20}:[0-9]{1,4}", fullmatch=True),
)
def test_what_is_written_is_read_back(port: int, gateways: int, hosts: list[str], url: str | None) -> None:
    settings = Settings().with_options(port=port, gateways=gateways, allowed_hosts=tuple(hosts), url=url)
    assert Settings.from_environment(settings.to_environment()) == settings


def test_options_that_are_none_change_nothing() -> None:
    settings = Settings(port=1)
    assert settings.with_options(port=None, host="h") == Settings(port=1, host="h")


def test_every_setting_says_what_it_means() -> None:
    shown = list(describe_settings())
    assert [setting.name for setting in shown] == [field.name for field in dataclasses.fields(Settings)]
    for setting in shown:
        assert len(setting.doc) > 15
        assert setting.unit
        assert setting.variable == variable_of(setting.name)


def test_the_reference_is_current() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    rows = [
        f"| `{setting.variable}` | {f'`{setting.default}`' if setting.default else '-'} | {setting.unit} | "
        f"{setting.doc} |"
        for setting in describe_settings()
    ]
    assert re.findall(r"^\| `TENANTRY_.*$", text, re.MULTILINE) == rows
