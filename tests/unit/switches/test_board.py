from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.core.ids import AgentId, RunId, TenantId, WorkspaceId
from tenantry.switches.board import (
    AGENT,
    FLEET,
    RUN,
    RUN_LIFE_S,
    TENANT,
    WORKSPACE,
    LiveKeys,
    Switch,
    SwitchBoard,
)

KEYS = LiveKeys(TenantId("acme"), WorkspaceId("support"), AgentId("triage"), RunId("run_1"))
SUBJECTS = {FLEET: "", TENANT: "acme", WORKSPACE: "support", AGENT: "triage", RUN: "run_1"}


def switch(
    seq: int,
    level: int,
    verb: str,
    *,
    mode: str | None = None,
    subject: str | None = None,
    tenant: str = "acme",
    expires_in_s: float | None = None,
) -> Switch:
    return Switch(
        switch_seq=seq,
        switch_id=f"sw_{seq}",
        tenant_id=None if level == FLEET else TenantId(tenant),
        level=level,
        subject_id=SUBJECTS[level] if subject is None else subject,
        verb=verb,
        mode=mode,
        expires_in_s=expires_in_s,
    )


@pytest.mark.parametrize("level", list(SUBJECTS))
def test_a_kill_stops_its_scope_and_a_revive_lifts_it(level: int) -> None:
    board = SwitchBoard()
    stop = board.apply(switch(1, level, "kill"), 0.0)
    assert stop is not None
    assert board.find_stop(KEYS, 1e9) == stop
    board.apply(switch(2, level, "revive"), 0.0)
    assert board.find_stop(KEYS, 0.0) is None
    assert len(board) == 0


@pytest.mark.parametrize("level", [TENANT, WORKSPACE, AGENT, RUN])
def test_another_subject_and_another_tenant_go_on(level: int) -> None:
    board = SwitchBoard()
    board.apply(switch(1, level, "kill", subject="somebody_else"), 0.0)
    board.apply(switch(2, level, "kill", tenant="other"), 0.0)
    assert board.find_stop(KEYS, 0.0) is None


def test_names_do_not_meet_across_levels() -> None:
    board = SwitchBoard()
    for seq, level in enumerate((WORKSPACE, AGENT, RUN), start=1):
        board.apply(switch(seq, level, "kill", subject="acme"), 0.0)
    assert board.find_stop(KEYS, 0.0) is None


def test_a_run_being_opened_is_not_covered_by_a_run_without_a_name() -> None:
    board = SwitchBoard()
    board.apply(switch(1, RUN, "kill"), 0.0)
    assert board.find_stop(LiveKeys(KEYS.tenant_id, KEYS.workspace_id, KEYS.agent_id), 0.0) is None


def test_killed_and_suspended_are_lifted_apart() -> None:
    board = SwitchBoard()
    board.apply(switch(1, TENANT, "kill"), 0.0)
    board.apply(switch(2, TENANT, "mode", mode="suspended"), 0.0)
    board.apply(switch(3, TENANT, "revive"), 0.0)
    stop = board.find_stop(KEYS, 0.0)
    assert stop is not None and stop.mode == "suspended"
    board.apply(switch(4, TENANT, "mode", mode="read_only"), 0.0)
    assert board.find_stop(KEYS, 0.0) is None


def test_a_mode_ends_by_itself_when_it_says_so() -> None:
    board = SwitchBoard()
    board.apply(switch(1, AGENT, "mode", mode="suspended", expires_in_s=10.0), 100.0)
    assert board.find_stop(KEYS, 109.9) is not None
    assert board.find_stop(KEYS, 110.0) is None


@pytest.mark.parametrize("mode", ["normal", "read_only", "drafts_only", "approvals_only"])
def test_narrower_modes_and_freezes_stop_nothing_here(mode: str) -> None:
    board = SwitchBoard()
    assert board.apply(switch(1, TENANT, "mode", mode=mode), 0.0) is None
    assert board.apply(switch(2, TENANT, "freeze"), 0.0) is None
    assert board.apply(switch(3, TENANT, "unfreeze"), 0.0) is None
    assert len(board) == 0


def test_the_fleet_has_one_mode() -> None:
    board = SwitchBoard()
    board.apply(switch(1, FLEET, "kill"), 0.0)
    board.apply(switch(2, FLEET, "mode", mode="read_only"), 0.0)
    assert board.find_stop(KEYS, 0.0) is None
    board.apply(switch(3, FLEET, "mode", mode="suspended"), 0.0)
    board.apply(switch(4, FLEET, "revive"), 0.0)
    assert board.find_stop(KEYS, 0.0) is None


def test_runs_that_are_long_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenantry.switches.board.RUN_STOPS_MAX", 100)
    board = SwitchBoard()
    for seq in range(1, 101):
        board.apply(switch(seq, RUN, "kill", subject=f"run_{seq}"), 0.0)
    board.apply(switch(101, RUN, "kill", subject="run_new"), RUN_LIFE_S + 1)
    assert len(board) == 1


VERBS = st.sampled_from(["kill", "revive", "suspended", "normal", "read_only", "freeze", "unfreeze"])


@given(st.lists(st.tuples(st.sampled_from(list(SUBJECTS)), VERBS), max_size=40))
def test_the_board_agrees_with_a_plain_reading_of_the_history(history: list[tuple[int, str]]) -> None:
    board = SwitchBoard()
    killed: dict[int, bool] = {}
    modes: dict[int, str] = {}
    for seq, (level, word) in enumerate(history, start=1):
        is_mode = word in {"suspended", "normal", "read_only"}
        board.apply(switch(seq, level, "mode" if is_mode else word, mode=word if is_mode else None), 0.0)
        if is_mode:
            modes[level] = word
            if level == FLEET:
                killed[level] = False
        elif word in {"kill", "revive"}:
            killed[level] = word == "kill"
            if level == FLEET:
                modes[level] = "normal"
    stopped = any(killed.values()) or "suspended" in modes.values()
    assert (board.find_stop(KEYS, 0.0) is not None) is stopped
