"""Secrets in memory: a value that does not show, what an adapter asks for, what it gets (DESIGN §12).

INVARIANT 8: no secret value reaches an agent, a prompt, memory, a log or a span. A `SecretValue` shows itself
only to a caller that says `reveal()`; all the ways by which a value slips out unasked are shut here.
"""

from __future__ import annotations

import datetime as dt
import enum
import hmac
from typing import Final, NoReturn

import msgspec

from tenantry.core.errors import InvalidInputError
from tenantry.core.ids import WorkspaceId

VALUE_BYTES_MAX: Final = 64 * 1024
_HIDDEN: Final = "SecretValue(hidden)"


class SecretValue:
    """A secret's value: UTF-8 text of 1 to 65,536 bytes without NUL. Raises `InvalidInputError` otherwise.

    It never shows in repr, str, format, JSON or pickle, nor in a traceback that prints locals.
    """

    __slots__ = ("__value",)
    __hash__ = None  # type: ignore[assignment]  # a secret is no key: a hash of it would tell

    def __init__(self, value: str) -> None:
        problem = _problem_of(value)
        if problem is not None:
            del value  # a traceback that prints locals must not show it
            raise InvalidInputError(problem, path="$.value")
        self.__value = value

    def reveal(self) -> str:
        """The value itself, for the one place that sends it."""
        return self.__value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretValue):
            return NotImplemented
        return hmac.compare_digest(self.__value.encode(), other.__value.encode())

    def __repr__(self) -> str:
        return _HIDDEN

    def __str__(self) -> str:
        return _HIDDEN

    def __format__(self, spec: str, /) -> str:
        return _HIDDEN

    def __reduce_ex__(self, protocol: object, /) -> NoReturn:
        raise TypeError("a secret value cannot be pickled or copied")


def _problem_of(value: str) -> str | None:
    if not value or "\0" in value:
        return "a secret is not empty and holds no NUL"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "a secret is text that UTF-8 can write"
    return f"a secret has at most {VALUE_BYTES_MAX} bytes" if size > VALUE_BYTES_MAX else None


class SecretRequest(msgspec.Struct, frozen=True):
    """What one action needs; the tenant is the scope's. `mutates`: the action can change its system."""

    workspace_id: WorkspaceId
    agent_class: str
    system: str
    secret_name: str
    mutates: bool


class RefusalReason(enum.StrEnum):
    """Why the broker gives nothing; another workspace's or tenant's secret is `absent` too."""

    ABSENT = "absent"
    REVOKED = "revoked"
    AGENT_CLASS = "agent_class"
    SYSTEM = "system"
    READ_ONLY = "read_only"


class CredentialRefused(msgspec.Struct, frozen=True):
    """The broker's no; it names the secret's name, never anything of its value."""

    reason: RefusalReason
    secret_name: str


class Credential(msgspec.Struct, frozen=True):
    """One version of a secret, for one use."""

    version: int
    value: SecretValue


class SecretVersion(msgspec.Struct, frozen=True):
    """What people see of a version; times are aware UTC, `revoked_at` None while it is in force."""

    workspace_id: WorkspaceId
    name: str
    version: int
    system: str
    agent_classes: tuple[str, ...]
    capability: str
    created_at: dt.datetime
    revoked_at: dt.datetime | None
    current: bool
