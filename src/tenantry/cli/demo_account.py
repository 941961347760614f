"""What the demo says: one account for people, with colours and progress; silent with ``--json``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.text import Text

from tenantry.cli.output import STYLES, Output, Tone, clean

MARKS: Final[Mapping[str, tuple[str, Tone]]] = {"allowed": ("✓", "good")}
REFUSED: Final[tuple[str, Tone]] = ("✗", "bad")
SUMMARY_CHARACTERS_MAX: Final = 60


class Account:
    """Tells what happened, act by act."""

    def __init__(self, output: Output) -> None:
        self._output = output

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Show that something is under way."""
        console = self._output.err
        if console.is_terminal:
            with console.status(Text(what, style="dim")):
                yield
        else:
            self._output.note(f"... {what}")
            yield

    def fleet(self, url: str, applied: Mapping[str, Any]) -> None:
        """The platform stands and the fleet is declared."""
        self._head("Tenantry: three customers on one platform")
        self._say(f"platform at {url}, on an embedded PostgreSQL; {_count(applied)} from examples/fleet.yaml")

    def borealis(self, facts: Mapping[str, Any]) -> None:
        """What policy did for borealis."""
        self._head("borealis: policy forbids all external web access")
        self._say("an unmodified agent (openai SDK) works on a ticket:")
        self._verdict("model.call", "allowed", f"summary: {str(facts['summary'])[:SUMMARY_CHARACTERS_MAX]}")
        self._verdict("web.fetch", *_told(facts["fetch"]))
        self._verdict("ticket.update", *_told(facts["update"]), suffix=f"zendesk / {facts['ticket']}")
        saw = ", ".join(facts["ticket_service_saw"]) or "nobody"
        self._check(
            saw == "borealis",
            f"the ticket service saw the credential of: {saw}. The agent never held it: the broker injected it.",
        )
        self._check(
            facts["web_site_requests"] == 0,
            f"requests that reached the web site: {facts['web_site_requests']}",
        )

    def dunes(self, facts: Mapping[str, Any]) -> None:
        """What the budget did for dunes."""
        self._head("dunes: a runaway agent that asks the model for ever")
        self._say(f"made {facts['calls']} calls, then its own budget stopped it:")
        detail = str(facts.get("detail") or "")
        self._verdict("model.call", str(facts["stopped_by"]), detail.removeprefix("Error code: 429 - "))
        equal = facts["ledger_tokens"] == facts["books_tokens"]
        self._check(
            equal,
            f"tokens in the ledger {facts['ledger_tokens']:,}, on the provider's own books "
            f"{facts['books_tokens']:,} ({facts['books_calls']} calls); limit {facts['limit']:,}",
        )

    def cirrus(self, facts: Mapping[str, Any]) -> None:
        """What the neighbour felt."""
        self._head("cirrus: a quiet customer beside the runaway")
        for word, name in (("alone", "alone"), ("beside", "beside dunes")):
            taken = facts[word]
            self._say(
                f"{name:<13} p50 {taken['p50_ms']:>7.1f} ms   p99 {taken['p99_ms']:>7.1f} ms   "
                f"{taken['calls']} calls, {taken['failed']} failed"
            )
        self._say("(agents, provider and platform share this machine; the runaway's program is niced)", "dim")

    def switch(self, facts: Mapping[str, Any]) -> None:
        """What a kill did."""
        self._head("the operator's switch: tenant kill dunes")
        kill = facts["kill"]
        confirmed = kill.get("confirmed_at") is not None
        self._check(confirmed, f"committed {kill.get('requested_at')}, confirmed {kill.get('confirmed_at')}")
        refusal = facts["refusal"] or {}
        self._verdict("run.start", str(refusal.get("verdict")), str(refusal.get("detail") or ""))
        self._say("revived: dunes may run again; the others were never touched")

    def kept(self, url: str, data: Path) -> None:
        """The fleet stays up: where it is."""
        self._head("the fleet is up")
        self._say(f"the API is at {url}/api/v1 (its description: {url}/api/openapi.json)")
        self._say(f"export TENANTRY_DATA={data}   # then, in another terminal: tenantry tenant list")
        self._say("Ctrl-C ends it, and nothing is left.", "dim")

    def end(self, url: str) -> None:
        """All is gone; where to go on."""
        self._head("done: nothing is left running or on disk")
        self._say(f"the API was at {url}/api/v1; `tenantry demo --keep` holds it up")
        self._say("docs/tutorial.md starts from nothing; docs/guides/operate.md is for 3 a.m.", "dim")

    def _head(self, text: str) -> None:
        if not self._output.as_json:
            self._output.line("")
            self._output.line(text, "head")

    def _say(self, text: str, tone: Tone = "plain") -> None:
        if not self._output.as_json:
            self._output.line(f"  {text}", tone)

    def _check(self, holds: bool, text: str) -> None:  # noqa: FBT001 - a truth and its words
        mark, tone = MARKS["allowed"] if holds else REFUSED
        self._line(((f"  {mark} ", tone), (text, "plain")))

    def _verdict(self, action: str, verdict: str, detail: str, *, suffix: str = "") -> None:
        mark, tone = MARKS.get(verdict, REFUSED)
        rest = "  ".join(filter(None, (detail, suffix)))
        self._line(((f"  {mark} {action:<15}", tone), (f"{verdict:<16}", tone), (rest, "plain")))

    def _line(self, parts: Sequence[tuple[str, Tone]]) -> None:
        if self._output.as_json:
            return
        text = Text()
        for words, tone in parts:
            text.append(clean(words), style=STYLES[tone])
        self._output.out.print(text)


def _told(answer: Mapping[str, Any]) -> tuple[str, str]:
    policies = answer.get("policies")
    by = f"by {', '.join(map(str, policies))}" if policies else ""
    return str(answer["verdict"]), by


def _count(applied: Mapping[str, Any]) -> str:
    changes = applied.get("changes")
    return f"{len(changes)} declarations" if isinstance(changes, list) else "the fleet"
