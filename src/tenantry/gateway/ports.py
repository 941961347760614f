"""What the doors need from the rest, as Protocols.

The gate, keys, tokens, scopes, and the connection they answer on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tenantry.core.action import Action
    from tenantry.core.ids import ActionId, RunId, TenantId
    from tenantry.core.principal import Principal
    from tenantry.core.run import RunClaims, RunState
    from tenantry.gate.context import ActionResult, OpenedRun, OpenRun, RunContext
    from tenantry.gate.ports import Sink
    from tenantry.storage.scope import TenantScope

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gate(Protocol):
    """The six steps, as a door sees them."""

    async def identify(self, token: str, /) -> RunContext: ...
    async def act(self, context: RunContext, action: Action, sink: Sink, /) -> ActionResult: ...
    async def open_run(self, principal: Principal, request: OpenRun, /) -> OpenedRun: ...
    async def close_run(
        self, scope: TenantScope, run_id: RunId, state: RunState, result: bytes | None, /
    ) -> ActionResult | None: ...
    def note_shed(self, tenant_id: TenantId, /) -> None: ...
    def new_action_id(self) -> ActionId: ...


class Keys(Protocol):
    """API keys."""

    async def authenticate(self, token: str, /) -> Principal: ...
    def find_cached(self, token: str, /) -> Principal | None: ...


class Tokens(Protocol):
    """Run tokens."""

    def find_cached(self, token: str, /) -> RunClaims | None: ...
    def jwks(self) -> dict[str, list[dict[str, str]]]: ...


class Scopes(Protocol):
    """Where tenants' scopes come from."""

    async def for_principal(self, principal: Principal, tenant_id: TenantId | None = None) -> TenantScope: ...


class Connection(Protocol):
    """The connection under a request, where the server lets us look (`gateway.connection`)."""

    def is_body_whole(self) -> bool:
        """Whether nothing of the current request's body is still to come."""

    def is_write_paused(self) -> bool:
        """Whether the client does not take what was already written."""

    def abort(self) -> None:
        """Close at once, dropping what was not taken."""
