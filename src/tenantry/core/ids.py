"""Identifiers: their types, their shapes, and how new ones are made.

Every id is text in the C collation. `tenant_id` matches ``^[a-z][a-z0-9_]{1,62}$``; names that people choose
(workspaces, agents, integrations, secrets) match ``^[a-z0-9][a-z0-9_.-]{0,62}$``; ids that the platform makes
are a prefix and 32 hexadecimal digits of a 48-bit millisecond time and 80 random bits (the layout of ULID), so they
sort by time and are not guessable.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NewType

from tenantry.core.errors import InvalidInputError

if TYPE_CHECKING:
    from tenantry.core.clock import Clock

TenantId = NewType("TenantId", str)
WorkspaceId = NewType("WorkspaceId", str)
PrincipalId = NewType("PrincipalId", str)
AgentId = NewType("AgentId", str)
RunId = NewType("RunId", str)
ActionId = NewType("ActionId", str)
ActionName = NewType("ActionName", str)
PolicyId = NewType("PolicyId", str)
SwitchId = NewType("SwitchId", str)
ApprovalId = NewType("ApprovalId", str)
KeyId = NewType("KeyId", str)
InstanceId = NewType("InstanceId", str)
IntegrationId = NewType("IntegrationId", str)

_TENANT: Final = re.compile(r"[a-z][a-z0-9_]{1,62}")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


def parse_tenant_id(text: str, *, path: str = "$") -> TenantId:
    """Check the shape of a tenant id. Raises `InvalidInputError` that names `path`."""
    if _TENANT.fullmatch(text) is None:
        msg = "a tenant id is 2 to 63 of a-z, 0-9 and _, and begins with a letter"
        raise InvalidInputError(msg, path=path)
    return TenantId(text)


def parse_name(text: str, *, path: str = "$") -> str:
    """Check the shape of a name that a person chose. Raises `InvalidInputError` that names `path`."""
    if _NAME.fullmatch(text) is None:
        msg = "a name is 1 to 63 of a-z, 0-9, _, . and -, and begins with a letter or a digit"
        raise InvalidInputError(msg, path=path)
    return text


def new_id(prefix: str, clock: Clock) -> str:
    """A new id ``prefix_`` + 32 hexadecimal digits; sorts by the clock's millisecond."""
    stamp = clock.now_ms().to_bytes(6, "big") + clock.random_bytes(10)
    return f"{prefix}_{stamp.hex()}"
