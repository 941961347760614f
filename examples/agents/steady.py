"""A well-behaved agent: a number of small model calls, one after the other, and how long each took.

An ordinary program with the `openai` package and no more than the environment that a run gets. Its task on
stdin may say ``{"calls", "model", "prompt"}``. It prints, as JSON, ``{"calls", "failed", "p50_ms",
"p99_ms", "max_ms"}``; exit status 1 when a call failed.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from openai import OpenAI, OpenAIError

CALLS_MAX = 10_000


def main() -> int:
    """Make the calls; the exit status."""
    task = read_task()
    calls = min(int(task.get("calls", 20)), CALLS_MAX)
    took_ms: list[float] = []
    failed = 0
    with OpenAI() as client:
        for _ in range(calls):
            started = time.perf_counter()
            try:
                client.chat.completions.create(
                    model=task.get("model", "example-small"),
                    messages=[{"role": "user", "content": task.get("prompt", "Good morning.")}],
                    max_tokens=8,
                )
            except OpenAIError as error:
                failed += 1
                print(f"a call failed: {error}")
                continue
            took_ms.append((time.perf_counter() - started) * 1000)
    took_ms.sort()
    figures = {"p50_ms": rank(took_ms, 50), "p99_ms": rank(took_ms, 99), "max_ms": rank(took_ms, 100)}
    print(json.dumps({"calls": calls, "failed": failed, **figures}))
    return 1 if failed else 0


def read_task() -> dict[str, Any]:
    """The task on stdin; an empty stdin is an empty task."""
    given = "" if sys.stdin.isatty() else sys.stdin.read()
    return (json.loads(given) if given.strip() else None) or {}


def rank(ordered: list[float], percent: int) -> float | None:
    """The nearest-rank percentile of sorted milliseconds; None of nothing."""
    if not ordered:
        return None
    return round(ordered[max(0, -(-percent * len(ordered) // 100) - 1)], 2)


if __name__ == "__main__":
    sys.exit(main())
