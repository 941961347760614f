"""What the database answered, in words of storage: nobody else imports the driver.

`core.errors.StorageUnavailableError` stands beside these: the database did not answer, and whether the
statement took effect is not known.
"""

from __future__ import annotations

from tenantry.core.errors import TenantryError


class StatementError(TenantryError):
    """The server refused one statement, and the connection is still good.

    `sqlstate` has five characters (PostgreSQL's appendix A); `constraint` is the name of the one violated.
    Never carries arguments or row values beyond the server's primary message.
    """

    def __init__(self, sqlstate: str, message: str, *, constraint: str | None = None) -> None:
        super().__init__(f"the database refused the statement: {message} ({sqlstate})")
        self.sqlstate = sqlstate
        self.constraint = constraint


class LockTimeoutError(TenantryError):
    """A row lock did not come free within the role's `lock_timeout` (55P03); nothing took effect."""


class SealBrokenError(TenantryError):
    """Sealed bytes do not open here: another tenant's, another row's, under a destroyed key, or changed."""


class ScopeMisuseError(TenantryError):
    """A programming error: a scope made by hand, entered twice, or used outside `async with`."""


class MigrationError(TenantryError):
    """The schema cannot be brought up to date; names the file or setting and the remedy."""
