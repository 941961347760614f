"""What an endpoint is: one row of the route table, from which routing and the OpenAPI document are made."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypeVar, get_args, get_type_hints

import msgspec

from tenantry.control.services import Services
from tenantry.core.errors import InvalidInputError
from tenantry.core.ids import TenantId
from tenantry.core.principal import Principal

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 500
BODY_BYTES_MAX: Final = 256 * 1024
CURSOR_CHARACTERS_MAX: Final = 1_000


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A page of a list. ``next`` is the cursor of the page after it, None at the end."""

    items: list[T]
    next: str | None


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Query parameters of an endpoint; unknown ones are refused."""


class PageQuery(Query, frozen=True):
    """``after`` is a cursor that a page gave."""

    after: str | None = None
    limit: int = LIMIT_DEFAULT


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One request, proven and decoded."""

    services: Services
    principal: Principal
    path: Mapping[str, str]
    query: Any
    body: Any

    @property
    def tenant_id(self) -> TenantId:
        """The tenant in the path; its right to be there is the use case's to check."""
        return TenantId(self.path["tenant_id"])


Handler = Callable[[Call], Awaitable[object]]


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation. ``answer`` is the type of what `handler` gives; None: no body."""

    method: str
    path: str
    handler: Handler
    answer: Any
    body: type[msgspec.Struct] | None = None
    query: type[Query] = Query
    status: int = 200
    body_bytes_max: int = BODY_BYTES_MAX

    @property
    def operation(self) -> str:
        """The operation's id: the handler's name."""
        return self.handler.__name__

    @property
    def summary(self) -> str:
        """The handler's docstring, one line."""
        return (inspect.getdoc(self.handler) or "").partition("\n")[0]


def answer_of(use_case: Callable[..., Any]) -> Any:  # noqa: ANN401 - it is a type, whichever
    """What a use case answers, as declared."""
    return get_type_hints(use_case)["return"]


def page_of(use_case: Callable[..., Any]) -> Any:  # noqa: ANN401 - likewise
    """A page of what a use case answers a list of."""
    (item,) = get_args(answer_of(use_case))
    generic: Any = Page
    return generic[item]


def limit_of(query: PageQuery) -> int:
    """How many items a page may have. Errors: `InvalidInputError`."""
    if not 1 <= query.limit <= LIMIT_MAX:
        raise InvalidInputError(f"a page has 1 to {LIMIT_MAX} items", path="query limit")
    return query.limit


def make_page(items: list[T], query: PageQuery, key: Callable[[T], object]) -> Page[T]:
    """A page with the cursor of its last item; a page that is not full is the last."""
    is_last = len(items) < query.limit
    return Page(items, None if is_last or not items else encode_cursor(key(items[-1])))


def encode_cursor(value: object) -> str:
    """Opaque text for a place in a list."""
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")


def read_cursor(text: str | None, kind: type[T], start: T) -> T:
    """The place that a cursor means; `start` without one. Errors: `InvalidInputError`."""
    if text is None:
        return start
    try:
        if len(text) > CURSOR_CHARACTERS_MAX:
            raise ValueError("too long")
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(decoded, type=kind)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise InvalidInputError("the cursor is not one that a page gave", path="query after") from None
