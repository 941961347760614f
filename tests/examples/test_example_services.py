"""The ticket service and the web site: whose credential came, what it did, and how they misbehave."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.examples.servers import EXAMPLES, Server, running

RunServer = Callable[..., Server]


@pytest.fixture(scope="module")
def ticket_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    books = tmp_path_factory.mktemp("books") / "tickets.jsonl"
    owners = ("borealis=zd-token-borealis-0001", "dunes=zd-token-dunes-00000002")
    credentials = [word for owner in owners for word in ("--credential", owner)]
    with running("ticket_service.py", books, "--honour-idempotency-key", *credentials) as server:
        yield server


@pytest.fixture
def tickets(ticket_service: Server) -> Server:
    ticket_service.rules()
    return ticket_service


BOREALIS = {"authorization": "Bearer zd-token-borealis-0001"}
TICKET = "/api/v2/tickets/zd_99102"


class TestTickets:
    def test_life_of_a_ticket(self, tickets: Server) -> None:
        created = tickets.call("POST", "/api/v2/tickets", {"ticket": {"subject": "Twice"}}, BOREALIS)
        assert created.status == 201
        path = f"/api/v2/tickets/{created.json()['ticket']['id']}"
        changed = tickets.call(
            "PUT", path, {"status": "solved", "comment": {"body": "done"}}, BOREALIS
        ).json()
        ticket = tickets.call("GET", path, headers=BOREALIS).json()["ticket"]
        assert ticket == changed["ticket"]
        assert (ticket["status"], ticket["comments"], ticket["subject"]) == ("solved", ["done"], "Twice")
        assert tickets.call("DELETE", path, headers=BOREALIS).status == 200
        assert tickets.call("GET", path, headers=BOREALIS).status == 404
        effects = [entry["effect"] for entry in tickets.books()["entries"][-5:]]
        assert effects == ["created", "updated", None, "deleted", None]

    @pytest.mark.parametrize(
        ("scheme", "headers"),
        [
            ("bearer", BOREALIS),
            ("basic", {"authorization": "Basic " + base64.b64encode(b"me:zd-token-borealis-0001").decode()}),
            ("api_key", {"X-Api-Key": "zd-token-borealis-0001"}),
        ],
    )
    def test_the_books_say_whose_credential_came(
        self, tickets: Server, scheme: str, headers: dict[str, str]
    ) -> None:
        assert tickets.call("POST", TICKET, {"status": "open"}, headers).status == 200
        entry = tickets.last()
        assert (entry["credential"], entry["scheme"], entry["key_suffix"]) == ("borealis", scheme, "s-0001")
        assert "zd-token" not in tickets.books_file.read_text()

    @pytest.mark.parametrize("value", ["", "Bearer", "Bearer nobody", "Basic %%%", "Basic /w==", "Digest x"])
    def test_nobodys_credential_is_401_without_effect(self, tickets: Server, value: str) -> None:
        assert tickets.call("PUT", TICKET, {"status": "open"}, {"authorization": value}).status == 401
        assert (tickets.last()["credential"], tickets.last()["effect"]) == (None, None)

    def test_customers_do_not_meet(self, tickets: Server) -> None:
        tickets.call("PUT", TICKET, {"status": "closed"}, BOREALIS)
        other = tickets.call("GET", TICKET, headers={"x-api-key": "zd-token-dunes-00000002"}).json()
        assert other["ticket"]["status"] == "open"

    @pytest.mark.parametrize(
        ("path", "body", "status"),
        [
            ("/api/v2/tickets/../tickets", b"{}", 404),
            ("/api/v2/tickets/a%2Fb", b"{}", 404),
            ("/api/v2/tickets/%00", b"{}", 404),
            ("/api/v2/tickets/zd_99102%0A", b"{}", 404),
            ("/elsewhere/api/v2/tickets", b"{}", 404),
            ("/api/v2/tickets/nobody", b"{}", 404),
            (TICKET, b"{", 422),
            (TICKET, b"[]", 422),
            (TICKET, b'{"status": "sold"}', 422),
            (TICKET, b'{"comment": "\\ud800"}', 422),
            (TICKET, b'{"comment": "!fail=99"}', 422),
            (TICKET, b" " * (1024 * 1024 + 1), 413),
        ],
    )
    def test_bad_requests_have_no_effect(self, tickets: Server, path: str, body: bytes, status: int) -> None:
        assert tickets.call("PUT", path, body, BOREALIS).status == status
        assert tickets.last()["effect"] is None

    def test_one_idempotency_key_has_one_effect(self, tickets: Server) -> None:
        def update(number: int) -> int:
            body = {"comment": "one" if number % 2 else "two"}
            return tickets.call("PUT", TICKET, body, {**BOREALIS, "Idempotency-Key": "k-1"}).status

        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(update, range(32)))
        assert sorted(statuses) == [200] * 16 + [422] * 16
        entries = tickets.books()["entries"][-32:]
        assert [entry["effect"] for entry in entries].count("updated") == 1
        assert {entry["headers"]["idempotency-key"] for entry in entries} == {"k-1"}


class TestTicketFaults:
    def test_reset_after_the_effect_and_before_it(self, tickets: Server) -> None:
        for word, effect in (("!reset", "updated"), ("!reset_before", None)):
            with pytest.raises((ConnectionError, OSError)):
                tickets.call("PUT", TICKET, {"comment": word}, BOREALIS)
            assert tickets.last()["effect"] == effect

    def test_failures_and_redirects_come_before_the_effect(self, tickets: Server) -> None:
        tickets.rules(
            {"behaviour": {"fail": 503, "retry_after_ms": 1500}, "times": 1},
            {"behaviour": {"redirect": "http://127.0.0.1:1/", "redirect_status": 307}},
        )
        failed, moved = (tickets.call("PUT", TICKET, {"status": "open"}, BOREALIS) for _ in range(2))
        assert (failed.status, failed.headers["retry-after"]) == (503, "2")
        assert (moved.status, moved.headers["location"]) == (307, "http://127.0.0.1:1/")
        assert [entry["effect"] for entry in tickets.books()["entries"][-2:]] == [None, None]
        split = {"rules": [{"behaviour": {"redirect": "http://x/\r\nset-cookie: a=b"}}]}
        assert tickets.call("POST", "/control", split).status == 400

    def test_bodies_padded_slow_malformed_and_compressed(self, tickets: Server) -> None:
        def body_of(**behaviour: int) -> bytes:
            tickets.rules({"behaviour": behaviour})
            return tickets.call("GET", TICKET, headers=BOREALIS).body

        assert len(body_of(body_bytes=3_000_000)) == 3_000_000
        assert json.loads(body_of(slow_body_ms=40))
        assert b"\x00" in body_of(malformed=True)
        assert len(body_of(gzip_bomb_mib=64)) < 100_000

    @pytest.mark.parametrize("behaviour", [{"endless": True}, {"hang": True}, {"delay_ms": 60_000}])
    def test_what_does_not_end_ends_when_the_client_leaves(
        self, tickets: Server, behaviour: dict[str, Any]
    ) -> None:
        tickets.rules({"behaviour": behaviour})
        with socket.create_connection(tickets.address, timeout=10) as peer:
            peer.sendall(
                f"GET {TICKET} HTTP/1.1\r\nhost: x\r\nx-api-key: zd-token-borealis-0001\r\n\r\n".encode()
            )
            if "endless" in behaviour:
                peer.recv(1_000_000)
            else:
                while tickets.call("GET", "/books").json()["totals"]["open"] == 0:
                    pass
        assert tickets.last()["left_early"] is True


def test_the_web_site_notes_every_visitor(run_server: RunServer) -> None:
    site = run_server("web_site.py")
    page = site.call("GET", "/%3Cscript%3E")
    assert (page.status, b"<script>" in page.body) == (200, False)
    assert site.call("POST", "/").status == 405
    assert site.call("GET", "/?!fail=404").status == 404
    assert site.call("GET", "/?!fail=1").status == 400
    assert [entry["path"] for entry in site.books()["entries"]] == ["/<script>", "/", "/", "/"]


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--port", "-1"], 1, "cannot listen on port -1"),
        (["--port", "99999"], 1, "cannot listen on port 99999"),
        (["--books", "/"], 2, "--books"),
        (["--credential", "nobody"], 2, "OWNER=TOKEN"),
        (["--credential", "a=same", "--credential", "b=same"], 2, "each token one owner"),
    ],
)
def test_bad_options_are_told_in_a_line(options: list[str], status: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "ticket_service.py"), *options],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
