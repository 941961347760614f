"""What `authorize` answers: a pure value, with its reasons (DESIGN §6)."""

from __future__ import annotations

from typing import Literal

import msgspec

from tenantry.core.ids import PolicyId


class Obligations(msgspec.Struct, frozen=True, omit_defaults=True):
    """What must hold for an allowed action, the strictest of each kind over all satisfied permits.

    ``approvers`` is empty when no approval is needed, else the roles that may approve.
    """

    approvers: frozenset[str] = frozenset()
    retention_days: int | None = None


class Decision(msgspec.Struct, frozen=True):
    """``reason`` names the policies that decided, as ``layer/name@version``; any error means deny.

    ``policy_version`` is the tenant's version under which this was decided; `begin` refuses a stale one.
    ``request`` is the canonical policy request, kept sealed in the journal so that a later policy can be
    previewed against it.
    """

    effect: Literal["allow", "deny"]
    reason: tuple[PolicyId, ...]
    errors: tuple[str, ...]
    policy_version: int
    obligations: Obligations
    request: bytes
