"""Bad input, from outside to the innermost: a clear refusal each, nothing lost, memory bounded."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from joserfc import jws
from joserfc.jwk import OKPKey
from tests.support.gateway import RawAnswer, read_answer
from tests.support.platform import Platform
from tests.support.platform_client import Reply, Run, act, chat, chat_body, request

HUGE_BYTES = 100 * 1024 * 1024
PIECE = b" " * 65_536
RSS_GROWTH_KIB_MAX = 96 * 1024


@pytest.fixture
async def run(platform: Platform, client: aiohttp.ClientSession) -> Run:
    return await platform.open_run(client, await platform.add_tenant("input"))


@pytest.fixture(autouse=True)
async def _still_serves(platform: Platform, client: aiohttp.ClientSession, run: Run) -> AsyncIterator[None]:
    """Whatever a test sent: afterwards a good call passes, and nothing else had reached the provider."""
    before = len(platform.model.books()["entries"])
    gateways = platform.gateway_pids()
    yield
    assert len(platform.model.books()["entries"]) == before
    assert (await chat(client, run, "!tokens=1")).status == 200
    assert platform.gateway_pids() == gateways


def _rss_kib(pids: list[int]) -> int:
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 for pid in pids)


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _claims(token: str) -> dict[str, Any]:
    middle = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    return claims


def _head(token: str) -> dict[str, Any]:
    first = token.split(".", maxsplit=1)[0]
    head: dict[str, Any] = json.loads(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)))
    return head


def _signed(key: OKPKey, head: dict[str, Any], claims: dict[str, Any]) -> str:
    with warnings.catch_warnings():
        # The library calls the name of the algorithm deprecated; run tokens carry it.
        warnings.simplefilter("ignore")
        return jws.serialize_compact(head, json.dumps(claims).encode(), key, algorithms=["EdDSA"])


def _forgeries(platform: Platform, run: Run, other: Run) -> dict[str, str]:
    head, claims = _head(run.token), _claims(run.token)
    own = OKPKey.import_key(json.loads((platform.data / "run-token.jwk").read_text()))
    foreign = OKPKey.generate_key("Ed25519")
    parts, others = run.token.split("."), other.token.split(".")
    stranger = {
        **claims,
        **{name: _claims(other.token)[name] for name in claims if name not in {"exp", "iat"}},
    }
    return {
        "expired": _signed(own, head, {**claims, "iat": 1, "exp": int(time.time()) - 1}),
        "foreign signature": _signed(foreign, head, claims),
        "no algorithm": f"{_part({**head, 'alg': 'none'})}.{parts[1]}.",
        "no algorithm, old signature": f"{_part({**head, 'alg': 'none'})}.{parts[1]}.{parts[2]}",
        "another type": _signed(own, {**head, "typ": "JWT"}, claims),
        "another's claims": f"{parts[0]}.{others[1]}.{parts[2]}",
        "another's claims, foreign signature": _signed(foreign, head, stranger),
        "cut": run.token[:-4],
        "an operator's key": platform.operator_key,
        "empty parts": "..",
        "huge": "a" * 7_000,
    }


async def test_forged_tokens_are_refused_alike(
    platform: Platform, client: aiohttp.ClientSession, run: Run
) -> None:
    other = await platform.open_run(client, await platform.add_tenant("other"))
    bodies = set()
    for name, token in _forgeries(platform, run, other).items():
        forged = Run(run.tenant, run.run_id, token)
        for reply in (await chat(client, forged, "!tokens=1"), await act(client, forged, "ticket.update")):
            assert reply.status in {401, 429}, f"{name}: {reply}"
            if reply.status == 401:
                assert reply.headers["www-authenticate"] == "Bearer"
                bodies.add(reply.json()["title"])
    assert bodies == {"no valid credential"}
    # The limiter of this address, and nobody's meter, has counted these; a good token passes all the same.
    assert (await request(client, "GET", "/v1/models", headers=run.headers)).status == 200


async def test_a_run_that_has_ended_is_nobodys(
    client: aiohttp.ClientSession, run: Run, platform: Platform
) -> None:
    ended = await platform.open_run(client, run.tenant)
    finish = f"/api/v1/runs/{ended.run_id}/finish"
    assert (
        await request(client, "POST", finish, json={"state": "succeeded"}, headers=ended.headers)
    ).status == 200
    assert (await chat(client, ended, "!tokens=1")).status == 401


BAD_BODIES: dict[str, tuple[bytes, int, str | None]] = {
    "empty": (b"", 400, None),
    "no json": (b"{", 400, None),
    "two values": (b"{}{}", 400, None),
    "not utf-8": (b'{"model": "\xff"}', 400, None),
    "a list": (b"[]", 400, "$"),
    "no messages": (b'{"model": "example-small"}', 400, "$"),
    "nul": (b'{"model": "example-small\\u0000", "messages": []}', 400, "$.model"),
    "lone surrogate": (b'{"model": "example-small", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "$"),
    "negative limit": (b'{"model": "example-small", "messages": [], "max_tokens": -1}', 400, "$.max_tokens"),
    "n": (b'{"model": "example-small", "messages": [], "n": 1000000}', 400, "$.n"),
    "deep": (b'{"model": "example-small", "messages": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400, None),
    "unknown model": (b'{"model": "nobody", "messages": []}', 404, None),
    "model of another shape": (b'{"model": 7, "messages": []}', 400, "$.model"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD_BODIES))
async def test_a_bad_body_is_refused_with_its_path(
    client: aiohttp.ClientSession, run: Run, name: str
) -> None:
    body, status, path = BAD_BODIES[name]
    headers = {**run.headers, "Content-Type": "application/json"}
    reply = await request(client, "POST", "/v1/chat/completions", data=body, headers=headers)
    assert reply.status == status, reply.body
    told = reply.json()
    assert told["error"]["message"] and told["title"]
    if path is not None:
        assert told["path"].startswith(path), told


BAD_ACTIONS: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown action": ({"requested_action": "nothing.here"}, 422, "$.requested_action"),
    "unknown field": ({"extra": 1}, 400, "$"),
    "no target": ({"target": None}, 400, "$.target"),
    "input of another shape": ({"input": [1]}, 400, "$.input"),
    "nul": ({"input": {"comment": "\0"}}, 400, "$.input"),
    "foreign system": ({"target": {"system": "web", "record_id": "x"}}, 422, "$.target.system"),
    "timeout": ({"timeout_ms": 0}, 400, "$.timeout_ms"),
}


@pytest.mark.parametrize("name", list(BAD_ACTIONS))
async def test_a_bad_action_is_refused_with_its_path(
    platform: Platform, client: aiohttp.ClientSession, name: str
) -> None:
    await platform.add_ticket_tenants()
    changes, status, path = BAD_ACTIONS[name]
    desk = await platform.open_run(client, "aurora")
    body = {
        "requested_action": "ticket.update",
        "target": {"system": "zendesk", "record_id": "zd_99102"},
        "input": {},
        **changes,
    }
    reply = await request(client, "POST", "/api/v1/actions", json=body, headers=desk.headers)
    assert reply.status == status, reply.body
    assert reply.json()["path"].startswith(path), reply.json()


async def test_a_record_that_is_a_path_is_denied_and_not_blamed_on_the_upstream(
    platform: Platform, client: aiohttp.ClientSession
) -> None:
    await platform.add_ticket_tenants()
    desk = await platform.open_run(client, "aurora")
    before = len(platform.tickets.books()["entries"])
    for record in ("../../admin", "..%2f..", ".", "a/../b", ""):
        reply = await act(client, desk, "ticket.update", record=record)
        assert (reply.status, reply.verdict) == (403, "denied"), (record, reply)
        assert reply.headers["x-should-retry"] == "false"
    assert len(platform.tickets.books()["entries"]) == before


async def _raw(platform: Platform, head: bytes, piece: bytes = b"", pieces: int = 0) -> RawAnswer | None:
    """Send a head and so many pieces, reading meanwhile; the answer, None for a connection that was cut before one."""
    parts = urlsplit(platform.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    reading = asyncio.create_task(read_answer(reader))
    try:
        writer.write(head)
        for _ in range(pieces):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    try:
        return await reading
    except (OSError, IndexError, ValueError, asyncio.IncompleteReadError):
        return None
    finally:
        writer.close()


def _lines(run: Run, *extra: str, host: str = "127.0.0.1") -> bytes:
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: {host}",
        f"Authorization: Bearer {run.token}",
        *extra,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def test_hundred_megabytes_are_refused_and_not_kept(platform: Platform, run: Run) -> None:
    gateways = platform.gateway_pids()
    before = _rss_kib(gateways)
    declared = _lines(run, f"Content-Length: {HUGE_BYTES}")
    pieces = HUGE_BYTES // len(PIECE)
    answers = await asyncio.gather(*(_raw(platform, declared, PIECE, pieces) for _ in range(8)))
    assert {answer.status for answer in answers if answer is not None} == {413}
    chunk = f"{len(PIECE):x}\r\n".encode() + PIECE + b"\r\n"
    chunked = _lines(run, "Transfer-Encoding: chunked") + b"2\r\n{}\r\n"
    several = await asyncio.gather(*(_raw(platform, chunked, chunk, pieces) for _ in range(8)))
    assert {answer.status for answer in several if answer is not None} <= {413, 429}
    assert any(answer is not None for answer in [*answers, *several]), "somebody could read why"
    grown = _rss_kib(gateways) - before
    assert grown < RSS_GROWTH_KIB_MAX, f"{grown} KiB"
    print(f"\n16 bodies of 100 MB: gateways grew by {grown} KiB in all")


async def test_foreign_hosts_and_origins_are_refused(platform: Platform, run: Run) -> None:
    body = json.dumps(chat_body("!tokens=1", user=run.tenant))
    length = f"Content-Length: {len(body)}"
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::1"):
        answer = await _raw(platform, _lines(run, length, host=host) + body.encode())
        assert answer is None or answer.status in {400, 421}, (host, answer)
    answer = await _raw(platform, _lines(run, length, "Origin: https://evil.example") + body.encode())
    assert answer is not None and answer.status == 403
    doubled = await _raw(platform, _lines(run, length, "Host: evil.example") + body.encode())
    assert doubled is None or doubled.status == 400
    control = await _raw(platform, b"GET /api/v1/tenants HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert control is not None and control.status == 421


async def test_unknown_ids_of_people_are_not_found(platform: Platform, client: aiohttp.ClientSession) -> None:
    key = {"Authorization": f"Bearer {platform.operator_key}"}

    async def open_one(**changes: object) -> Reply:
        body = {"agent_id": "helper", "tenant_id": "input_none", "external": True, **changes}
        return await request(client, "POST", "/api/v1/runs", json=body, headers=key)

    assert (await open_one()).status == 404
    for bad in ("A", "a" * 64, "x\0", "../etc", "ä", "", "-operators"):
        assert (await open_one(tenant_id=bad)).status == 400, bad
    assert (await open_one(agent_id="x" * 300)).status == 400
    assert (await open_one(deadline_ms=0)).status == 400
    assert (await open_one(nonsense=1)).status == 400
    for run_id in ("run_nobody", "%00", "%ff%fe", "x" * 500, "..%2f.."):
        reply = await request(
            client, "POST", f"/api/v1/runs/{run_id}/finish", json={"state": "failed"}, headers=key
        )
        assert reply.status in {400, 404}, (run_id, reply)
