"""``tenantry demo``: the worked fleet, end to end, with other people's services on loopback.

services -> platform -> fleet -> borealis (policy) -> cirrus alone -> dunes and cirrus (budget, neighbours)
         -> dunes killed and revived (switch) -> books against ledger -> gone
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final

import msgspec
import typer

from tenantry.cli.demo_account import Account
from tenantry.cli.demo_world import (
    Cli,
    Service,
    command_line,
    find_examples,
    own_folder,
    require_agents_packages,
)
from tenantry.cli.options import AsJson
from tenantry.cli.output import Output
from tenantry.core.clock import SystemClock
from tenantry.settings import agent_environment

TICKET: Final = "zd_99102"
TICKET_TASK: Final = {
    "ticket": {
        "id": TICKET,
        "subject": "Charged twice in April",
        "text": "I was charged twice for my subscription in April. Please refund one of the two payments.",
    },
    "model": "example-small",
}
CALLS: Final = 40
RUNAWAY_NICENESS: Final = 15
RUNAWAY_TASK: Final = {"model": "example-large", "prompt": "Are we there yet?", "max_tokens": 64}


def demo(
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the fleet up afterwards, until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the worked fleet: what was allowed, what was refused and why, and what the neighbours felt.

    Starts an embedded database, a platform, and three small services of other people; applies
    `examples/fleet.yaml`; runs the agents of three tenants by `tenantry run exec`; leaves nothing behind.
    """
    output = Output(as_json=as_json)
    account = Account(output)
    with _ending_as_with_ctrl_c(), own_folder() as folder, contextlib.ExitStack() as stack:
        stage = Stage(folder, stack, account)
        stage.open()
        facts = stage.play()
        if as_json:
            output.json(facts)
        if keep:
            account.kept(stage.platform.url, stage.data)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    account.end(stage.platform.url)


class Stage:
    """Everything that the demo started, and the acts played on it."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, account: Account) -> None:
        self.data = folder / "data"
        self._folder = folder
        self._stack = stack
        self._account = account
        self._examples = find_examples()
        self._clock = SystemClock()
        self._secrets: dict[str, str] = {}
        self.model = self.tickets = self.web = self.platform = _none()
        self.cli = Cli(self.data, {})

    def open(self) -> None:
        """Start services and platform, apply the fleet."""
        require_agents_packages()
        account = self._account
        with account.doing("starting a model provider, a ticket service and a web site"):
            self._start_services()
        with account.doing("starting PostgreSQL, a gateway and control"):
            self.platform = self._start(
                "platform",
                [
                    *command_line(),
                    "up",
                    "--data",
                    str(self.data),
                    "--port",
                    "0",
                    "--ephemeral",
                    "--exit-with-stdin",
                ],
            )
        self.cli = Cli(self.data, self._variables())
        with account.doing("applying examples/fleet.yaml"):
            applied = self.cli.run("apply", str(self._examples / "fleet.yaml"), "--json")
        account.fleet(self.platform.url, applied)

    def play(self) -> dict[str, Any]:
        """All acts; the facts as `--json` shows them."""
        account = self._account
        with account.doing("borealis: an agent works on a ticket"):
            borealis = self._borealis()
        account.borealis(borealis)
        with account.doing("cirrus: a quiet agent, alone"):
            alone = self._exec("cirrus", "steady", "steady.py", {"calls": CALLS})
        with account.doing("dunes: a runaway agent; cirrus beside it"):
            runaway, beside = self._neighbours()
        with account.doing("comparing the ledger with the provider's own books"):
            dunes = {**runaway["result"], **self._books_against_ledger()}
        account.dunes(dunes)
        cirrus = {"alone": alone["result"], "beside": beside["result"]}
        account.cirrus(cirrus)
        with account.doing("the operator kills dunes"):
            switch = self._kill()
        account.switch(switch)
        return {
            "url": self.platform.url,
            "borealis": borealis,
            "dunes": dunes,
            "cirrus": cirrus,
            "switch": switch,
        }

    def _start_services(self) -> None:
        for name in ("model", "tickets_borealis"):
            self._secrets[name] = f"example-{name.replace('_', '-')}-{self._clock.random_bytes(16).hex()}"
        python = sys.executable
        self.model = self._start(
            "model provider", [python, self._example("model_server.py"), "--key", self._secrets["model"]]
        )
        self.tickets = self._start(
            "ticket service",
            [
                python,
                self._example("ticket_service.py"),
                "--credential",
                f"borealis={self._secrets['tickets_borealis']}",
                "--ticket",
                TICKET,
            ],
        )
        self.web = self._start("web site", [python, self._example("web_site.py")])

    def _start(self, name: str, command: list[str]) -> Service:
        if name != "platform":
            command = [*command, "--exit-with-stdin"]
        log = self._folder / f"{name.replace(' ', '-')}.log"
        service = Service.start(name, command, log, agent_environment())
        self._stack.callback(service.stop)
        return service

    def _variables(self) -> Mapping[str, str]:
        """What examples/fleet.yaml asks of its environment."""
        return {
            "EXAMPLE_MODEL_URL": self.model.url,
            "EXAMPLE_MODEL_KEY": self._secrets["model"],
            "EXAMPLE_TICKETS_URL": self.tickets.url,
            "EXAMPLE_TICKETS_TOKEN_BOREALIS": self._secrets["tickets_borealis"],
            "EXAMPLE_WEB_URL": self.web.url,
        }

    def _example(self, name: str) -> str:
        return str(self._examples / name)

    def _agent(self, tenant: str, agent: str, script: str, task: Mapping[str, Any]) -> list[str]:
        given = msgspec.json.encode(task).decode()
        return [
            "run",
            "exec",
            "--json",
            "--tenant",
            tenant,
            "--agent",
            agent,
            "--input",
            given,
            "--",
            sys.executable,
            self._example(f"agents/{script}"),
        ]

    def _exec(self, tenant: str, agent: str, script: str, task: Mapping[str, Any]) -> dict[str, Any]:
        return self.cli.run(*self._agent(tenant, agent, script, task))

    def _borealis(self) -> dict[str, Any]:
        task = {**TICKET_TASK, "page": f"{self.web.url}/refund-policy"}
        ran = self._exec("borealis", "support_triage_v4", "support_triage.py", task)
        entries = [entry for entry in self.tickets.books()["entries"] if entry.get("effect")]
        return {
            **ran["result"],
            "run_id": ran["run_id"],
            "ticket_service_saw": [entry["credential"] for entry in entries],
            "web_site_requests": len(self.web.books()["entries"]),
        }

    def _neighbours(self) -> tuple[dict[str, Any], dict[str, Any]]:
        # What is compared is the platform, so the runaway's own program does not crowd out its neighbour's.
        command = self._agent("dunes", "runaway", "runaway.py", RUNAWAY_TASK)
        runaway = self.cli.start(*command, niceness=RUNAWAY_NICENESS)
        try:
            beside = self._exec("cirrus", "steady", "steady.py", {"calls": CALLS})
        finally:
            answer = self.cli.wait(runaway)
        return answer, beside

    def _books_against_ledger(self) -> dict[str, Any]:
        scopes = self.cli.run("quota", "show", "--tenant", "dunes", "--json")["scopes"]
        whole = next(scope for scope in scopes if scope["level"] == "tenant")
        tokens = next(m for m in whole["meters"] if m["meter"]["name"] == "model_tokens_day")
        billed = [e for e in self.model.books()["entries"] if e["model"] == RUNAWAY_TASK["model"]]
        return {
            "limit": tokens["limit"],
            "ledger_tokens": tokens["used"],
            "ledger_reserved": tokens["reserved"],
            "books_tokens": sum(e["prompt_tokens"] + e["completion_tokens"] for e in billed),
            "books_calls": len(billed),
        }

    def _kill(self) -> dict[str, Any]:
        killed = self.cli.run("tenant", "kill", "dunes", "--reason", "runaway agent", "--json")
        command = self._agent("dunes", "runaway", "runaway.py", RUNAWAY_TASK)
        refused = self.cli.run(*command, may_fail=True)
        revived = self.cli.run("tenant", "revive", "dunes", "--reason", "fixed", "--json")
        return {"kill": killed, "refusal": refused.get("error"), "revive": revived}


@contextlib.contextmanager
def _ending_as_with_ctrl_c() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does: in order."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _none() -> Any:  # noqa: ANN401 - stands in until `open` has started the real one
    return None
