"""A real platform for the tests of the product: processes, sockets, signals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.e2e.platforms import EXAMPLES, Platform, data_folder, serving
from tests.examples.servers import Server, running

KEYS = {"model": "sk-example-e2e-000001", "tickets": "zd-example-borealis-000001"}


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    books = tmp_path_factory.mktemp("books")
    with ExitStack() as stack:
        yield {
            "model": stack.enter_context(
                running("model_server.py", books / "model.jsonl", "--key", KEYS["model"])
            ),
            "tickets": stack.enter_context(
                running(
                    "ticket_service.py",
                    books / "tickets.jsonl",
                    "--credential",
                    f"borealis={KEYS['tickets']}",
                    "--ticket",
                    "zd_99102",
                )
            ),
            "web": stack.enter_context(running("web_site.py", books / "web.jsonl")),
        }


@pytest.fixture(scope="session")
def fleet_variables(services: dict[str, Server]) -> dict[str, str]:
    return {
        "EXAMPLE_MODEL_URL": services["model"].url,
        "EXAMPLE_MODEL_KEY": KEYS["model"],
        "EXAMPLE_TICKETS_URL": services["tickets"].url,
        "EXAMPLE_TICKETS_TOKEN_BOREALIS": KEYS["tickets"],
        "EXAMPLE_WEB_URL": services["web"].url,
    }


@pytest.fixture(scope="session")
def platform(fleet_variables: dict[str, str]) -> Iterator[Platform]:
    """One platform with the example fleet, for tests that leave it as they found it."""
    with data_folder() as data, serving(data, "--ephemeral") as served:
        done = served.cli("apply", str(EXAMPLES / "fleet.yaml"), "--json", env=fleet_variables)
        assert done.status == 0, done.err
        yield served


@pytest.fixture
def start() -> Iterator[Callable[..., Platform]]:
    """Starts platforms of a test's own: ``start(data, "--gateways", "2")``."""
    with ExitStack() as stack:

        def up(data: Path, *options: str) -> Platform:
            return stack.enter_context(serving(data, *options))

        yield up
