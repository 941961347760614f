"""The HTTP/1.1 connection of a listener: uvicorn's, with the bounds it lacks.

idle -> head (bounded in bytes and time) -> request -> answered -> idle ... -> closed.

- A head must be complete within `HEAD_S` and `HEAD_BYTES_MAX`; bytes around a body that are not body (chunk
  sizes and extensions, trailers) are bounded against the body's own.
- At most `PIPELINE_MAX` further requests are taken before the first is answered.
- A client that takes nothing of what was written for `STALL_S` is dropped, where the kernel can tell.

An application finds its connection in the scope's extensions (`gateway.exchange.CONNECTION_EXTENSION`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tenantry.gateway.exchange import CONNECTION_EXTENSION

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

HEAD_BYTES_MAX: Final = 64 * 1024
HEAD_S: Final = 10.0
STALL_S: Final = 30.0
PIPELINE_MAX: Final = 16
_OVERHEAD_FACTOR: Final = 8
_OVERHEAD_BYTES: Final = 256 * 1024


class BoundedConnection(HttpToolsProtocol):
    """One connection; made by uvicorn for each that is accepted."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._extensions: dict[str, Any] = {CONNECTION_EXTENSION: self}
        self._awaits_head = True
        self._has_begun_head = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._wire_bytes = 0
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        # The connection holds its extensions and they hold it.
        self._extensions = {}
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._wire_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        bound = HEAD_BYTES_MAX if self._awaits_head else _OVERHEAD_FACTOR * self._body_bytes + _OVERHEAD_BYTES
        if self._wire_bytes > bound or len(self.pipeline) > PIPELINE_MAX:
            self.send_400_response("The request's head or framing is too large.")
        elif self._awaits_head and self._head_timer is None and self._is_idle():
            self._arm()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_begun_head = True
        self.scope["extensions"] = self._extensions
        self._wire_bytes = self._body_bytes = 0

    def on_headers_complete(self) -> None:
        if not self._awaits_head:
            return
        self._awaits_head = self._has_begun_head = False
        self._disarm()
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come by the same callback once the head is complete; nothing here has a use for them.
        if self._awaits_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._awaits_head = True
        self._wire_bytes = self._body_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._has_begun_head and self._head_timer is None:
            # The next head began while this request was served: no idle connection, but maybe a slow one.
            self._arm()

    def timeout_keep_alive_handler(self) -> None:
        """An idle connection closes; one whose last answer is still on its way waits while it moves."""
        if self.transport.get_write_buffer_size() == 0:
            super().timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                STALL_S, self._drop_if_stalled, self.transport.get_write_buffer_size()
            )

    def is_body_whole(self) -> bool:
        return not self.cycle.more_body

    def is_write_paused(self) -> bool:
        return self.flow.write_paused

    def abort(self) -> None:
        self.transport.abort()

    def _is_idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _drop_if_stalled(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self.timeout_keep_alive_handler()
