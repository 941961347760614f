"""One HTTP request and its answer, for both adapters: sent once, read in bounded pieces, never sent again.

new -> open -> reading -> complete | aborted. Every fault is an `UpstreamError` whose ``sent`` is exact;
nothing of the request, and so no credential, hangs on an error as its cause.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import ClientResponse, ClientTimeout
from yarl import URL

from tenantry.adapters.connector import ATTEMPT, Attempt, Pool, describe
from tenantry.adapters.egress import Url
from tenantry.core.errors import EgressDeniedError, UpstreamError

if TYPE_CHECKING:
    from tenantry.gate.ports import Guard

PIECE_BYTES_MAX: Final = 256 * 1024
# aiohttp writes larger bytes in one go and warns of it; from a file object it writes in pieces.
_BYTES_BODY_MAX: Final = 1024 * 1024
_GZIP_WBITS: Final = 31


class AnswerTooLargeError(UpstreamError):
    """The answer went past its cap."""

    def __init__(self, name: str, bytes_max: int) -> None:
        super().__init__(f"{name}: its answer is larger than {bytes_max} bytes", sent=True)


class OutRequest(msgspec.Struct, frozen=True):
    """A request as it will be sent; ``headers`` hold the credential, so this is never shown or kept."""

    method: str
    url: Url
    headers: tuple[tuple[str, str], ...]
    body: bytes | None = None

    def __repr__(self) -> str:
        return f"OutRequest({self.method} {self.url.authority})"


def header_value(text: str, name: str) -> str:
    """The text, if a header can carry it. Raises `UpstreamError` that names the header and not the value."""
    if not (text.isascii() and text.isprintable()) or text != text.strip():
        raise UpstreamError(f"the header {name} cannot carry its value: printable ASCII only", sent=False)
    return text


class Exchange:
    """One request through one pool.

    `name` stands in messages; `connect_s` bounds waiting, look-up and handshakes.
    """

    def __init__(
        self,
        pool: Pool,
        name: str,
        guard: Guard,
        *,
        connect_s: float,
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        self._pool = pool
        self._name = name
        self._connect_s = connect_s
        self._attempt = Attempt(guard, on_sent)
        self._response: ClientResponse | None = None
        self._inflater: _Inflater | None = None

    @property
    def sent(self) -> bool:
        """Whether a byte of the request was written."""
        return self._attempt.sent

    async def open(self, request: OutRequest) -> ClientResponse:
        """Send the request and wait for the head of the answer, which is returned: status and headers.

        Raises what the guard raises, `EgressDeniedError` and `UpstreamError`. On cancellation the connection
        is aborted before CancelledError goes on.
        """
        token = ATTEMPT.set(self._attempt)
        fault: Exception
        try:
            self._response = response = await self._request(request)
            if response.status == 101:
                raise UpstreamError(f"{self._name}: it changed the protocol unasked", sent=True)
            self._inflater = _inflater_for(response, self._name)
            return response
        except (EgressDeniedError, UpstreamError) as refusal:
            self.abort()
            fault = refusal
        except Exception as cause:  # noqa: BLE001 whatever the client raises, this is what it means
            self.abort()
            fault = UpstreamError(f"{self._name}: {describe(cause)}", sent=self.sent)
        except BaseException:
            self.abort()
            raise
        finally:
            ATTEMPT.reset(token)
        # Outside of the handlers: the client's error holds the request's headers; it must not be the context.
        raise self._attempt.refused or fault

    async def _request(self, request: OutRequest) -> ClientResponse:
        url = request.url
        body = request.body
        return await self._pool.session.request(
            request.method,
            URL.build(
                scheme=url.scheme,
                authority=url.authority,
                path=url.path,
                query_string=url.query or "",
                encoded=True,
            ),
            headers=request.headers,
            data=io.BytesIO(body) if body is not None and len(body) > _BYTES_BODY_MAX else body,
            allow_redirects=False,
            timeout=ClientTimeout(total=None, connect=self._connect_s),
        )

    async def read_some(self) -> bytes:
        """The next piece of the body, decompressed, at most `PIECE_BYTES_MAX` bytes; empty at its end."""
        if self._inflater is None:
            return await self._read_raw()
        while True:
            if piece := self._inflater.take():
                return piece
            data = await self._read_raw()
            if not data:
                self._inflater.finish()
                return b""
            self._inflater.push(data)

    async def read_all(self, bytes_max: int) -> bytes:
        """The whole body.

        Raises `AnswerTooLargeError` past `bytes_max`, having held no more than a piece above it.
        """
        body = bytearray()
        while piece := await self.read_some():
            if len(body) + len(piece) > bytes_max:
                self.abort()
                raise AnswerTooLargeError(self._name, bytes_max)
            body += piece
        return bytes(body)

    async def _read_raw(self) -> bytes:
        assert self._response is not None
        try:
            return await self._response.content.readany()
        except Exception as cause:  # noqa: BLE001 as in `open`
            fault = UpstreamError(f"{self._name}: {describe(cause)}", sent=True)
        raise fault

    def abort(self) -> None:
        """Close the connection at once, whatever is still to be sent or read. Harmless after the end."""
        if self._response is None:
            self._attempt.abort()
        elif not self._response.content.at_eof() or self._response.connection is not None:
            self._attempt.abort()
            self._response.close()

    def close(self) -> None:
        """Leave: a connection whose answer was read to its end goes back to the pool, any other is closed."""
        self.abort()


class _Inflater:
    """gzip in bounded pieces, so that a small answer never grows beyond one piece in memory."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._inflate = zlib.decompressobj(_GZIP_WBITS)
        self._waiting = b""
        self._has_begun = False
        self._may_hold = False

    def push(self, data: bytes) -> None:
        """Add compressed bytes; call when `take` has nothing more."""
        self._waiting += data

    def take(self) -> bytes:
        """The next piece, empty when more input is needed. Raises `UpstreamError` where it is not gzip."""
        while self._waiting or self._may_hold:
            if self._inflate.eof:
                self._inflate = zlib.decompressobj(_GZIP_WBITS)
            self._has_begun = True
            try:
                piece = self._inflate.decompress(self._waiting, PIECE_BYTES_MAX)
            except zlib.error:
                raise UpstreamError(f"{self._name}: its answer is not the gzip it says", sent=True) from None
            self._waiting = self._inflate.unused_data or self._inflate.unconsumed_tail
            # Input may be used up while output still waits inside.
            self._may_hold = bool(piece) and not self._inflate.eof
            if piece:
                return piece
        return b""

    def finish(self) -> None:
        """Raise `UpstreamError` unless the last member was whole."""
        if self._has_begun and not self._inflate.eof:
            raise UpstreamError(f"{self._name}: its answer broke off", sent=True)


def _inflater_for(response: ClientResponse, name: str) -> _Inflater | None:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in {"identity", ""}:
        return None
    if encoding in {"gzip", "x-gzip"}:
        return _Inflater(name)
    raise UpstreamError(f"{name}: its answer is in an encoding that was not asked for", sent=True)
