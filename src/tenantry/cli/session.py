"""Which platform a command talks to, and as whom.

Control is asked over the socket in the data folder, so that a saturated gateway never stands between an operator
and a switch; without one, or when ``TENANTRY_URL`` names another platform, over that URL. The doors of runs are
the gateways', whose address the supervisor leaves in the data folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from tenantry.cli.output import Output
from tenantry.core.errors import TenantryError
from tenantry.settings import Settings
from tenantry_client import Client, SocketTransport, TcpTransport

ADDRESS_FILE: Final = "address.json"
KEY_BYTES_MAX: Final = 1024


class NoPlatformError(TenantryError):
    """There is nothing to talk to, or no key to talk with; names the remedy."""


class Address(msgspec.Struct, frozen=True):
    """Where a running installation answers; written by its supervisor once it serves."""

    url: str
    control_url: str
    pid: int


class Session:
    """One command's dealings with a platform."""

    def __init__(self, *, as_json: bool = False, data: Path | None = None) -> None:
        self.output = Output(as_json=as_json)
        self.settings = Settings.from_environment().with_options(data=data)

    @property
    def as_json(self) -> bool:
        """Whether the result goes out as JSON."""
        return self.output.as_json

    def control(self) -> Client:
        """Control, for everything but the doors. Errors: `NoPlatformError`."""
        settings, address = self.settings, self._address()
        socket_path = settings.data / "control.sock"
        elsewhere = settings.url is not None and (address is None or not _same(settings.url, address.url))
        if socket_path.exists() and not elsewhere:
            return Client(SocketTransport(socket_path), self._key())
        return Client(self._tcp(settings.url), self._key())

    def doors(self) -> Client:
        """The gateways: runs are opened and finished there. Errors: `NoPlatformError`."""
        address = self._address()
        url = self.settings.url or (None if address is None else address.url)
        return Client(self._tcp(url), self._key())

    def _tcp(self, url: str | None) -> TcpTransport:
        if url is None:
            raise NoPlatformError(
                f"no platform serves from {self.settings.data}: start one with `tenantry up`, name its "
                "folder with --data, or set TENANTRY_URL"
            )
        try:
            return TcpTransport(url)
        except ValueError as error:
            raise NoPlatformError(f"TENANTRY_URL cannot be used: {error}") from None

    def _key(self) -> str:
        if self.settings.api_key is not None:
            return self.settings.api_key
        path = self.settings.data / "operator.key"
        try:
            with path.open("rb") as file:
                return file.read(KEY_BYTES_MAX).decode("ascii").strip()
        except FileNotFoundError:
            raise NoPlatformError(f"set TENANTRY_API_KEY: there is no key in {path}") from None
        except (OSError, UnicodeDecodeError):
            raise NoPlatformError(f"set TENANTRY_API_KEY: {path} cannot be read") from None

    def _address(self) -> Address | None:
        try:
            return msgspec.json.decode((self.settings.data / ADDRESS_FILE).read_bytes(), type=Address)
        except (OSError, msgspec.MsgspecError):
            return None


def _same(one: str, other: str) -> bool:
    return one.rstrip("/").lower() == other.rstrip("/").lower()
