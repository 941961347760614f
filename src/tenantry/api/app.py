"""The control plane's ASGI application: Host, route, key, body, use case, answer; in this order.

Everything that is wrong is told as problem details. A path, an id or a tenant that is not the asker's, and one
that never was, get the same bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from tenantry import __version__
from tenantry.api.endpoints import Call, Endpoint
from tenantry.api.idempotency import Answer, Answers
from tenantry.api.metrics import CONTENT_TYPE, Metrics
from tenantry.api.openapi import openapi_document
from tenantry.api.routes import ENDPOINTS
from tenantry.control.errors import PolicyFrozenError, SwitchedMeanwhileError
from tenantry.control.people import TooManyFailuresError
from tenantry.control.services import Services
from tenantry.core.clock import Clock
from tenantry.core.errors import InvalidInputError, TenantryError
from tenantry.core.ids import new_id
from tenantry.core.principal import Principal, Role
from tenantry.web.json_input import decode_strictly
from tenantry.web.problems import (
    FAULT,
    NOT_FOUND,
    PROBLEM_CONTENT_TYPE,
    Problem,
    method_not_allowed,
    problem_bytes,
    problem_of,
    too_many_failures,
)

BODY_S_MAX: Final = 30.0
QUERY_CHARACTERS_MAX: Final = 4_000
PEER_HEADER: Final = "tenantry-peer"
REQUEST_ID_HEADER: Final = b"tenantry-request-id"
# An argument that the database cannot hold as what it is (SQLSTATE class 22): the request's fault.
_DATA_EXCEPTION: Final = "22"

OnFault = Callable[[Exception, str], None]
Responder = Callable[[Request], Awaitable[Response]]


class ControlApp:
    """One listener's application. `hosts` None: a local socket, behind which a gateway or the CLI stands."""

    def __init__(
        self,
        services: Services,
        metrics: Metrics,
        answers: Answers,
        clock: Clock,
        *,
        hosts: Iterable[str] | None,
        is_ready: Callable[[], bool],
        on_fault: OnFault,
    ) -> None:
        self._services = services
        self._metrics = metrics
        self._answers = answers
        self._clock = clock
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._is_ready = is_ready
        self._on_fault = on_fault
        self._openapi = openapi_document(ENDPOINTS, version=__version__)
        self._app = Starlette(
            routes=list(self._routes()),
            exception_handlers={404: _not_found, 405: _not_allowed},
        )
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id("req", self._clock)
        scope["tenantry_request_id"] = request_id

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (REQUEST_ID_HEADER, request_id.encode())]
            await send(message)

        if self._is_known_host(Request(scope)):
            await self._app(scope, receive, send_marked)
            return
        title = "this Host is not one that the platform answers to"
        await _problem_response(Problem(421, "unknown_host", title))(scope, receive, send_marked)

    def _routes(self) -> Iterable[Route]:
        for endpoint in ENDPOINTS:
            yield Route(endpoint.path, self._endpoint(endpoint), methods=[endpoint.method])
        own: dict[str, Responder] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._scrape,
            "/api/openapi.json": self._openapi_json,
        }
        for path, respond in own.items():
            yield Route(path, self._told(path.rpartition("/")[2], respond), methods=["GET"])

    def _endpoint(self, endpoint: Endpoint) -> Responder:
        query_type = endpoint.query
        decoder = None if endpoint.body is None else msgspec.json.Decoder(endpoint.body)

        async def respond(request: Request) -> Response:
            principal = await self._authenticate(request)
            query = _read_query(request, query_type)
            raw = await _read_body(request, endpoint.body_bytes_max) if decoder is not None else b""
            body = None if decoder is None else decode_strictly(raw, decoder)
            call = Call(self._services, principal, request.path_params, query, body)

            async def work() -> Answer:
                return Answer(endpoint.status, _encode(await endpoint.handler(call)))

            key = request.headers.get("idempotency-key")
            if key is None or endpoint.method == "GET":
                answer = await work()
            else:
                asked = f"{endpoint.method} {request.url.path}?{request.url.query}\0".encode()
                answer = await self._answers.once(principal, key, asked + raw, work)
            return _response(answer)

        return self._told(endpoint.operation, respond)

    def _told(self, operation: str, respond: Responder) -> Responder:
        """With faults as problems, counted, and never an exception left."""

        async def told(request: Request) -> Response:
            started = self._clock.monotonic()
            try:
                response = await respond(request)
            except ClientDisconnect:
                response = Response(status_code=400)
            except Exception as error:  # noqa: BLE001 - whatever failed, the asker gets a problem and no trace
                response = self._problem(request, error)
            self._metrics.note(operation, response.status_code, self._clock.monotonic() - started)
            return response

        return told

    def _problem(self, request: Request, error: Exception) -> Response:
        match error:
            case PolicyFrozenError():
                problem: Problem | None = Problem(
                    423, "policy_frozen", "the tenant's policy is frozen", str(error)
                )
            case SwitchedMeanwhileError():
                problem = Problem(
                    409, "switched_meanwhile", "somebody else switched it meanwhile", str(error)
                )
            case TooManyFailuresError():
                problem = too_many_failures(error.wait_ms)
            case TenantryError() if str(getattr(error, "sqlstate", "")).startswith(_DATA_EXCEPTION):
                problem = Problem(400, "invalid_input", "the request holds a value that cannot be kept")
            case _:
                problem = problem_of(error)
        if problem is None:
            self._on_fault(error, request.scope["tenantry_request_id"])
            problem = FAULT
        return _problem_response(problem)

    async def _authenticate(self, request: Request) -> Principal:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        sent = token.strip() if scheme.lower() == "bearer" else ""
        return await self._services.people.authenticate(sent or None, self._address(request))

    def _address(self, request: Request) -> str | None:
        """Who is behind the connection; None: somebody who may open the local socket itself."""
        if self._hosts is None:
            return request.headers.get(PEER_HEADER)
        return "unknown" if request.client is None else request.client.host

    def _is_known_host(self, request: Request) -> bool:
        if self._hosts is None:
            return True
        host = request.headers.get("host", "").lower()
        name = host if host.endswith("]") or ":" not in host else host.rpartition(":")[0]
        return name in self._hosts

    async def _healthz(self, _request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def _readyz(self, _request: Request) -> Response:
        ready = self._is_ready()
        body = b'{"status":"ready"}' if ready else b'{"status":"not ready"}'
        return Response(body, status_code=200 if ready else 503, media_type="application/json")

    async def _openapi_json(self, _request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def _scrape(self, request: Request) -> Response:
        """For the machine's own users, and for whoever has an operator's key."""
        if self._address(request) is not None:
            principal = await self._authenticate(request)
            if principal.role is not Role.OPERATOR:
                return _problem_response(NOT_FOUND)
        text = await self._metrics.scrape(self._services.instances)
        return Response(text, headers={"content-type": CONTENT_TYPE})


async def _read_body(request: Request, bytes_max: int) -> bytes:
    """The whole body, bounded in size and time. Errors: `InvalidInputError`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidInputError("send application/json", path="header content-type")
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S_MAX):
            async for chunk in request.stream():
                size += len(chunk)
                if size > bytes_max:
                    raise InvalidInputError(f"a body has at most {bytes_max} bytes here")
                chunks.append(chunk)
    except TimeoutError:
        raise InvalidInputError("the body did not arrive in time") from None
    return b"".join(chunks)


def _read_query(request: Request, kind: type[Any]) -> Any:  # noqa: ANN401 - the endpoint's own type
    """The query's parameters, each once. Errors: `InvalidInputError`."""
    if len(request.url.query) > QUERY_CHARACTERS_MAX:
        raise InvalidInputError("the query is too long", path="query")
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in given:
            raise InvalidInputError("a parameter stands there twice", path=f"query {name[:100]}")
        if not value.isprintable():
            raise InvalidInputError("a parameter is printable text", path=f"query {name[:100]}")
        given[name] = value
    try:
        return msgspec.convert(given, type=kind, strict=False)
    except msgspec.ValidationError as error:
        words, _, where = str(error).partition(" - at `$.")
        raise InvalidInputError(words, path=f"query {where.rstrip('`')}".strip()) from None


def _encode(answer: object) -> bytes:
    return b"" if answer is None else msgspec.json.encode(answer)


def _response(answer: Answer) -> Response:
    if answer.status == 204:
        return Response(status_code=204)
    headers = {"cache-control": "no-store"}
    return Response(answer.body, answer.status, headers, media_type="application/json")


def _problem_response(problem: Problem) -> Response:
    response = Response(problem_bytes(problem), problem.status, media_type=PROBLEM_CONTENT_TYPE.decode())
    for name, value in problem.headers:
        response.headers[name.decode()] = value.decode()
    return response


async def _not_found(_request: Request, _error: Exception) -> Response:
    return _problem_response(NOT_FOUND)


async def _not_allowed(_request: Request, error: Exception) -> Response:
    headers = getattr(error, "headers", None) or {}
    return _problem_response(method_not_allowed(headers.get("Allow", "GET")))
