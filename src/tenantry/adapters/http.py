"""Plain HTTP actions on a tenant's integrations (DESIGN §10).

plan -> admit -> hop (connect, guard, send, read) -> redirect? next hop, decided on anew -> outcome.

What an upstream said stands; what it may have done is never guessed. A mutation whose answer is lost, cut or
a 5xx is ``unknown``; a read just failed. Only reads follow redirects, and only a declared read is ever sent a
second time.
"""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Final

import msgspec

from tenantry.adapters.connector import Pool, PoolSpec
from tenantry.adapters.egress import Homes, join_url
from tenantry.adapters.exchange import Exchange, OutRequest
from tenantry.adapters.http_request import Plan, credential_headers, plan_request, secrets_of
from tenantry.adapters.redact import Redactor
from tenantry.core.action import Outcome, OutcomeStatus, Risk
from tenantry.core.errors import EgressDeniedError, LeaseLapsedError, UpstreamError
from tenantry.core.labels import UNTRUSTED, Label, Labels

if TYPE_CHECKING:
    from tenantry.adapters.breaker import Breakers, Ticket
    from tenantry.adapters.connector import Pools
    from tenantry.core.clock import Clock
    from tenantry.gate.ports import AdapterCall, Emit
    from tenantry.registry.specs import HttpActionSpec, IntegrationSpec

CONNECT_S: Final = 5.0
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


class _Answer(msgspec.Struct, frozen=True):
    """A complete answer."""

    status: int
    content_type: str
    body: bytes


class HttpAdapter:
    """Performs actions of kind ``tool`` that an integration declares; the outcome holds the answer.

    The output is ``{"body": ..., "status": ...}``: the body as JSON where it is JSON, else as text, else
    ``body_base64``.
    """

    def __init__(self, pools: Pools, breakers: Breakers, clock: Clock) -> None:
        self._pools = pools
        self._breakers = breakers
        self._clock = clock
        self._homes = Homes()

    async def perform(self, call: AdapterCall, emit: Emit, /) -> Outcome:
        """One declared action; see `Adapter` for what is raised and what is returned."""
        del emit
        name, integration, spec = _declared(call)
        secret = call.credential.value.reveal() if call.credential is not None else None
        home, rules = self._homes.read(
            integration.base_url,
            allowed_hosts=integration.allowed_hosts,
            allow_private=integration.allow_private,
        )
        plan = plan_request(home, rules, spec, call.action)
        credential = credential_headers(integration.auth, secret)
        trip = _Trip(name, call, integration, spec, plan, credential)
        redact = Redactor(*secrets_of(integration.auth, secret))
        deadline_s = min(call.deadline - self._clock.monotonic(), spec.deadline_ms / 1000)
        with (
            self._breakers.admit(call.pool_key, name, 2 * max(1, integration.connections_max)) as ticket,
            self._pools.use(PoolSpec(call.pool_key, plan.rules, integration.connections_max)) as pool,
        ):
            try:
                async with asyncio.timeout(deadline_s):
                    answer = await trip.travel(pool)
            except (UpstreamError, LeaseLapsedError, TimeoutError) as fault:
                return _broken(trip, fault, ticket, redact)
            if answer.status == 429 or answer.status >= 500:
                ticket.fail()
            else:
                ticket.succeed()
            return trip.outcome(_status_of(answer.status, is_read=trip.is_read), answer, redact, trip.detail)


class _Trip:
    """One action's way through its hops. ``was_sent`` says whether any byte of any hop was written."""

    def __init__(
        self,
        name: str,
        call: AdapterCall,
        integration: IntegrationSpec,
        spec: HttpActionSpec,
        plan: Plan,
        credential: tuple[tuple[str, str], ...],
    ) -> None:
        self.name = name
        self.is_read = call.action.risk is Risk.READ
        self.was_sent = False
        self.status: int | None = None
        self.detail: str | None = None
        self._call = call
        self._integration = integration
        self._spec = spec
        self._plan = plan
        self._credential = credential

    async def travel(self, pool: Pool) -> _Answer:
        """Send, and once more if it is a read declared so and the connection failed.

        Raises as `_hop` does.
        """
        if not (self.is_read and self._spec.retries_read):
            return await self._walk(pool)
        try:
            return await self._walk(pool)
        except EgressDeniedError:
            raise
        except UpstreamError:
            if self.status is not None:
                raise
            answer = await self._walk(pool)
            self.detail = f"{self.name}: the first try failed, this is the second"
            return answer

    async def _walk(self, pool: Pool) -> _Answer:
        request = self._plan.request
        may_follow = self.is_read and request.method == "GET"
        carries = True
        for hop in range(self._integration.redirects_max + 1):
            headed = self._plan.with_credential(request, self._credential) if carries else request
            answer, location = await self._hop(pool, headed)
            if location is None or not may_follow:
                return answer
            if hop == self._integration.redirects_max:
                self.detail = f"{self.name}: more than {hop} redirects"
                return answer
            target = join_url(request.url, location)
            self._plan.rules.check(target)
            if self._call.action.destination is not None and target.host != request.url.host:
                # Policy decided on a destination by name; another one is another action.
                raise EgressDeniedError(f"{self.name} redirects to {target.host}; ask for that URL by itself")
            carries = carries and target.origin == request.url.origin
            request = msgspec.structs.replace(request, url=target)
        raise AssertionError("a loop over at least one hop returns")

    async def _hop(self, pool: Pool, request: OutRequest) -> tuple[_Answer, str | None]:
        """One exchange: its answer, and where it points to if it is a redirect."""
        self.status = None
        exchange = Exchange(pool, self.name, self._call.guard, connect_s=CONNECT_S)
        try:
            response = await exchange.open(request)
            self.status = response.status
            content_type = response.headers.get("Content-Type", "").strip().lower()
            location = response.headers.get("Location") if response.status in _REDIRECTS else None
            body = await exchange.read_all(self._spec.response_bytes_max)
            return _Answer(response.status, content_type, body), location
        finally:
            self.was_sent = self.was_sent or exchange.sent
            exchange.close()

    def outcome(
        self, status: OutcomeStatus, answer: _Answer | None, redact: Redactor, detail: str | None
    ) -> Outcome:
        """The outcome with its output: the answer, or what is known where there is none."""
        if answer is None:
            output = _ENCODER.encode({"status": self.status, "body": None, "detail": detail})
        else:
            output, remark = _output_of(answer, redact)
            detail = detail or remark
        return Outcome(
            status,
            redact(output),
            self._call.action.estimate,
            labels=_labels_of(self._spec),
            http_status=self.status,
            detail=detail,
        )


def _broken(trip: _Trip, fault: Exception, ticket: Ticket, redact: Redactor) -> Outcome:
    """The outcome of an action without a whole answer; the error again where certainly nothing was sent."""
    if isinstance(fault, TimeoutError):
        fault = UpstreamError(f"{trip.name}: the deadline passed", sent=trip.was_sent)
    if not isinstance(fault, EgressDeniedError | LeaseLapsedError):
        ticket.fail()
    if not trip.was_sent:
        raise fault from None
    # A refusal stands whatever became of its text.
    is_known = trip.is_read or (trip.status is not None and 400 <= trip.status < 500)
    status = OutcomeStatus.FAILED if is_known else OutcomeStatus.UNKNOWN
    return trip.outcome(status, None, redact, str(fault))


def _declared(call: AdapterCall) -> tuple[str, IntegrationSpec, HttpActionSpec]:
    found = call.facts.actions.get(call.action.name)
    integration = call.facts.integrations.get(found[0]) if found is not None else None
    if found is None or integration is None:
        raise UpstreamError(f"the action {call.action.name!r} is not declared", sent=False)
    return found[0], integration, found[1]


def _status_of(status: int, *, is_read: bool) -> OutcomeStatus:
    """What a complete answer's status says about the action."""
    if status < 300 or (status == 303 and not is_read):
        # 303 answers a mutation that was done: its result is to be seen elsewhere (RFC 9110 §15.4.4).
        return OutcomeStatus.OK
    if is_read or (status < 500 and status != 302):
        # 301, 307 and 308 send a request elsewhere and a 4xx refuses it: either way it was not done.
        return OutcomeStatus.FAILED
    return OutcomeStatus.UNKNOWN


def _output_of(answer: _Answer, redact: Redactor) -> tuple[bytes, str | None]:
    body = redact(answer.body)
    media_type = answer.content_type.partition(";")[0].strip()
    remark = None
    if media_type == "application/json" or media_type.endswith("+json"):
        try:
            decoded = msgspec.json.decode(body) if body else None
            return _ENCODER.encode({"status": answer.status, "body": decoded}), None
        except (msgspec.MsgspecError, ValueError, RecursionError):
            remark = "the answer says that it is JSON and is not"
    try:
        output = {"status": answer.status, "body": body.decode()}
    except UnicodeDecodeError:
        output = {"status": answer.status, "body_base64": base64.b64encode(body).decode()}
    return _ENCODER.encode(output), remark


def _labels_of(spec: HttpActionSpec) -> Labels:
    """Declared data classes; what comes from a URL that the agent chose is nobody's word."""
    labels = {Label(name) for name in spec.data_classes}
    return frozenset(labels | {UNTRUSTED} if spec.url_from_input is not None else labels)
