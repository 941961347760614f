"""A support agent: summarises a ticket with a model, looks something up on the web, and updates the ticket.

An ordinary program: the `openai` package, the standard library, and the environment that a run gets. It
reads its task as JSON on stdin, ``{"ticket": {"id", "subject", "text"}, "page", "model"}``, tells what
happened on stdout, and prints its result there as the last JSON value. Exit status 1 when the ticket was
not updated.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

from openai import OpenAI

ANSWER_BYTES_MAX = 1024 * 1024
ACTION_TIMEOUT_S = 60
EXAMPLE_TASK = {
    "ticket": {
        "id": "zd_99102",
        "subject": "Charged twice in April",
        "text": "I was charged twice for my subscription in April. Please refund one of the two payments.",
    },
    "page": "http://example.com/refund-policy",
    "model": "example-small",
}


def main() -> int:
    """Work on one ticket; the exit status."""
    task = read_task()
    ticket = task["ticket"]
    summary = summarise(task["model"], ticket)
    print(f"summary: {summary}")

    fetch = act("web.fetch", {"system": "web", "record_id": task["page"]}, {"url": task["page"]})
    print(f"web.fetch {task['page']}: {told(fetch)}")

    comment = f"Summary: {summary}"
    target = {"system": "zendesk", "record_id": ticket["id"]}
    update = act("ticket.update", target, {"status": "pending", "comment": comment})
    print(f"ticket.update {ticket['id']}: {told(update)}")

    print(json.dumps({"ticket": ticket["id"], "summary": summary, "fetch": fetch, "update": update}))
    return 0 if update["verdict"] == "allowed" else 1


def read_task() -> dict[str, Any]:
    """The task on stdin over the example's; an empty stdin is the example."""
    given = "" if sys.stdin.isatty() else sys.stdin.read()
    task = json.loads(given) if given.strip() else None
    return {**EXAMPLE_TASK, **(task or {})}


def summarise(model: str, ticket: dict[str, str]) -> str:
    """The model's summary of a ticket, streamed."""
    question = f"{ticket.get('subject', '')}. {ticket.get('text', '')}"
    with OpenAI() as client:
        stream = client.chat.completions.create(
            model=model,
            messages=[
                {"role": "system", "content": "You summarise support tickets in one sentence."},
                {"role": "user", "content": question},
            ],
            max_tokens=64,
            stream=True,
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    return "".join(pieces).strip()


def act(name: str, target: dict[str, str], given: dict[str, Any]) -> dict[str, Any]:
    """Ask the platform for one action; its verdict, whatever it is."""
    origin = os.environ["OPENAI_BASE_URL"].rstrip("/").removesuffix("/v1")
    body = {"requested_action": name, "target": target, "input": given}
    request = urllib.request.Request(  # noqa: S310 - the run's own door
        f"{origin}/api/v1/actions",
        data=json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {os.environ['TENANTRY_RUN_TOKEN']}",
            "Content-Type": "application/json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=ACTION_TIMEOUT_S) as answer:  # noqa: S310 - likewise
            return verdict_of(answer.status, answer.read(ANSWER_BYTES_MAX))
    except urllib.error.HTTPError as refusal:
        with refusal:
            return verdict_of(refusal.code, refusal.read(ANSWER_BYTES_MAX))


def verdict_of(status: int, body: bytes) -> dict[str, Any]:
    """The verdict in an answer; one without a verdict is an ``error``."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or "verdict" not in answer:
        return {"verdict": "error", "status": status}
    kept = ("verdict", "action_id", "title", "detail", "policies", "output")
    return {name: answer[name] for name in kept if name in answer}


def told(answer: dict[str, Any]) -> str:
    """A verdict as a sentence's end."""
    policies = answer.get("policies")
    by = f" by {', '.join(map(str, policies))}" if policies else ""
    detail = f" ({answer['detail']})" if answer.get("detail") else ""
    return f"{answer['verdict']}{by}{detail}"


if __name__ == "__main__":
    sys.exit(main())
