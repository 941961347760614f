"""An agent with a bug: it asks the model the same question for ever. Only its budget stops it.

An ordinary program with the `openai` package and no more than the environment that a run gets. Its task on
stdin may say ``{"model", "prompt", "max_tokens"}``. It prints, as JSON, how many calls it made and what
stopped it; exit status 0 when that was the budget.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from openai import APIStatusError, OpenAI

CALLS_MAX = 1000


def main() -> int:
    """Call the model until somebody says stop; the exit status."""
    task = read_task()
    calls = 0
    refusal: dict[str, Any] = {"stopped_by": "the example's own limit"}
    with OpenAI() as client:
        while calls < CALLS_MAX:
            try:
                client.chat.completions.create(
                    model=task.get("model", "example-small"),
                    messages=[{"role": "user", "content": task.get("prompt", "Are we there yet?")}],
                    max_tokens=task.get("max_tokens", 64),
                )
            except APIStatusError as error:
                refusal = refusal_of(error)
                break
            calls += 1
    print(f"made {calls} calls, then: {refusal['stopped_by']}")
    print(json.dumps({"calls": calls, **refusal}))
    return 0 if refusal["stopped_by"] == "budget_exceeded" else 1


def read_task() -> dict[str, Any]:
    """The task on stdin; an empty stdin is an empty task."""
    given = "" if sys.stdin.isatty() else sys.stdin.read()
    return (json.loads(given) if given.strip() else None) or {}


def refusal_of(error: APIStatusError) -> dict[str, Any]:
    """Who refused and why: the platform's verdict, or the status where there is none."""
    verdict = error.response.headers.get("Tenantry-Verdict")
    if verdict is None and isinstance(error.body, dict):
        verdict = error.body.get("verdict")
    return {"stopped_by": verdict or f"status {error.status_code}", "detail": error.message}


if __name__ == "__main__":
    sys.exit(main())
