"""Unit tests have no network, and notice when they try."""

from __future__ import annotations

import asyncio
import socket

import pytest


def test_a_connection_is_refused() -> None:
    with socket.socket() as client, pytest.raises(RuntimeError, match="socket.connect in a unit test"):
        client.connect(("127.0.0.1", 9))


def test_a_listener_is_refused() -> None:
    with socket.socket(socket.AF_UNIX) as server, pytest.raises(RuntimeError, match="socket.bind"):
        server.bind("unused")


def test_a_look_up_is_refused() -> None:
    with pytest.raises(RuntimeError, match="socket.getaddrinfo"):
        socket.getaddrinfo("localhost", 80)


async def test_an_event_loop_still_works() -> None:
    assert await asyncio.to_thread(lambda: 1) == 1
