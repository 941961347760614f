"""Listening sockets, bound by the supervisor and inherited by its children, so that a port is never lost.

A Unix socket's address holds at most 107 bytes, and a data folder may be deeper: sockets in it are reached
through an open descriptor of the folder, whose path in ``/proc`` is short.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

from tenantry.core.errors import InvalidInputError, TenantryError

BACKLOG: Final = 2048
PAIR_ATTEMPTS_MAX: Final = 50


class ListenError(TenantryError):
    """An address cannot be listened on; names it and the remedy."""


def bind_pair(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Listen on `port` for the gateways and on the next one for control; port 0 takes a free pair.

    Errors: `ListenError` naming the port that is taken; `InvalidInputError` for a host that is no address.
    """
    if port:
        first = bind(host, port)
        try:
            return first, bind(host, port + 1)
        except ListenError:
            first.close()
            raise
    for _ in range(PAIR_ATTEMPTS_MAX):
        first = bind(host, 0)
        try:
            return first, bind(host, first.getsockname()[1] + 1)
        except (ListenError, OverflowError):
            first.close()
    raise ListenError(f"found no two free ports side by side on {host}; name one with --port")


def bind(host: str, port: int) -> socket.socket:
    """Listen on one TCP address. Errors: as `bind_pair`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise InvalidInputError(f"{host!r} is no address of this machine", path="--host") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    listener.setblocking(False)  # noqa: FBT003 - the socket's own signature
    return listener


def bind_private(path: Path) -> socket.socket:
    """Listen on a Unix socket that only this user may open; replaces what a killed process left there."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listener.bind(short_path(folder, path.name))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror}") from None
    finally:
        os.umask(mask)
        os.close(folder)
    listener.setblocking(False)  # noqa: FBT003 - the socket's own signature
    return listener


def short_path(folder_fd: int, name: str) -> str:
    """A path of at most 107 bytes to a socket in a folder that this process has open."""
    return f"/proc/self/fd/{folder_fd}/{name}"


def url_of(listener: socket.socket, host: str) -> str:
    """The URL of a listening socket, under the name that it was asked for."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
