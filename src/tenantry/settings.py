"""Every setting, with its default, unit and meaning; the only reader of the environment.

A setting `data` is the variable ``TENANTRY_DATA``. Options of the command line win over variables. A value
that cannot be used is an error that names the variable and never repeats what was given.
`docs/reference/settings.md` is made from this file.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

from tenantry.core.errors import InvalidInputError

PREFIX: Final = "TENANTRY_"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
TEXT_CHARACTERS_MAX: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """What the reference says of one setting. `unit` is what a number counts, or the kind of text."""

    name: str
    variable: str
    unit: str
    default: str
    doc: str


def _setting(default: Any, unit: str, doc: str, parse: Callable[[str], Any]) -> Any:  # noqa: ANN401 - as `field`
    return dataclasses.field(default=default, metadata={"unit": unit, "doc": doc, "parse": parse})


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text[:20]) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(text)

    return parse


def _text(text: str) -> str:
    if len(text) > TEXT_CHARACTERS_MAX or "\n" in text or not text.isprintable():
        raise ValueError("one line of printable text")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in _text(text).split(",") if part.strip())
    if any(" " in name for name in names):
        raise ValueError("names with commas between them")
    return names


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return text

    return parse


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one process. Made by `from_environment`, changed by `with_options`."""

    data: Path = _setting(  # noqa: RUF009 - it gives a field, like the others
        Path(".tenantry"),
        "folder",
        "where the installation keeps its database, keys and control socket; made when missing",
        _path,
    )
    host: str = _setting("127.0.0.1", "address", "where the gateways and control listen", _text)
    port: int = _setting(
        8700,
        "port",
        "the gateways' port; control listens on the next one; 0 takes a free pair",
        _whole(0, 65534),
    )
    gateways: int = _setting(1, "processes", "gateway processes, which share the port", _whole(1, 64))
    database_url: str | None = _setting(
        None,
        "URL, secret",
        "an external PostgreSQL, `postgresql://user:password@host/database`, whose user may make roles; "
        "without it an embedded one runs under the data folder",
        _text,
    )
    database_user: str | None = _setting(
        None, "account", "as root: the account that the embedded PostgreSQL runs under when it is made", _text
    )
    root_key: str | None = _setting(
        None,
        "base64, secret",
        "the root key, 32 bytes, under which tenants' keys are wrapped; without it `root.key` in the data "
        "folder",
        _text,
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        "names, comma-separated",
        "values of Host (without port) that are answered besides the address listened on and, on loopback, "
        "`localhost`",
        _names,
    )
    allowed_origins: tuple[str, ...] = _setting(
        (), "origins, comma-separated", "values of Origin that are answered; none by default", _names
    )
    drain_ms: int = _setting(
        10_000, "ms", "how long open requests may go on after SIGTERM before they are cut", _whole(0, 600_000)
    )
    log_level: str = _setting("info", "word", "the least level that is logged", _one_of(*LOG_LEVELS))
    tenant_inflight_max: int = _setting(
        512, "requests", "requests of one tenant that one gateway has in hand at once", _whole(1, 100_000)
    )
    tenant_requests_per_second: int = _setting(
        5_000,
        "requests/s",
        "requests of one tenant that one gateway looks at; quotas are far below, this stops floods cheaply",
        _whole(1, 1_000_000),
    )
    model_timeout_ms: int = _setting(
        600_000, "ms", "how long one model call may take in all", _whole(1_000, 3_600_000)
    )
    run_deadline_ms: int = _setting(
        3_600_000, "ms", "how long a run lives that names no deadline of its own", _whole(1_000, 86_400_000)
    )
    url: str | None = _setting(
        None, "URL", "for commands: the platform to talk to, when it is not the one in the data folder", _text
    )
    api_key: str | None = _setting(
        None,
        "secret",
        "for commands: the API key to use; without it the operator's key in the data folder",
        _text,
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read every variable; an empty one counts as not set.

        Errors: `InvalidInputError` whose `path` is the variable.
        """
        given = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            variable = variable_of(field.name)
            text = given.get(variable, "")
            if text:
                values[field.name] = _parsed(field, text, variable)
        return cls(**values)

    def to_environment(self) -> dict[str, str]:
        """The variables that `from_environment` makes these settings of; holds secrets."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            variable_of(name): ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
            if value is not None
        }

    def with_options(self, **options: Any) -> Self:  # noqa: ANN401 - each field has its own type
        """The same settings with those options that are not None in their place."""
        return dataclasses.replace(
            self, **{name: value for name, value in options.items() if value is not None}
        )


def _parsed(field: dataclasses.Field[Any], text: str, variable: str) -> Any:  # noqa: ANN401 - each has its own type
    try:
        return field.metadata["parse"](text)
    except ValueError as error:
        raise InvalidInputError(f"{variable} must be {error}", path=variable) from None


def variable_of(name: str) -> str:
    """The variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def describe_settings() -> Iterator[Setting]:
    """Every setting as the reference shows it."""
    for field in dataclasses.fields(Settings):
        default = field.default
        shown = "" if default is None or default == () else str(default)
        yield Setting(
            field.name, variable_of(field.name), field.metadata["unit"], shown, field.metadata["doc"]
        )


def own_environment() -> dict[str, str]:
    """A copy of this process's environment, for programs that it starts."""
    return dict(os.environ)


def agent_environment() -> dict[str, str]:
    """This process's environment without the platform's variables: an agent gets none of our credentials."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def find_variable(name: str) -> str | None:
    """A variable that the user named, None when it is not set."""
    return os.environ.get(name)
