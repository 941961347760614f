"""Commands against a running platform: what they change, what they print, how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.platforms import EXAMPLES, Done, Platform

TRUE = ("--", sys.executable, "-c", "")


def good(done: Done) -> Done:
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    return done


def run_nothing(platform: Platform, tenant: str = "cirrus", agent: str = "steady") -> Done:
    return platform.cli("run", "exec", "--json", "--tenant", tenant, "--agent", agent, *TRUE)


@pytest.fixture
def _revived(platform: Platform) -> Iterator[None]:
    yield
    for tenant in ("cirrus", "dunes"):
        good(platform.cli("tenant", "revive", tenant, "--reason", "end of a test"))
        good(platform.cli("tenant", "mode", tenant, "normal", "--reason", "end of a test"))


def test_applying_again_changes_nothing(platform: Platform, fleet_variables: dict[str, str]) -> None:
    file = str(EXAMPLES / "fleet.yaml")
    assert good(platform.cli("diff", file, "--json", env=fleet_variables)).json()["changes"] == []
    applied = good(platform.cli("apply", file, "--json", env=fleet_variables)).json()
    assert (applied["changed"], applied["changes"]) == (False, [])
    assert "nothing differs" in good(platform.cli("diff", file, env=fleet_variables)).out


def test_diff_shows_and_apply_does(
    platform: Platform, fleet_variables: dict[str, str], tmp_path: Path
) -> None:
    text = (EXAMPLES / "fleet.yaml").read_text()
    changed = tmp_path / "fleet.yaml"
    changed.write_text(text.replace("display_name: Cirrus Retail", "display_name: Cirrus Shops"))
    shown = good(platform.cli("diff", str(changed), env=fleet_variables)).out
    assert "~ $.tenants.cirrus.display_name" in shown
    assert "Cirrus Shops" in shown
    good(platform.cli("apply", str(changed), env=fleet_variables))
    assert "Cirrus Shops" in good(platform.cli("tenant", "list")).out
    good(platform.cli("apply", str(EXAMPLES / "fleet.yaml"), env=fleet_variables))


def test_export_is_a_fleet_file_without_a_secret(
    platform: Platform, fleet_variables: dict[str, str], tmp_path: Path
) -> None:
    exported = good(platform.cli("export")).out
    for secret in (fleet_variables["EXAMPLE_MODEL_KEY"], fleet_variables["EXAMPLE_TICKETS_TOKEN_BOREALIS"]):
        assert secret not in exported
    file = tmp_path / "exported.yaml"
    file.write_text(exported)
    read = platform.cli("diff", str(file), "--json", env=fleet_variables)
    assert read.status in {0, 2}, read.err
    assert "Traceback" not in read.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 1\n", "required"),
        ("version: 1\nguardrails: {}\nquota_classes: {}\ntenants: {}\nnonsense: 1\n", "nonsense"),
        ("version: 1\nguardrails: {text: 'forbid('}\nquota_classes: {}\ntenants: {}\n", ""),
        ("version: 2\nguardrails: {}\nquota_classes: {}\ntenants: {}\n", "version"),
        (
            (
                "version: 1\nguardrails: {}\nquota_classes: {}\n"
                "tenants: {Bad-Name: {display_name: x, quota_class: q, workspaces: {}}}\n"
            ),
            "$.tenants",
        ),
        (
            (
                "version: 1\nguardrails: {}\nquota_classes: {q: {}}\n"
                'tenants: {acme: {display_name: "\\u0000", quota_class: q, workspaces: {}}}\n'
            ),
            "",
        ),
    ],
)
def test_a_bad_fleet_file_is_told_at_its_place(
    platform: Platform, text: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(text)
    done = platform.cli("apply", str(file))
    assert done.status == 2, (done.out, done.err)
    assert said in done.err
    assert "Traceback" not in done.err


@pytest.mark.invariant(4)
@pytest.mark.usefixtures("_revived")
def test_a_killed_tenant_runs_nothing_and_others_do(platform: Platform) -> None:
    killed = good(platform.cli("tenant", "kill", "cirrus", "--reason", "for the test", "--json")).json()
    assert killed["confirmed_at"] is not None
    assert {answer["answer"] for answer in killed["instances"]} == {"acknowledged"}
    refused = run_nothing(platform)
    assert refused.status == 3
    problem = json.loads(refused.err)["error"]
    assert (problem["status"], problem["verdict"]) == (423, "suspended")
    assert "for the test" in problem["detail"]
    assert "killed" in good(platform.cli("tenant", "show", "cirrus")).out
    good(run_nothing(platform, "dunes", "runaway"))
    good(platform.cli("tenant", "revive", "cirrus", "--reason", "it is fine"))
    good(run_nothing(platform))
    history = good(platform.cli("switch", "list", "--tenant", "cirrus", "--json")).json()["switches"]
    assert [row["verb"] for row in history][:2] == ["revive", "kill"]
    assert "for the test" in good(platform.cli("switch", "list")).out


@pytest.mark.usefixtures("_revived")
def test_smaller_things_are_killed_alone(platform: Platform) -> None:
    good(platform.cli("agent", "kill", "steady", "--tenant", "cirrus", "--reason", "x"))
    assert run_nothing(platform).status == 3
    good(platform.cli("agent", "revive", "steady", "--tenant", "cirrus", "--reason", "x"))
    good(platform.cli("workspace", "kill", "main", "--tenant", "cirrus", "--reason", "x"))
    assert run_nothing(platform).status == 3
    good(platform.cli("workspace", "revive", "main", "--tenant", "cirrus", "--reason", "x"))
    run = good(platform.cli("run", "start", "steady", "--tenant", "cirrus", "--json")).json()
    good(platform.cli("run", "kill", run["run_id"], "--tenant", "cirrus", "--reason", "x"))
    shown = good(platform.cli("run", "show", run["run_id"], "--tenant", "cirrus", "--json")).json()
    assert shown["killed"]
    good(run_nothing(platform))


@pytest.mark.usefixtures("_revived")
def test_modes_and_freezes(platform: Platform, tmp_path: Path) -> None:
    good(platform.cli("tenant", "mode", "cirrus", "suspended", "--reason", "quarter's end"))
    assert run_nothing(platform).status == 3
    assert platform.cli("tenant", "mode", "cirrus", "sideways", "--reason", "x").status == 2
    good(platform.cli("tenant", "mode", "cirrus", "normal", "--reason", "x"))
    good(run_nothing(platform))
    policy = tmp_path / "tenant.cedar"
    policy.write_text('@id("reads")\npermit (principal, action in Action::"risk/read", resource);\n')
    good(platform.cli("tenant", "freeze", "cirrus", "--reason", "audit"))
    arguments = (f"tenant={policy}", "--tenant", "cirrus", "--reason", "again")
    frozen = platform.cli("policy", "activate", *arguments)
    assert frozen.status in {2, 3}
    assert "frozen" in frozen.err
    good(platform.cli("tenant", "unfreeze", "cirrus", "--reason", "done"))
    good(platform.cli("policy", "activate", *arguments))


def test_a_switch_of_nothing_is_refused(platform: Platform) -> None:
    for arguments in (
        ("tenant", "kill", "nobody"),
        ("agent", "kill", "nobody", "--tenant", "cirrus"),
        ("run", "kill", "wr_none", "--tenant", "cirrus"),
        ("tenant", "kill", "../../etc"),
        ("tenant", "show", "."),
        ("tenant", "show", ".."),
        ("run", "show", "%2e%2e", "--tenant", "cirrus"),
    ):
        done = platform.cli(*arguments)
        assert done.status == 3, (arguments, done.err)
        assert "not found" in done.err


def test_keys_are_shown_once_and_carry_their_role(platform: Platform) -> None:
    made = good(platform.cli("key", "create", "--tenant", "cirrus", "--role", "viewer", "--json")).json()
    as_viewer = {"TENANTRY_API_KEY": made["token"]}
    listed = good(platform.cli("key", "list", "--tenant", "cirrus")).out
    assert made["key_id"] in listed
    assert made["token"] not in listed
    own = good(platform.cli("tenant", "list", "--json", env=as_viewer)).json()["tenants"]
    assert [row["tenant_id"] for row in own] == ["cirrus"]
    assert platform.cli("tenant", "show", "borealis", env=as_viewer).status == 3
    assert platform.cli("tenant", "kill", "cirrus", "--reason", "x", env=as_viewer).status == 3
    assert (
        platform.cli("run", "exec", "--tenant", "cirrus", "--agent", "steady", *TRUE, env=as_viewer).status
        == 3
    )
    good(platform.cli("key", "revoke", made["key_id"], "--tenant", "cirrus"))
    gone = platform.cli("tenant", "list", env=as_viewer)
    assert gone.status == 3
    assert "credential" in gone.err
    assert platform.cli("key", "revoke", "key_none", "--tenant", "cirrus").status == 3
    text = good(platform.cli("key", "create", "--tenant", "cirrus", "--role", "developer")).out
    assert text.startswith("tnk_")
    assert len(text.split()) == 1


@pytest.mark.invariant(8)
def test_a_secret_goes_in_and_never_comes_out(platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("hunter2-from-a-file\n")
    place = ("--tenant", "borealis", "--workspace", "support")
    use = ("--system", "zendesk", "--agent-class", "support")
    said = [
        good(platform.cli("secret", "put", "spare", *place, *use, "--value-file", str(file))),
        good(platform.cli("secret", "rotate", "spare", *place, stdin="hunter2-from-stdin\n")),
        good(platform.cli("secret", "rotate", "spare", *place, "--value-env", "NEW", env={"NEW": "hunter2"})),
        good(platform.cli("secret", "list", "--tenant", "borealis")),
        good(platform.cli("secret", "list", "--tenant", "borealis", "--json")),
        good(platform.cli("export")),
        good(platform.cli("secret", "revoke", "spare", *place)),
    ]
    assert not [done for done in said if "hunter2" in done.out + done.err]
    rows = [row for row in json.loads(said[4].out)["secrets"] if row["name"] == "spare"]
    assert max(row["version"] for row in rows) == 3
    for options in ((), ("--value-env", "NOT_SET"), ("--value-file", "/no/such")):
        done = platform.cli(
            "secret", "put", "spare", *place, *use, *options, stdin="" if not options else None
        )
        assert done.status == 2, done.err


def test_policies_are_checked_activated_and_taken_back(platform: Platform, tmp_path: Path) -> None:
    good_file, bad_file = tmp_path / "good.cedar", tmp_path / "bad.cedar"
    good_file.write_text(
        '@id("reads")\npermit (principal, action in Action::"risk/read", resource);\n'
        '@id("no_models")\nforbid (principal, action == Action::"model.call", resource);\n'
    )
    bad_file.write_text('@id("x")\npermit (principal, action == Action::"no.such", resource);\n')
    where = ("--tenant", "cirrus")
    before = good(platform.cli("policy", "history", *where, "--json")).json()["versions"][0]["policy_version"]
    good(platform.cli("policy", "check", f"tenant={good_file}", *where))
    checked = platform.cli("policy", "check", f"tenant={bad_file}", *where)
    assert checked.status == 2
    assert "tenant:2:" in checked.out
    assert platform.cli("policy", "activate", f"tenant={bad_file}", *where, "--reason", "x").status == 2
    done = good(
        platform.cli("policy", "activate", f"tenant={good_file}", *where, "--reason", "try", "--json")
    )
    assert done.json()["policy_version"] > before
    agent = (sys.executable, str(EXAMPLES / "agents" / "steady.py"))
    ran = platform.cli(
        "run", "exec", "--json", "--agent", "steady", *where, "--input", '{"calls": 1}', "--", *agent
    )
    assert ran.json()["result"]["failed"] == 1
    good(platform.cli("policy", "rollback", str(before), *where, "--reason", "too narrow"))
    history = good(platform.cli("policy", "history", *where)).out
    assert "too narrow" in history
    assert (
        "no_models"
        in good(
            platform.cli("policy", "history", *where, "--version", str(done.json()["policy_version"]))
        ).out
    )
    for word in ("tenant", "nonsense=x", "tenant=/no/such/file"):
        assert platform.cli("policy", "check", word, *where).status == 2


def test_quotas_and_runs_are_told(platform: Platform) -> None:
    ran = good(run_nothing(platform)).json()
    listed = good(platform.cli("run", "list", "--tenant", "cirrus", "--state", "succeeded", "--json")).json()
    assert ran["run_id"] in {row["run_id"] for row in listed["runs"]}
    shown = good(platform.cli("run", "show", ran["run_id"], "--tenant", "cirrus")).out
    assert "run.start" in shown
    assert platform.cli("run", "show", ran["run_id"], "--tenant", "dunes").status == 3
    quota = good(platform.cli("quota", "show", "--tenant", "dunes")).out
    assert "model_tokens_day" in quota
    assert "3,000" in quota


def test_the_doctor_finds_a_healthy_installation_healthy(platform: Platform) -> None:
    found = good(platform.cli("doctor", "--json")).json()["findings"]
    states = {row["name"]: row["state"] for row in found}
    assert states["supervisor"] == states["control"] == states["gateways"] == "good"
    assert "bad" not in states.values()


def test_the_doctor_says_what_to_fix(tmp_path: Path, platform: Platform) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "root.key").write_text("x")
    (data / "root.key").chmod(0o644)
    done = platform.cli("doctor", "--data", str(data))
    assert done.status == 1
    assert f"chmod 600 {data / 'root.key'}" in done.out


def test_usage_is_told(platform: Platform) -> None:
    for arguments in (("nonsense",), ("tenant",), ("tenant", "kill"), ("key", "create", "--role", "king")):
        done = platform.cli(*arguments)
        assert done.status == 2, arguments
    assert good(platform.cli("--version")).out.startswith("tenantry ")
