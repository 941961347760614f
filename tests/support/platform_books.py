"""The upstreams' books against the journal: what was billed, and whether each effect was intended first."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import msgspec

from tenantry.gateway.entrance import digest
from tenantry.gateway.openai import MODEL_CALL
from tenantry.gateway.openai_request import parse_chat
from tenantry.registry.specs import ModelSpec
from tests.support.platform import Platform
from tests.support.platform_client import chat_body
from tests.support.platform_fleet import platform_document
from tests.support.platform_probe import Probe

MODEL = "example-small"


def model_entries(platform: Platform, prefix: str) -> list[dict[str, Any]]:
    """What the provider's books have of a tenant, whose ``user`` begins with its name."""
    return [
        entry
        for entry in platform.model.books()["entries"]
        if (entry.get("user") or "").partition("#")[0] == prefix
    ]


def bill(entries: list[dict[str, Any]]) -> int:
    """Tokens that the provider charges."""
    return sum(entry.get("prompt_tokens", 0) + entry.get("completion_tokens", 0) for entry in entries)


def model_digest(text: str, **fields: Any) -> bytes:  # noqa: ANN401 - the request's own fields
    """The digest under which the journal knows a chat completion: made as the door makes it."""
    spec = msgspec.convert(platform_document("http://provider.test/v1")["models"][MODEL], ModelSpec)
    canonical, _ = parse_chat(json.dumps(chat_body(text, **fields)).encode(), 8).prepare(spec, MODEL)
    return digest(MODEL_CALL, MODEL.encode(), canonical)


async def intents(probe: Probe, tenant: str) -> dict[bytes, dt.datetime]:
    """When each input was first intended (journaled as begun), by digest; refusals are none."""
    found = await probe.rows(
        "select input_sha256, min(begun_at) as begun_at from tenantry.journal "
        "where tenant_id = $1 and kind <> 'run' and state not in ('refused', 'shed', 'admin') group by 1",
        tenant,
    )
    return {row["input_sha256"]: row["begun_at"] for row in found}


async def unintended(
    probe: Probe, tenant: str, entries: list[dict[str, Any]], digests: dict[str, bytes]
) -> list[str]:
    """Effects that the journal did not intend before they began; `digests` is by the books' own mark."""
    known = await intents(probe, tenant)
    wrong = []
    for entry in entries:
        mark = entry.get("user") or entry["path"]
        begun_at = known.get(digests[mark])
        if begun_at is None or begun_at > dt.datetime.fromisoformat(entry["started_at"]):
            wrong.append(mark)
    return wrong


async def unintended_updates(probe: Probe, tenant: str, entries: list[dict[str, Any]]) -> list[str]:
    """The same for calls that were made without a key of the caller's: the desk is then told the action's id."""
    found = await probe.rows(
        "select action_id, begun_at from tenantry.journal "
        "where tenant_id = $1 and action_name = 'ticket.update' and state in ('begun', 'settled', 'held')",
        tenant,
    )
    known = {row["action_id"]: row["begun_at"] for row in found}
    wrong = []
    for entry in entries:
        action_id = entry["headers"].get("idempotency-key", "")
        begun_at = known.get(action_id)
        if begun_at is None or begun_at > dt.datetime.fromisoformat(entry["started_at"]):
            wrong.append(action_id)
    return wrong
