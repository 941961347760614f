"""An agent's calls to a running platform."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Run:
    """An open run and its token."""

    tenant: str
    run_id: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass(frozen=True)
class Reply:
    """An answer, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def verdict(self) -> str | None:
        return self.headers.get("tenantry-verdict")

    def json(self) -> Any:  # noqa: ANN401 - whatever was answered
        return json.loads(self.body)


async def request(
    client: aiohttp.ClientSession,
    method: str,
    path: str,
    **options: Any,  # noqa: ANN401 - aiohttp's own
) -> Reply:
    async with client.request(method, path, **options) as answer:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Reply(answer.status, headers, await answer.read())


async def open_run(client: aiohttp.ClientSession, key: str, tenant: str, **options: Any) -> Run:  # noqa: ANN401
    body = {"agent_id": "helper", "tenant_id": tenant, "external": True, **options}
    reply = await request(
        client, "POST", "/api/v1/runs", json=body, headers={"Authorization": f"Bearer {key}"}
    )
    assert reply.status == 201, reply.body
    opened = reply.json()
    return Run(tenant, opened["run_id"], opened["token"])


def chat_body(text: str, *, user: str, stream: bool = False, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    """A chat completion; `user` is what the provider's books know the caller by."""
    body: dict[str, Any] = {
        "model": "example-small",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 64,
        "user": user,
        **fields,
    }
    if stream:
        body |= {"stream": True}
    return body


async def chat(client: aiohttp.ClientSession, run: Run, text: str, **fields: Any) -> Reply:  # noqa: ANN401
    """One whole answer."""
    body = chat_body(text, user=fields.pop("user", run.tenant), **fields)
    return await request(client, "POST", "/v1/chat/completions", json=body, headers=run.headers)


async def act(
    client: aiohttp.ClientSession,
    run: Run,
    action: str,
    *,
    system: str = "zendesk",
    record: str = "zd_99102",
    value: dict[str, Any] | None = None,
    key: str | None = None,
) -> Reply:
    """One action as plain JSON."""
    body = {
        "requested_action": action,
        "target": {"system": system, "record_id": record},
        "input": value or {},
    }
    headers = {**run.headers, **({"Idempotency-Key": key} if key else {})}
    return await request(client, "POST", "/api/v1/actions", json=body, headers=headers)
