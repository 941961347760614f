from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.unit.policy.samples import ACTIONS, OPEN

from tenantry.core.errors import InvalidInputError
from tenantry.policy.engine import PolicyEngine
from tenantry.policy.validate import PolicyInvalidError, check

HEAD = '@id("it") permit (principal, action, resource)'


def problem(text: str, layer: str = "tenant") -> str:
    """The one problem of a layer, as told."""
    found = check({layer: text}, ACTIONS)
    assert len(found) == 1, found
    return str(found[0])


def test_sound_layers_have_no_problem() -> None:
    assert (
        check({"tenant": OPEN, "workspace/ops": OPEN, "profile/a": "", "guardrail": "// none yet"}, ACTIONS)
        == []
    )


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (f'{HEAD} when {{\n  context.destination like "x" }};', "2:11", "guarantee safety"),
        ('@id("it") permit (principal, action resource);', "1:37", "unexpected token `resource`"),
        (f"{HEAD}\nwhen {{ (context.risk == context.kind) && ) }};", "2:42", "unexpected token `)`"),
        (f"{OPEN}\n\n  {HEAD} when {{ nope(1) }};", "3:57", "`nope` is not a valid function"),
        (f"{HEAD}\nwhen {{ context.risq == 'x' }};", "2:24", 'cannot hold "\'"'),
        (f'{HEAD}\nwhen {{ context.risq == "x" }};', "2:16", "attribute `risq`"),
        (f"{HEAD}\nwhen {{ context.risk == 1 }};", "1:1", "Long and String"),
        (f'{HEAD}\nwhen {{ context.risk == "x }};', "2:24", "does not end"),
        (f"{OPEN}\n{HEAD}", "2:46", "does not end in `;`"),
        (f"{HEAD} when {{ # }};", "1:55", "cannot hold '#'"),
        (f"{HEAD} when {{ é }};", "1:55", "cannot hold"),
        (f"{HEAD} when {{ 9223372036854775808 > 1 }};", "1:55", "integer"),
        (f'{HEAD} when {{ ip("nowhere").isLoopback() }};', "1:58", "IP address"),
        ("permit (principal, action, resource);", "1:1", "needs a name"),
        ("@id permit (principal, action, resource);", "1:1", "@id is 1 to 63"),
        ('@id("a/b") permit (principal, action, resource);', "1:1", "not 'a/b'"),
        ('@id("a@9") permit (principal, action, resource);', "1:1", "not 'a@9'"),
        ('@id("a\\n") permit (principal, action, resource);', "1:1", "not 'a\\n'"),
        ('@id("no_permit") permit (principal, action, resource);', "1:1", "the platform's own"),
        ('@id("it") permit (principal == ?principal, action, resource);', "1:1", "templates"),
        (f"{OPEN}\n{OPEN}", "2:1", "stands twice"),
        (f'@approvl("approver") {HEAD};', "1:1", "no such annotation: @approvl"),
        (f'@approval("wizard") {HEAD};', "1:1", "not 'wizard'"),
        (f"@approval {HEAD};", "1:1", "roles that may approve"),
        (f'@retention_days("0") {HEAD};', "1:1", "whole number of days"),
        (f'@retention_days("1e3") {HEAD};', "1:1", "whole number of days"),
        (f'@retention_days("99999") {HEAD};', "1:1", "whole number of days"),
        (f'@reason("a\\nb") {HEAD};', "1:1", "printable"),
        (f'@reason("{"x" * 301}") {HEAD};', "1:1", "printable"),
        (
            '@id("it") @approval("approver") forbid (principal, action, resource);',
            "1:1",
            "a forbid cannot ask",
        ),
        (
            '@id("it") permit (principal, action == Action::"ticket.uptade", resource);',
            "1:48",
            "no action of this",
        ),
        ('@id("it") permit (principal, action in Action::"risk/wrong", resource);', "1:48", "no group"),
        ('@id("it") permit (principal, action == Action::"risk/write", resource);', "1:1", "`action in`"),
        (
            '@id("it") permit (principal, action == Action::"model.call", resource is System);',
            "1:1",
            "`Model`",
        ),
        ('@id("it") permit (principal is Robot, action, resource);', "1:32", "Robot"),
        ('@id("it") grant (principal, action, resource);', "1:1", "grant"),
        ("\0", "1:1", "NUL"),
        ("// \ud800", "1:4", "lone surrogate"),
        (f'{OPEN} // "\n@id("b") permit (principal, action, resource); "', "2:48", "does not end"),
    ],
)
def test_problems_are_told_with_place_and_words(text: str, place: str, words: str) -> None:
    told = problem(text)
    assert told.startswith(f"tenant:{place}: ")
    assert words in told


def test_every_problem_of_every_layer_is_told_at_once() -> None:
    found = check(
        {
            "tenant": "permit (principal, action, resource);\n" + HEAD + " when { context.risk < 1 };",
            "profile/a": "x;",
        },
        ACTIONS,
    )
    assert [(it.layer, it.line) for it in found] == [("profile/a", 1), ("tenant", 1), ("tenant", 2)]


@pytest.mark.parametrize("attribute", ["destination", "model"])
@pytest.mark.parametrize("effect", ["permit", "forbid"])
def test_an_optional_attribute_needs_a_guard(attribute: str, effect: str) -> None:
    bare = f'@id("it") {effect} (principal, action, resource) when {{ context.{attribute} == "x" }};'
    assert "guard it with `context has ...`" in problem(bare)
    wrong = bare.replace("{ context.", "{ context has labels && context.")
    assert "guard it with `context has ...`" in problem(wrong)
    either = bare.replace("{ context.", f"{{ context has {attribute} || context.")
    assert "guard it with `context has ...`" in problem(either)
    guarded = bare.replace("{ context.", f"{{ context has {attribute} && context.")
    assert check({"tenant": guarded}, ACTIONS) == []


def test_guardrails_only_forbid_and_may_name_actions_that_a_tenant_lacks() -> None:
    assert "guardrails only forbid" in problem(OPEN, "guardrail")
    foreign = '@id("it") forbid (principal, action == Action::"mail.send", resource);'
    assert check({"guardrail": foreign}, ACTIONS) == []
    assert "no action of this tenant" in problem(foreign)
    assert "no group" in problem(foreign.replace("mail.send", "risk/wrte"), "guardrail")
    found = check({"guardrail": foreign, "tenant": foreign}, ACTIONS)
    assert [it.layer for it in found] == ["tenant"]


def test_groups_without_any_action_may_be_named() -> None:
    text = (
        '@id("it") permit (principal, action in [Action::"risk/high_risk", Action::"kind/file"], resource);'
    )
    assert check({"tenant": text}, {}) == []


def test_an_invalid_engine_is_not_built() -> None:
    with pytest.raises(PolicyInvalidError) as caught:
        PolicyEngine({"workspace/ops": f"{HEAD} when {{ context.risq == 1 }};\nx;"}, 3, ACTIONS)
    assert isinstance(caught.value, InvalidInputError)
    assert caught.value.path == "$.policies['workspace/ops']"
    assert str(caught.value).startswith("workspace/ops:1:63: attribute `risq`")
    assert str(caught.value).endswith("(and 1 more)")
    assert len(caught.value.problems) == 2


def test_comments_and_strings_do_not_mislead_the_reader() -> None:
    text = """
    // ; permit (principal, action, resource);
    @id("it") // ";
    permit (principal, action, resource) when { context.record_id != "; // \\" ;" }; // end"""
    assert check({"tenant": text}, ACTIONS) == []
    carriage = '@id("it") permit (principal, action, resource) // x\r when { true };'
    assert check({"tenant": carriage}, ACTIONS) == []


def test_problems_are_bounded() -> None:
    found = check({"tenant": "x;" * 400}, ACTIONS)
    assert len(found) == 100
    assert all(len(it.message) <= 400 for it in found)
    deep = "{a: " * 20 + "1" + "}" * 20
    assert len(problem(f"{HEAD} when {{ {deep} == 1 }};")) <= 420


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/" * 65_537, "too long"),
        (OPEN.replace("open", "p{}") * 501, "policies, at most 500"),
        (f"{HEAD} when {{ {'true && ' * 1_000} true }};", "at most 2000 in a policy"),
        (
            "".join(f'@id("p{n}") {HEAD[11:]} when {{ {"true && " * 90} true }};' for n in range(50)),
            "at most 8000",
        ),
        (f'{HEAD} when {{ context.risk like "{"x" * 1_100}" }};', "1024 characters long"),
        (
            "".join(
                f'@id("p{n}") {HEAD[10:]} when {{ context.risk like "{"x" * 1_000}" }};' for n in range(3)
            ),
            "`like` patterns, at most 2048",
        ),
        (f"{HEAD} when {{ {'(' * 25}true{')' * 25} }};", "at most 24 deep"),
        (f"{HEAD} when {{ {'if true then ' * 51}true{' else true' * 51} }};", "at most 50 `if`"),
        (f"{HEAD} when {{ {'true && ' * 110}true }};", "more than 100 expressions"),
    ],
)
def test_what_would_cost_the_neighbours_is_refused(text: str, words: str) -> None:
    found = check({"tenant": text}, ACTIONS)
    assert any(words in it.message for it in found), found[:3]


@pytest.mark.parametrize("piece", ['"\\', '"', "\\", '"a;', "//", "/", '@a("', "a.", '"\\"', "\n", '";'])
def test_reading_hostile_text_takes_linear_time(piece: str) -> None:
    """Any quadratic step here is minutes: the test's own time limit is the assertion."""
    text = piece * (65_536 // len(piece))
    assert len(check({"tenant": text}, {})) <= 100


ATTACK = """
import threading
from tenantry.policy.validate import check
threading.stack_size(2 * 1024 * 1024)
HEAD = '@id("it") permit (principal, action, resource) when { '
SHAPES = [
    "(" * N + "true" + ")" * N, "[" * N + "1" + "]" * N, "{a: " * N + "1" + "}" * N,
    "context.labels.contains(" * N + "1" + ")" * N, "if true then " * N + "true" + " else false" * N,
    "if " * N + "true" + " then true else false" * N, "true && " * N + "true", "1" + " + 1" * N + " == 2",
    "context" + ".a" * N, 'context["a"]' + '["a"]' * N, "!(" * N + "true" + ")" * N, "(true && " * N,
    "(" * N, "[" * N, "{" * N, "@" * N, "-" * N, "!" * N, '"' * N, "\\\\" * N, "?" * N, "::" * N, ";" * N,
]
def attack():
    for shape in SHAPES:
        check({"tenant": HEAD + shape + " };"}, {})
        check({"tenant": shape}, {})
    print("alive")
thread = threading.Thread(target=attack)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("depth", [24, 90, 5_000])
def test_no_nesting_overflows_the_stack(depth: int) -> None:
    """Cedar's parser alone ends the process on these; hence in a process of its own, on a small stack."""
    code = ATTACK.replace("* N", f"* {depth}")
    done = subprocess.run(  # the interpreter that runs this test
        [sys.executable, "-c", code],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-500:]
