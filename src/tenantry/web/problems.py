"""Problem details (RFC 9457) for faults: what is wrong with a request, or with us.

A wrong id and a foreign one are told in the same bytes, with no id, no path and no instance in them. A fault
that nobody foresaw says nothing of its cause.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tenantry.core.errors import (
    ForbiddenError,
    InvalidInputError,
    KeyReuseError,
    LeaseLapsedError,
    NotFoundError,
    StorageUnavailableError,
    TenantryError,
    UnauthenticatedError,
)
from tenantry.web.verdicts import PROBLEM_TYPE, Headers

PROBLEM_CONTENT_TYPE: Final = b"application/problem+json"
JSON_CONTENT_TYPE: Final = b"application/json"
_ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Problem(msgspec.Struct, frozen=True):
    """``kind`` ends the problem's type; ``path`` is the JSON path of a bad field, or ``header NAME``."""

    status: int
    kind: str
    title: str
    detail: str | None = None
    path: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    closes: bool = False


class ProblemError(TenantryError):
    """A request that a door refuses before any action exists; carries what to answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.title)
        self.problem = problem


NOT_FOUND: Final = Problem(404, "not_found", "not found")
FAULT: Final = Problem(
    500, "internal_error", "the platform failed; the fault is recorded under the request id"
)
_RETRY_SOON: Final = ((b"retry-after", b"1"),)


def problem_of(error: Exception) -> Problem | None:
    """The answer to a known fault; None: it is not known, and `FAULT` is all that may be said."""
    match error:
        case ProblemError():
            return error.problem
        case InvalidInputError():
            return Problem(400, "invalid_input", "the request is not valid", str(error), error.path)
        case KeyReuseError():
            title = "this idempotency key came before with another body"
            return Problem(422, "idempotency_key_reuse", title, "Use a new key for a new request.")
        case UnauthenticatedError():
            return unauthenticated()
        case ForbiddenError():
            return Problem(403, "forbidden", "this key may not do that", str(error))
        case NotFoundError():
            return NOT_FOUND
        case StorageUnavailableError():
            title = "the platform's database is away; nothing was sent"
            detail = "The gate fails closed while it cannot record what it does. Try again."
            return Problem(503, "storage_unavailable", title, detail, headers=_RETRY_SOON)
        case LeaseLapsedError():
            title = "this gateway is not ready; nothing was sent"
            return Problem(503, "gateway_not_ready", title, "Try again.", headers=_RETRY_SOON)
        case _:
            return None


def unauthenticated() -> Problem:
    """401, alike for a credential that is missing, malformed, expired or foreign."""
    return Problem(
        401,
        "unauthenticated",
        "no valid credential",
        "Send `Authorization: Bearer` with a run token (an API key where people ask).",
        headers=((b"www-authenticate", b"Bearer"),),
    )


def too_many_failures(wait_ms: int) -> Problem:
    """429 for an address whose credentials keep failing."""
    seconds = str(max(1, -(-wait_ms // 1000)))
    return Problem(
        429,
        "failed_authentication_limit",
        "too many failed credentials from this address",
        f"Try again in {seconds} s.",
        headers=((b"retry-after", seconds.encode()), (b"x-should-retry", b"false")),
    )


def invalid(detail: str, *, path: str, status: int = 400) -> ProblemError:
    """A bad field or header, as an error to raise."""
    return ProblemError(Problem(status, "invalid_input", "the request is not valid", detail, path))


def method_not_allowed(allowed: str) -> Problem:
    """405; `allowed` is the value of ``Allow``."""
    return Problem(405, "method_not_allowed", "method not allowed", headers=((b"allow", allowed.encode()),))


def problem_members(problem: Problem) -> dict[str, object]:
    """The problem details object."""
    members: dict[str, object] = {
        "type": PROBLEM_TYPE + problem.kind,
        "title": problem.title,
        "status": problem.status,
    }
    if problem.detail is not None:
        members["detail"] = problem.detail
    if problem.path is not None:
        members["path"] = problem.path
    return members


def problem_bytes(problem: Problem) -> bytes:
    """``application/problem+json``."""
    return msgspec.json.encode(problem_members(problem))


def openai_problem_bytes(problem: Problem) -> bytes:
    """OpenAI's error object, with the problem's members beside it; ``param`` is the bad field."""
    path = problem.path
    error = {
        "message": problem.title if problem.detail is None else f"{problem.title}: {problem.detail}",
        "type": _ERROR_TYPES.get(
            problem.status, "server_error" if problem.status >= 500 else "invalid_request_error"
        ),
        "param": path.removeprefix("$.") if path else None,
        "code": problem.kind,
    }
    return msgspec.json.encode({"error": error, **problem_members(problem)})


def problem_headers(problem: Problem) -> Headers:
    """The problem's own headers."""
    return list(problem.headers)
