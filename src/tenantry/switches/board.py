"""The switches that stand, as one process knows them: pure memory, no waiting.

A scope is stopped while it is killed or its mode is `suspended`. Narrower modes and freezes are enforced
where they are exact, in `begin`; there is nothing here for them to stop.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from tenantry.core.ids import AgentId, RunId, TenantId, WorkspaceId

FLEET, TENANT, WORKSPACE, AGENT, RUN = -1, 0, 1, 2, 3
LEVEL_WORDS: Final = {FLEET: "fleet", TENANT: "tenant", WORKSPACE: "workspace", AGENT: "agent", RUN: "run"}

# A scope: its level, its tenant ('' for the fleet) and its subject.
ScopeKey: TypeAlias = tuple[int, str, str]
FLEET_KEY: Final[ScopeKey] = (FLEET, "", "")

# A run lives a day at most; what was switched of one that is older stops nothing any more.
RUN_LIFE_S: Final = 25 * 3600.0
RUN_STOPS_MAX: Final = 10_000


class LiveKeys(msgspec.Struct, frozen=True):
    """Whose an action is: every scope that can stop it. ``run_id`` None: a run that is being opened."""

    tenant_id: TenantId
    workspace_id: WorkspaceId
    agent_id: AgentId
    run_id: RunId | None = None

    def scopes(self) -> tuple[ScopeKey, ...]:
        """From the widest to the narrowest."""
        tenant_id = self.tenant_id
        return (
            FLEET_KEY,
            (TENANT, tenant_id, tenant_id),
            (WORKSPACE, tenant_id, self.workspace_id),
            (AGENT, tenant_id, self.agent_id),
            (RUN, tenant_id, self.run_id or ""),
        )


class Switch(msgspec.Struct, frozen=True):
    """One row of the switches' history. ``expires_in_s``: of a mode, seconds from when it was read."""

    switch_seq: int
    switch_id: str
    tenant_id: TenantId | None
    level: int
    subject_id: str
    verb: str
    mode: str | None
    expires_in_s: float | None = None

    @property
    def key(self) -> ScopeKey:
        """The scope that it is about."""
        return FLEET_KEY if self.tenant_id is None else (self.level, self.tenant_id, self.subject_id)


class Stop(msgspec.Struct, frozen=True):
    """Why a scope is stopped. ``until`` is monotonic seconds, None where nothing but a person ends it."""

    switch_seq: int
    switch_id: str
    level: int
    mode: str
    since: float
    until: float | None


class SwitchBoard:
    """What is stopped now. `apply` takes switches in the order of their numbers."""

    def __init__(self) -> None:
        self._killed: dict[ScopeKey, Stop] = {}
        self._suspended: dict[ScopeKey, Stop] = {}
        # How many stops a tenant has; the fleet's stand under ''. Most tenants have none.
        self._by_tenant: dict[str, int] = {}
        self._run_stops = 0

    def apply(self, switch: Switch, now: float) -> Stop | None:
        """Take a switch in; `now` is monotonic seconds. The stop that it made, if it made one."""
        key = switch.key
        # The fleet has a mode only: killing it suspends it, and any other mode revives it.
        suspends = self._suspended if key != FLEET_KEY else self._killed
        match switch.verb:
            case "kill":
                return self._stop(self._killed, switch, "killed", now)
            case "revive":
                self._lift(self._killed, key)
            case "mode" if switch.mode == "suspended":
                return self._stop(suspends, switch, "suspended", now)
            case "mode":
                self._lift(suspends, key)
            case _:
                pass
        return None

    def find_stop(self, keys: LiveKeys, now: float) -> Stop | None:
        """The widest stop that covers an action, None when nothing does; ~0.2 us when nothing of it is."""
        if keys.tenant_id not in self._by_tenant and "" not in self._by_tenant:
            return None
        for key in keys.scopes():
            stop = self._killed.get(key)
            if stop is not None:
                return stop
            stop = self._suspended.get(key)
            if stop is not None and (stop.until is None or now < stop.until):
                return stop
        return None

    def __len__(self) -> int:
        return len(self._killed) + len(self._suspended)

    def _stop(self, stops: dict[ScopeKey, Stop], switch: Switch, mode: str, now: float) -> Stop:
        key = switch.key
        until = None if switch.expires_in_s is None else now + switch.expires_in_s
        before = stops.pop(key, None)
        stop = stops[key] = Stop(switch.switch_seq, switch.switch_id, switch.level, mode, now, until)
        if before is None:
            self._by_tenant[key[1]] = self._by_tenant.get(key[1], 0) + 1
            self._run_stops += key[0] == RUN
            if self._run_stops > RUN_STOPS_MAX:
                self._forget_old_runs(now)
        return stop

    def _lift(self, stops: dict[ScopeKey, Stop], key: ScopeKey) -> None:
        if stops.pop(key, None) is None:
            return
        self._run_stops -= key[0] == RUN
        left = self._by_tenant.pop(key[1]) - 1
        if left:
            self._by_tenant[key[1]] = left

    def _forget_old_runs(self, now: float) -> None:
        for stops in (self._killed, self._suspended):
            old = [k for k, stop in stops.items() if k[0] == RUN and now - stop.since > RUN_LIFE_S]
            for key in old:
                self._lift(stops, key)
