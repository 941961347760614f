"""Names to addresses: looked up once for a new connection, every address checked, connected to just these.

A look-up that hangs holds a thread and not the caller, whose deadline goes on. Threads are bounded for the
process and look-ups in flight for each pool, so that one tenant's slow name server does not take them all.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

from tenantry.adapters.egress import EgressRules
from tenantry.core.errors import EgressDeniedError, UpstreamError

Lookup = Callable[[str, int], Sequence[str]]
THREADS: Final = 16
IN_FLIGHT_MAX: Final = 2
ADDRESSES_MAX: Final = 16


def system_lookup(host: str, port: int) -> list[str]:
    """The addresses that the system's resolver gives, in its order, without repeats.

    Blocks; raises OSError.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Lookups:
    """The process's threads for look-ups; `lookup` is what runs in them."""

    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._lookup = lookup
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lookup")

    def start(self, host: str, port: int) -> asyncio.Future[Sequence[str]]:
        """Begin one look-up in a thread."""
        return asyncio.wrap_future(self._threads.submit(self._lookup, host, port))

    def close(self) -> None:
        """Take no more; a thread that hangs in the system's resolver ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class PinningResolver(AbstractResolver):
    """The resolver of one pool. Connections that wait for the same name share one look-up."""

    def __init__(self, lookups: Lookups, rules: EgressRules) -> None:
        self._lookups = lookups
        self._rules = rules
        self._in_flight: dict[tuple[str, int], asyncio.Future[Sequence[str]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of a name, each of them checked.

        Raises `EgressDeniedError` if one of them may not be reached: a name that mixes is not to be trusted.
        Raises OSError when there is none, `UpstreamError` when too many look-ups of this pool are under way.
        """
        addresses = await asyncio.shield(self._share(host, port))
        if not addresses:
            raise OSError(None, "the name has no address")
        if len(addresses) > ADDRESSES_MAX:
            raise EgressDeniedError(f"the name has more than {ADDRESSES_MAX} addresses")
        for address in addresses:
            self._rules.check_address(address)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
            if family in {socket.AF_UNSPEC, socket.AF_INET6 if ":" in address else socket.AF_INET}
        ]

    def _share(self, host: str, port: int) -> asyncio.Future[Sequence[str]]:
        key = (host, port)
        if (running := self._in_flight.get(key)) is not None:
            return running
        if len(self._in_flight) >= IN_FLIGHT_MAX:
            raise UpstreamError("too many names of this upstream are being looked up", sent=False)
        future = self._lookups.start(host, port)
        self._in_flight[key] = future

        def forget(done: asyncio.Future[Sequence[str]]) -> None:
            del self._in_flight[key]
            if not done.cancelled():
                # Seen here, so that a failure nobody waits for any more is not reported as forgotten.
                done.exception()

        future.add_done_callback(forget)
        return future

    async def close(self) -> None:
        """Nothing to release: the threads belong to the process."""
