"""The gateway's ASGI application: checks who is meant, picks the door, and tells faults (CONTRACT 'HTTP').

No framework: a request costs a look at its headers and one in a table before its door has it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import msgspec

from tenantry.gateway.actions import ActionsDoor
from tenantry.gateway.body import ClientGoneError, linger
from tenantry.gateway.exchange import Exchange
from tenantry.gateway.forward import Forwarder
from tenantry.gateway.openai import OpenAiDoor
from tenantry.gateway.runs import RunsDoor
from tenantry.web.problems import FAULT, NOT_FOUND, Problem, invalid, method_not_allowed, problem_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tenantry.gateway.entrance import Entrance
    from tenantry.gateway.ports import Message, Receive, Send

    Handler = Callable[[Exchange], Awaitable[None]]

_FORWARDED: Final = ("/api/v1", "/console")
_FORWARDED_WHOLE: Final = frozenset({"/metrics", "/api/openapi.json"})
_RUNS: Final = "/api/v1/runs/"
_FINISH: Final = "/finish"


class Site(msgspec.Struct, frozen=True):
    """Who this gateway is to the outside.

    ``hosts`` are the values of ``Host`` that are answered, ``name`` (any port) or ``name:port``, in lower
    case; ``origins`` those of ``Origin``; ``control_socket`` is the path of control's socket.
    """

    hosts: tuple[str, ...]
    origins: tuple[str, ...]
    public_url: str
    control_socket: str


class GatewayApp:
    """Raw ASGI.

    ``is_ready`` says whether this instance may act; ``on_fault`` is told of faults that nobody foresaw.
    ``draining`` set: `/readyz` says no, so that a load balancer sends nobody new.
    """

    def __init__(
        self,
        entrance: Entrance,
        site: Site,
        *,
        is_ready: Callable[[], bool],
        on_fault: Callable[[Exception, str], None],
    ) -> None:
        self._entrance = entrance
        self._site = site
        self._is_ready = is_ready
        self._on_fault = on_fault
        self._hosts = frozenset(host.lower().encode() for host in site.hosts)
        self._origins = frozenset(origin.lower().encode() for origin in site.origins)
        self._forwarder: Forwarder | None = None
        self._runs = RunsDoor(entrance, site.public_url)
        openai = OpenAiDoor(entrance)
        self._openai = openai
        self._routes: Mapping[str, Mapping[str, Handler]] = {
            "/v1/chat/completions": {"POST": openai.complete},
            "/v1/models": {"GET": openai.list_models, "HEAD": openai.list_models},
            "/.well-known/jwks.json": {"GET": self._show_keys, "HEAD": self._show_keys},
            "/healthz": {"GET": self._show_health, "HEAD": self._show_health},
            "/readyz": {"GET": self._show_readiness, "HEAD": self._show_readiness},
        }
        # Of these paths only POST is a door; what else is asked of them is control's.
        self._doors: Mapping[str, Handler] = {
            "/api/v1/actions": ActionsDoor(entrance).act,
            "/api/v1/runs": self._runs.open,
        }
        self.draining = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(Exchange(scope, receive, send, self._entrance.clock))
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, exchange: Exchange) -> None:
        exchange.speaks_openai = exchange.path.startswith("/v1/")
        try:
            problem = self._misdirected(exchange)
            if problem is None:
                await self._route(exchange)
                return
        except ClientGoneError:
            if exchange.is_started and exchange.connection is not None:
                exchange.connection.abort()
                # The server looks at what became of the connection when this returns.
                await asyncio.sleep(0)
            return
        except Exception as error:  # noqa: BLE001 - the last one who can answer
            known = problem_of(error)
            if known is None:
                self._on_fault(error, exchange.request_id.decode())
            if exchange.is_started:
                if exchange.connection is not None:
                    exchange.connection.abort()
                    await asyncio.sleep(0)
                return
            problem = known or FAULT
        await exchange.answer_problem(problem)
        if problem.closes:
            await linger(exchange, self._entrance.limits)

    async def _route(self, exchange: Exchange) -> None:
        path = exchange.path
        methods = self._routes.get(path)
        if methods is not None:
            handler = methods.get(exchange.method)
            if handler is None:
                await exchange.answer_problem(method_not_allowed(", ".join(methods)))
                return
            await handler(exchange)
            return
        if exchange.method == "POST":
            door = self._doors.get(path)
            if door is not None:
                await door(exchange)
                return
            if path.startswith(_RUNS) and path.endswith(_FINISH) and path.count("/") == 5:
                await self._runs.finish(exchange, path[len(_RUNS) : -len(_FINISH)])
                return
        if path.startswith("/v1/models/"):
            await self._show_model(exchange)
        elif is_forwarded(path):
            await self._forward(exchange)
        else:
            await exchange.answer_problem(NOT_FOUND)

    def _misdirected(self, exchange: Exchange) -> Problem | None:
        """What is wrong with the request's own headers, before anything else of it counts."""
        headers = exchange.headers
        if exchange.doubled is not None:
            return invalid("the header stands twice", path=f"header {exchange.doubled.decode()}").problem
        host = headers.get(b"host", b"").lower()
        if host not in self._hosts:
            name, colon, port = host.rpartition(b":")
            if not colon or not port.isdigit() or name not in self._hosts:
                title = "this server does not answer for that host"
                return Problem(421, "misdirected", title, "An operator adds host names to the configuration.")
        origin = headers.get(b"origin")
        if origin is not None and origin.lower() not in self._origins:
            return Problem(403, "foreign_origin", "this origin may not call the platform from a browser")
        return None

    async def _forward(self, exchange: Exchange) -> None:
        if self._forwarder is None:
            self._forwarder = Forwarder(self._site.control_socket, self._entrance.limits)
        await self._forwarder.forward(exchange)

    async def _show_model(self, exchange: Exchange) -> None:
        if exchange.method not in {"GET", "HEAD"}:
            await exchange.answer_problem(method_not_allowed("GET, HEAD"))
            return
        await self._openai.show_model(exchange)

    async def _show_keys(self, exchange: Exchange) -> None:
        await exchange.answer_json(200, self._entrance.tokens.jwks())

    async def _show_health(self, exchange: Exchange) -> None:
        await exchange.answer_json(200, {"status": "ok"})

    async def _show_readiness(self, exchange: Exchange) -> None:
        is_ready = not self.draining and self._is_ready()
        await exchange.answer_json(200 if is_ready else 503, {"status": "ready" if is_ready else "not ready"})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
                continue
            if self._forwarder is not None:
                with contextlib.suppress(Exception):
                    await self._forwarder.close()
            await send({"type": "lifespan.shutdown.complete"})
            return


def is_forwarded(path: str) -> bool:
    """Whether control answers this path."""
    return path in _FORWARDED_WHOLE or any(path == root or path.startswith(root + "/") for root in _FORWARDED)
