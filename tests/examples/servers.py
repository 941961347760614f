"""The example servers and agents as processes, and the servers' books."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

EXAMPLES = Path(__file__).parents[2] / "examples"
SETTLED_S = 10.0


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value


@dataclass(frozen=True)
class Server:
    """A running example server."""

    url: str
    process: subprocess.Popen[str]
    books_file: Path

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def call(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own; ``body`` is JSON unless it is bytes."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, fields, answer.read())
        finally:
            connection.close()

    def rules(self, *rules: dict[str, Any]) -> None:
        answer = self.call("POST", "/control", {"rules": list(rules)})
        assert answer.status == 200, answer.body

    def books(self) -> dict[str, Any]:
        """The books once no request is open any more."""
        deadline = time.monotonic() + SETTLED_S
        while True:
            books = self.call("GET", "/books").json()
            if books["totals"]["open"] == 0 or time.monotonic() > deadline:
                return books

    def last(self) -> dict[str, Any]:
        entry: dict[str, Any] = self.books()["entries"][-1]
        return entry

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.books_file.read_text().splitlines()]


@contextmanager
def running(name: str, books_file: Path, *options: str) -> Iterator[Server]:
    """Run one example server until the block ends."""
    command = [
        sys.executable,
        str(EXAMPLES / name),
        "--books",
        str(books_file),
        "--exit-with-stdin",
        *options,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            word, _, url = process.stdout.readline().strip().partition(" ")
            assert word == "ready"
            yield Server(url, process, books_file)
        finally:
            process.terminate()


def run_agent(name: str, task: object, env: dict[str, str]) -> tuple[int, str]:
    """Run an example agent to its end; its exit status and stdout."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "agents" / name)],
        input="" if task is None else json.dumps(task),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        env={"PATH": "", **env},
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout
