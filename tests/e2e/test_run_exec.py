"""``tenantry run exec``: unmodified programs as runs, finished as they ended, whatever ends them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.platforms import COMMAND, EXAMPLES, Platform, clean_environment, run_cli
from tests.examples.servers import Server

PRINT_ENVIRONMENT = (
    "import json, os, sys; print(json.dumps({'env': dict(os.environ), 'in': sys.stdin.read()}))"
)


def exec_arguments(*command: str, agent: str = "steady", tenant: str = "cirrus") -> list[str]:
    return ["run", "exec", "--json", "--tenant", tenant, "--agent", agent, *command]


def shown(platform: Platform, tenant: str, run_id: str) -> dict[str, object]:
    done = platform.cli("run", "show", run_id, "--tenant", tenant, "--json")
    assert done.status == 0, done.err
    run: dict[str, object] = done.json()["run"]
    return run


def test_an_unmodified_agent_works_under_its_tenants_policy(
    platform: Platform, services: dict[str, Server]
) -> None:
    task = {"page": f"{services['web'].url}/refund-policy"}
    done = platform.cli(
        *exec_arguments("--input", json.dumps(task), tenant="borealis", agent="support_triage_v4"),
        "--",
        sys.executable,
        str(EXAMPLES / "agents" / "support_triage.py"),
    )
    assert done.status == 0, done.err
    ran = done.json()
    assert ran["state"] == "succeeded"
    result = ran["result"]
    assert result["fetch"]["verdict"] == "denied"
    assert any("no_web" in policy for policy in result["fetch"]["policies"])
    assert result["update"]["verdict"] == "allowed"
    assert services["web"].books()["entries"] == []
    entry = services["tickets"].last()
    assert (entry["credential"], entry["effect"]) == ("borealis", "updated")
    run = shown(platform, "borealis", ran["run_id"])
    assert run["state"] == "succeeded"
    assert run["agent_id"] == "support_triage_v4"


def test_the_program_gets_the_doors_and_none_of_our_credentials(platform: Platform) -> None:
    done = platform.cli(
        *exec_arguments("--input", '{"a": [1, "ü"]}', "--", sys.executable, "-c", PRINT_ENVIRONMENT),
        env={
            "TENANTRY_API_KEY": (platform.data / "operator.key").read_text().strip(),
            "OPENAI_ORG_ID": "other",
        },
    )
    assert done.status == 0, done.err
    seen = done.json()["result"]
    env = seen["env"]
    assert json.loads(seen["in"]) == {"a": [1, "ü"]}
    assert env["OPENAI_BASE_URL"] == f"{platform.url}/v1"
    assert env["ANTHROPIC_BASE_URL"] == platform.url
    assert env["TENANTRY_MCP_URL"] == f"{platform.url}/mcp"
    assert env["OPENAI_API_KEY"] == env["ANTHROPIC_API_KEY"] == env["TENANTRY_RUN_TOKEN"]
    assert env["TENANTRY_RUN_ID"] == done.json()["run_id"]
    assert "127.0.0.1" in env["NO_PROXY"]
    assert "TENANTRY_API_KEY" not in env
    assert "TENANTRY_DATA" not in env
    assert "OPENAI_ORG_ID" not in env
    assert "tnk_" not in json.dumps(env)


@pytest.mark.parametrize(
    ("code", "status", "state", "result"),
    [
        ("print('hello')", 0, "succeeded", "hello"),
        ("", 0, "succeeded", None),
        ("print('x'); print('[1, 2]'); print('bye'); raise SystemExit(3)", 1, "failed", [1, 2]),
        ("import os; os.kill(os.getpid(), 9)", 1, "failed", None),
        ("print('[' * 70 + ']' * 70)", 0, "succeeded", None),
        ("print(10 ** 30)", 0, "succeeded", None),
        ("print('a' * 3_000_000)", 0, "succeeded", None),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\x00')", 0, "succeeded", "\ufffd\ufffd"),
    ],
)
def test_a_run_ends_as_its_program_did(
    platform: Platform, code: str, status: int, state: str, result: object
) -> None:
    done = platform.cli(*exec_arguments("--", sys.executable, "-c", code))
    assert done.status == status, done.err
    ran = done.json()
    assert (ran["state"], ran["finished"]) == (state, True)
    assert result is None or ran["result"] == result
    assert shown(platform, "cirrus", ran["run_id"])["state"] == state


def test_files_of_the_program_stay_where_it_is_told(platform: Platform) -> None:
    code = "import os, pathlib; pathlib.Path(os.environ['TENANTRY_OUT'], 'report.txt').write_text('x')"
    done = platform.cli(*exec_arguments("--", sys.executable, "-c", code))
    folder = Path(done.json()["artifacts"])
    assert (folder / "report.txt").read_text() == "x"
    (folder / "report.txt").unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [
        (signal.SIGTERM, "import signal; print('up', flush=True); signal.pause()", "cancelled"),
        (signal.SIGINT, "import signal; print('up', flush=True); signal.pause()", "cancelled"),
        (
            signal.SIGTERM,
            "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); signal.pause()",
            "succeeded",
        ),
    ],
)
def test_signals_reach_the_program_and_the_run_is_finished(
    platform: Platform, number: int, code: str, state: str
) -> None:
    with subprocess.Popen(
        [*COMMAND, *exec_arguments("--", sys.executable, "-c", code)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment({"TENANTRY_DATA": str(platform.data)}),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip() == "up":
                break
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    ran = json.loads(out)
    assert ran["state"] == state
    assert shown(platform, "cirrus", ran["run_id"])["state"] == state


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (exec_arguments("--", "true", tenant="nobody"), 3, "not found"),
        (exec_arguments("--", "true", agent="nobody"), 3, "not found"),
        (exec_arguments("--", "true", tenant="No Tenant"), 2, "tenant_id"),
        (exec_arguments("--", "no-such-program-anywhere"), 1, "no program"),
        (exec_arguments("--input", "{", "--", "true"), 2, "--input"),
        (exec_arguments("--input", "@/no/such/file", "--", "true"), 2, "--input"),
        (exec_arguments("--input", '"\\ud800"', "--", "true"), 2, "--input"),
        (exec_arguments("--deadline-ms", "99999999999", "--", "true"), 2, "deadline"),
        (["run", "exec", "--tenant", "cirrus", "--", "true"], 2, "--agent"),
    ],
)
def test_what_cannot_run_is_refused(platform: Platform, arguments: list[str], status: int, said: str) -> None:
    done = platform.cli(*arguments)
    assert done.status == status, done.err
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_key_that_is_nobodys_is_refused(platform: Platform) -> None:
    done = platform.cli(*exec_arguments("--", "true"), env={"TENANTRY_API_KEY": "tnk_wrong"})
    assert done.status == 3
    assert "credential" in done.err


def test_an_external_run_is_opened_by_hand(platform: Platform) -> None:
    done = platform.cli("run", "start", "steady", "--tenant", "cirrus", "--json")
    assert done.status == 0, done.err
    run = done.json()
    again = subprocess.run(
        [sys.executable, str(EXAMPLES / "agents" / "steady.py")],
        input='{"calls": 1}',
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        env={"PATH": "", "OPENAI_BASE_URL": run["doors"]["openai_base_url"], "OPENAI_API_KEY": run["token"]},
    )
    assert again.returncode == 0, again.stderr
    text = platform.cli("run", "start", "steady", "--tenant", "cirrus")
    assert "export OPENAI_BASE_URL=" in text.out


def test_without_a_platform_it_says_how_to_start_one(tmp_path: Path) -> None:
    done = run_cli(*exec_arguments("--", "true"), env={"TENANTRY_DATA": str(tmp_path / "none")})
    assert done.status == 1
    assert "tenantry up" in done.err
