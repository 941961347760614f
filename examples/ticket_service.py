"""A help desk's ticket service over HTTP and JSON, with a credential for each of its customers.

    python examples/ticket_service.py --port 0 --books books.jsonl --credential
    borealis=zd-token-borealis-0001

``POST /api/v2/tickets`` creates, ``GET``, ``PUT`` (or ``POST``) and ``DELETE /api/v2/tickets/{id}`` read,
update and delete. A customer sees its own tickets only, and starts with those of ``--ticket``. The
credential may come as a bearer token, as the password of HTTP Basic or in ``X-Api-Key``; the books record
whose it was. A field may be given bare (``{"status": "solved"}``) or inside ``{"ticket": {...}}``.
Behaviours (`HttpBehaviour`) come from ``POST /control`` and from words in the comment (``!reset``).
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Literal, NamedTuple

import msgspec
from faults import BARE, HttpBehaviour, answer_json, answered_before
from serving import (
    BodyError,
    Books,
    Control,
    Exchange,
    Facts,
    argument_parser,
    credential_of,
    open_books,
    serve,
    suffix,
)

BODY_BYTES_MAX = 1024 * 1024
TICKETS_MAX = 100_000
COMMENTS_MAX = 1000
IDEMPOTENCY_KEYS_MAX = 100_000
COLLECTION = "/api/v2/tickets"
TICKET_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Comment(msgspec.Struct, frozen=True):
    """A comment as an object."""

    body: str


class TicketChange(msgspec.Struct, frozen=True):
    """The fields of a ticket that a request sets; what is not given stays."""

    status: Literal["new", "open", "pending", "hold", "solved", "closed"] | None = None
    subject: Annotated[str, msgspec.Meta(max_length=1000)] | None = None
    priority: Literal["low", "normal", "high", "urgent"] | None = None
    comment: str | Comment | None = None

    def comment_text(self) -> str | None:
        """The comment, however it was given."""
        return self.comment.body if isinstance(self.comment, Comment) else self.comment


class Wrapped(msgspec.Struct, frozen=True):
    """A change inside ``ticket``."""

    ticket: TicketChange | None = None


class Ticket(msgspec.Struct):
    """A ticket; ``version`` counts its changes."""

    id: str
    status: str = "open"
    subject: str = ""
    priority: str = "normal"
    comments: list[str] = []
    version: int = 0
    updated_at: datetime | None = None

    def apply(self, change: TicketChange) -> None:
        """Set what ``change`` gives."""
        self.status = change.status or self.status
        self.subject = self.subject if change.subject is None else change.subject
        self.priority = change.priority or self.priority
        comment = change.comment_text()
        if comment is not None and len(self.comments) < COMMENTS_MAX:
            self.comments.append(comment)
        self.version += 1
        self.updated_at = datetime.now(UTC)


class Reply(NamedTuple):
    """What a request did and what it is told; ``effect`` is None when nothing changed."""

    status: int
    body: Facts
    effect: str | None = None


class Desk:
    """The tickets of one customer, and the answers it was given under its idempotency keys."""

    def __init__(self, ticket_ids: Iterable[str]) -> None:
        self._tickets = {ticket_id: Ticket(ticket_id) for ticket_id in ticket_ids}
        self._replies: dict[str, tuple[str, Reply]] = {}
        self._created = 0

    def perform(self, method: str, ticket_id: str | None, change: TicketChange) -> Reply:
        """Do what one request asks for."""
        if ticket_id is None:
            return self._create(change) if method == "POST" else _problem(405, "only POST works here")
        ticket = self._tickets.get(ticket_id)
        if ticket is None:
            return _problem(404, "no such ticket")
        if method == "GET":
            return Reply(200, _shown(ticket))
        if method == "DELETE":
            del self._tickets[ticket_id]
            return Reply(200, {"deleted": True}, "deleted")
        if method in {"PUT", "POST"}:
            ticket.apply(change)
            return Reply(200, _shown(ticket), "updated")
        return _problem(405, "use GET, PUT, POST or DELETE")

    def perform_once(
        self, key: str, fingerprint: str, method: str, ticket_id: str | None, change: TicketChange
    ) -> Reply:
        """`perform` under an idempotency key: its first answer stands, another request under it is a 422."""
        if key in self._replies:
            seen, reply = self._replies[key]
            if seen != fingerprint:
                return _problem(422, "this idempotency key was used for another request")
            return reply._replace(effect="replayed")
        reply = self.perform(method, ticket_id, change)
        if len(self._replies) >= IDEMPOTENCY_KEYS_MAX:
            del self._replies[next(iter(self._replies))]
        self._replies[key] = (fingerprint, reply)
        return reply

    def _create(self, change: TicketChange) -> Reply:
        if len(self._tickets) >= TICKETS_MAX:
            return _problem(507, f"a customer has at most {TICKETS_MAX} tickets")
        self._created += 1
        ticket = Ticket(f"zd_new_{self._created}", status="new")
        ticket.apply(change)
        self._tickets[ticket.id] = ticket
        return Reply(201, _shown(ticket), "created")


class TicketService:
    """The service's endpoints, over one desk for each credential."""

    def __init__(
        self,
        books: Books,
        credentials: Mapping[str, str],
        ticket_ids: Iterable[str],
        *,
        honours_idempotency: bool,
    ) -> None:
        self.books = books
        self.control = Control(HttpBehaviour, BARE)
        self._owners = {token: owner for owner, token in credentials.items()}
        self._desks = {owner: Desk(ticket_ids) for owner in credentials}
        self._honours_idempotency = honours_idempotency

    async def answer(self, exchange: Exchange) -> None:
        """Answer one request, and keep the books of it whatever happens."""
        scheme, token = credential_of(exchange)
        entry = self.books.start(
            exchange,
            {
                "method": exchange.method,
                "path": exchange.path,
                "credential": self._owners.get(token),
                "scheme": scheme,
                "key_suffix": suffix(token),
                "effect": None,
            },
        )
        try:
            await self._answer(exchange, entry)
        finally:
            self.books.end(entry, "ended", {"left_early": exchange.client_left()})

    async def _answer(self, exchange: Exchange, entry: Facts) -> None:
        behaviour = HttpBehaviour()
        try:
            body = await exchange.read_body(BODY_BYTES_MAX)
            change = _change_of(body)
            behaviour = self.control.behaviour(entry, change.comment_text() or "")
        except BodyError as fault:
            reply = _problem(fault.status, str(fault))
        except msgspec.MsgspecError as fault:
            reply = _problem(422, str(fault))
        else:
            if await answered_before(exchange, behaviour):
                return
            reply = self._perform(exchange, entry, body, change)
        facts: Facts = {"status": reply.status, "effect": reply.effect}
        self.books.note(entry, "effect" if reply.effect else "answer", facts)
        await answer_json(exchange, behaviour, reply.status, reply.body)

    def _perform(self, exchange: Exchange, entry: Facts, body: bytes, change: TicketChange) -> Reply:
        if entry["credential"] is None:
            return _problem(401, "this credential is nobody's")
        root, _, ticket_id = exchange.path.partition(COLLECTION)
        is_ticket = ticket_id.startswith("/") and TICKET_ID.fullmatch(ticket_id[1:])
        if root or not (is_ticket or ticket_id == ""):
            return _problem(404, "no such ticket")
        desk = self._desks[entry["credential"]]
        target = ticket_id[1:] or None
        key = exchange.headers.get("idempotency-key")
        if key is None or not self._honours_idempotency or exchange.method == "GET":
            return desk.perform(exchange.method, target, change)
        request = b"\n".join((exchange.method.encode(), exchange.path.encode(), body))
        return desk.perform_once(key, hashlib.sha256(request).hexdigest(), exchange.method, target, change)


def _change_of(body: bytes) -> TicketChange:
    if not body:
        return TicketChange()
    wrapped = msgspec.json.decode(body, type=Wrapped)
    return wrapped.ticket or msgspec.json.decode(body, type=TicketChange)


def _shown(ticket: Ticket) -> Facts:
    """The ticket as it is now; a later change does not alter an answer that is kept."""
    return {"ticket": msgspec.to_builtins(ticket)}


def _problem(status: int, detail: str) -> Reply:
    return Reply(status, {"error": HTTPStatus(status).phrase, "description": detail})


def _credential(text: str) -> tuple[str, str]:
    owner, _, token = text.partition("=")
    if not owner or not token:
        raise argparse.ArgumentTypeError("a credential is written OWNER=TOKEN")
    return owner, token


def main() -> None:
    """Run the service until it is told to stop."""
    parser = argument_parser("an example ticket service with a credential for each customer")
    parser.add_argument(
        "--credential",
        action="append",
        default=[],
        type=_credential,
        metavar="OWNER=TOKEN",
        help="may be repeated",
    )
    parser.add_argument(
        "--ticket", action="append", default=[], help="a ticket that each customer starts with"
    )
    parser.add_argument(
        "--honour-idempotency-key",
        action="store_true",
        help="answer a repeated Idempotency-Key with the first answer",
    )
    options = parser.parse_args()
    credentials = dict(options.credential)
    if len(set(credentials.values())) != len(options.credential):
        parser.error("each owner has one token and each token one owner")
    books = open_books(parser, options)
    tickets = options.ticket or ["zd_99102"]
    serve(
        TicketService(books, credentials, tickets, honours_idempotency=options.honour_idempotency_key),
        options,
    )


if __name__ == "__main__":
    main()
