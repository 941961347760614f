"""Faults. Expected refusals are `Verdict` values, never exceptions (STYLE §6)."""

from __future__ import annotations


class TenantryError(Exception):
    """Base of every fault the platform raises: lower-case message, names the thing and the remedy."""


class InvalidInputError(TenantryError):
    """Input that a person or program sent is wrong; `path` names the field as a JSON path (`$.a.b[0]`)."""

    def __init__(self, message: str, *, path: str = "$") -> None:
        super().__init__(message)
        self.path = path


class NotFoundError(TenantryError):
    """The thing does not exist for the asker. A foreign id and an id that never was are told alike."""


class UnauthenticatedError(TenantryError):
    """No credential, or one that proves nothing. Never says which part was wrong."""


class ForbiddenError(TenantryError):
    """A person's role does not carry the right asked for; names the right."""


class KeyReuseError(TenantryError):
    """An idempotency key came again with another body (422 `idempotency_key_reuse`)."""


class StorageUnavailableError(TenantryError):
    """The database did not answer in time; the gate fails closed."""


class UpstreamError(TenantryError):
    """An upstream broke the protocol, the deadline or a cap.

    `sent` is False only when it is certain that not one byte of the request was written.
    """

    def __init__(self, message: str, *, sent: bool, status: int | None = None) -> None:
        super().__init__(message)
        self.sent = sent
        self.status = status


class EgressDeniedError(UpstreamError):
    """A destination is outside what the action may reach; nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


class LeaseLapsedError(TenantryError):
    """This process may not act: its own instance lease lapsed, or a switch covers the scope."""
