"""What every test gets: hypothesis profiles, and no network under tests/unit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

UNIT = Path(__file__).parent / "unit"
NETWORK_EVENTS = frozenset(
    {
        "socket.connect",
        "socket.bind",
        "socket.sendto",
        "socket.sendmsg",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
    }
)


class SocketGuard:
    """Refuses network calls while a unit test runs; as an audit hook it also holds those made from C."""

    def __init__(self) -> None:
        self.closed = False

    def __call__(self, event: str, _arguments: tuple[object, ...]) -> None:
        if self.closed and event in NETWORK_EVENTS:
            raise RuntimeError(f"{event} in a unit test; such a test belongs under tests/integration")


SOCKET_GUARD = SocketGuard()


def pytest_configure(config: pytest.Config) -> None:
    """Registers the profiles: `ci` repeats itself exactly, `dev` looks further each time."""
    del config
    sys.addaudithook(SOCKET_GUARD)
    # The machine is shared, so a slow example says nothing; pytest-timeout bounds the whole test.
    slow = [HealthCheck.too_slow]
    settings.register_profile(
        "ci", deadline=None, derandomize=True, print_blob=True, database=None, suppress_health_check=slow
    )
    settings.register_profile("dev", deadline=None, suppress_health_check=slow)
    chosen = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
    settings.load_profile(chosen)


@pytest.fixture(autouse=True)
def _no_network_in_unit_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    SOCKET_GUARD.closed = UNIT in request.path.parents
    yield
    SOCKET_GUARD.closed = False
