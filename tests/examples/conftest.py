"""Example servers for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.examples.servers import Server, running


@pytest.fixture
def run_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of this test's own: ``run_server("model_server.py", "--key", ...)``."""
    with ExitStack() as stack:

        def start(name: str, *options: str) -> Server:
            return stack.enter_context(running(name, tmp_path / f"{name}.jsonl", *options))

        yield start
