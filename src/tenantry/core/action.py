"""Actions: the governed things a run does, and what came of them."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from tenantry.core.ids import ActionId, ActionName
from tenantry.core.labels import NO_LABELS, Labels
from tenantry.core.quota import Usage

ActionKind = Literal["tool", "model", "memory", "secret", "file", "run"]


class Risk(enum.IntEnum):
    """How much harm an action can do; a draft is reversible and stays inside the tenant's own systems."""

    READ = 0
    DRAFT = 1
    WRITE = 2
    HIGH_RISK = 3

    @classmethod
    def parse(cls, word: str) -> Risk:
        """``read``, ``draft``, ``write`` or ``high_risk``. Raises KeyError otherwise."""
        return cls[word.upper()]

    @property
    def word(self) -> str:
        """The word of CONTRACT and policies."""
        return self.name.lower()


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an action lands: a system the tenant registered and a record in it."""

    system: str
    record_id: str


class Action(msgspec.Struct, frozen=True):
    """One governed action before it passes the gate.

    ``input`` is the canonical request, at most `ACTION_INPUT_BYTES_MAX`; ``input_sha256`` its digest;
    ``estimate`` the sound upper bound to reserve; ``timeout_ms`` what is left of the deadline.
    """

    action_id: ActionId
    name: ActionName
    kind: ActionKind
    risk: Risk
    target: Target
    input: bytes
    input_sha256: bytes
    idempotency_key: str | None
    estimate: Usage
    timeout_ms: int
    destination: str | None = None
    model: str | None = None
    labels: Labels = NO_LABELS


class OutcomeStatus(enum.StrEnum):
    """How an action ended. ``void`` means: certainly nothing was sent, nothing was used."""

    OK = "ok"
    FAILED = "failed"
    CUT = "cut"
    UNKNOWN = "unknown"
    VOID = "void"


class Outcome(msgspec.Struct, frozen=True):
    """What came of an action.

    ``output`` is the answer as recorded (None while only the reaper knows); ``usage`` what was used, the
    bound where the upstream did not report; ``http_status`` the upstream's status where there is one.
    """

    status: OutcomeStatus
    output: bytes | None
    usage: Usage
    labels: Labels = NO_LABELS
    content_type: str = "application/json"
    http_status: int | None = None
    detail: str | None = None


ACTION_INPUT_BYTES_MAX = 8 * 1024 * 1024
ACTION_OUTPUT_BYTES_MAX = 8 * 1024 * 1024
