"""Logs: one JSON object a line on stderr, bound to whose action it is, and never a secret.

A log line carries the tenant wherever there is one, so that no reader has to guess.

INVARIANT 8: what could hold a credential is taken out by name and by type before a line is written.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TextIO

import structlog

from tenantry.core.envelope import Envelope
from tenantry.core.run import RunClaims

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

HIDDEN: Final = "(hidden)"
TEXT_CHARACTERS_MAX: Final = 4096
DEPTH_MAX: Final = 6
ITEMS_MAX: Final = 64
_SECRET_NAMES: Final = (
    "authorization",
    "api_key",
    "apikey",
    "cookie",
    "credential",
    "password",
    "private",
    "root_key",
    "run_token",
    "secret",
    "token",
    "database_url",
    "dsn",
)
# Names that hold a word above and tell nothing: counts and names, not values.
_PLAIN_NAMES: Final = ("secret_name", "secret_version")
_PLAIN_ENDINGS: Final = ("tokens", "tokens_minute", "tokens_day")
# API keys, providers' keys, JSON Web Tokens, credentials in a URL and after the name of a scheme.
_TOKENS: Final = re.compile(
    r"(?:tnk_|sk-)[\w-]+|eyJ[\w-]+\.[\w-]+\.[\w-]*|(?<=://)[^/@\s]+(?=@)|(?<=\bBearer )\S+|(?<=\bBasic )\S+"
)


def configure_logs(level: str, process: str, stream: TextIO | None = None) -> None:
    """Set logging up for this process: ours and the libraries', at `level` (debug, info, warning, error).

    Called once, at the composition root. `process` names it in every line.
    """
    target = sys.stderr if stream is None else stream
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _Named(process),
            structlog.processors.format_exc_info,
            hide_secrets,
            structlog.processors.JSONRenderer(default=_last_resort),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    # What libraries say matters when something is wrong, and goes the same way.
    logging.basicConfig(handlers=[_Forward()], level=max(number, logging.WARNING), force=True)


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines carry `part: name`."""
    logger: FilteringBoundLogger = structlog.get_logger(part=name)
    return logger


@contextlib.contextmanager
def bound_to(subject: Envelope | RunClaims, *, action_id: str | None = None) -> Iterator[None]:
    """Bind every line written inside to a run or an action: tenant, workspace, agent, run, action."""
    with structlog.contextvars.bound_contextvars(**envelope_fields(subject, action_id=action_id)):
        yield


def envelope_fields(subject: Envelope | RunClaims, *, action_id: str | None = None) -> dict[str, str]:
    """Whose it is, as log fields."""
    run_id = subject.workflow_run_id if isinstance(subject, Envelope) else subject.run_id
    fields: dict[str, str] = {
        "tenant_id": subject.tenant_id,
        "workspace_id": subject.workspace_id,
        "agent_id": subject.agent_id,
        "run_id": run_id,
    }
    if isinstance(subject, Envelope):
        fields["action"] = subject.requested_action
        fields["txn_id"] = subject.txn_id
    if action_id is not None:
        fields["action_id"] = action_id
    return fields


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Take out whatever is, by its name, its type or its beginning, a credential; shorten what is long."""
    return {name: _shown(name, value, 0) for name, value in event.items()}


def _is_secret_name(name: str) -> bool:
    low = name.lower().replace("-", "_")
    if low in _PLAIN_NAMES or low.endswith(_PLAIN_ENDINGS):
        return False
    return any(word in low for word in _SECRET_NAMES)


def _shown(name: str, value: object, depth: int) -> Any:  # noqa: ANN401 - JSON
    if value is None or isinstance(value, bool | int | float):
        return value
    if _is_secret_name(name) or type(value).__name__ == "SecretValue" or isinstance(value, bytes | bytearray):
        return HIDDEN
    if isinstance(value, str):
        return _text(value)
    if depth >= DEPTH_MAX:
        return type(value).__name__
    if isinstance(value, Mapping):
        pairs = list(value.items())[:ITEMS_MAX]
        return {_text(str(key)): _shown(str(key), inner, depth + 1) for key, inner in pairs}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown("", inner, depth + 1) for inner in list(value)[:ITEMS_MAX]]
    return _text(str(value))


def _text(value: str) -> str:
    value = _TOKENS.sub(HIDDEN, value)
    # A lone surrogate would stop the line from being written.
    clean = value.encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= TEXT_CHARACTERS_MAX else clean[:TEXT_CHARACTERS_MAX] + "..."


def _last_resort(value: object) -> str:
    return type(value).__name__


class _Named:
    """Says in each line which process wrote it."""

    def __init__(self, process: str) -> None:
        self._process = process

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {"process": self._process, **event}


class _Forward(logging.Handler):
    """The libraries' lines, in our form."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(part=record.name)
        logger.log(record.levelno, record.getMessage(), exc_info=record.exc_info)
