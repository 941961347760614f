"""What the API answers. Fields that a newer platform adds are ignored. Times are RFC 3339 text."""

from __future__ import annotations

import msgspec


class Doors(msgspec.Struct, frozen=True):
    """Where one run's agent reaches the platform."""

    openai_base_url: str
    actions_url: str
    finish_url: str


class OpenedRun(msgspec.Struct, frozen=True):
    """A run that was opened; `token` is what its agent holds."""

    run_id: str
    token: str
    expires_at: str
    doors: Doors


class Change(msgspec.Struct, frozen=True):
    """One difference between a fleet file and the fleet; `change` is added, changed or removed."""

    path: str
    change: str
    before: object = None
    after: object = None


class AppliedTenant(msgspec.Struct, frozen=True):
    """What became of one tenant."""

    tenant_id: str
    changed: bool
    policy_version: int


class AppliedFleet(msgspec.Struct, frozen=True):
    """What an apply did."""

    changed: bool
    changes: list[Change]
    tenants: list[AppliedTenant]


class InstanceAnswer(msgspec.Struct, frozen=True):
    """What one process said of a switch: acknowledged, lapsed or unconfirmed."""

    instance_id: str
    role: str
    answer: str
    address: str | None = None
    at: str | None = None


class StoppedScope(msgspec.Struct, frozen=True):
    """A scope that is not as usual."""

    level: str
    subject_id: str
    killed: bool
    frozen: bool
    mode: str
    mode_expires_at: str | None = None
    switch_id: str | None = None
    switched_by: str | None = None
    switched_at: str | None = None
    switch_reason: str | None = None


class SwitchResult(msgspec.Struct, frozen=True):
    """What came of a switch; `confirmed_at` None: some process has not answered, and is named."""

    switch_id: str
    level: str
    verb: str
    subject_id: str
    requested_at: str
    instances: list[InstanceAnswer]
    tenant_id: str | None = None
    mode: str | None = None
    confirmed_at: str | None = None
    note: str = ""
    still_stopped: list[StoppedScope] = []


class SwitchRow(msgspec.Struct, frozen=True):
    """One switch of the history."""

    switch_id: str
    level: str
    subject_id: str
    verb: str
    requested_by: str
    requested_at: str
    reason: str
    tenant_id: str | None = None
    mode: str | None = None
    confirmed_at: str | None = None


class SecretVersion(msgspec.Struct, frozen=True):
    """One version of a secret, without its value."""

    workspace_id: str
    name: str
    version: int
    system: str
    agent_classes: list[str]
    capability: str
    created_at: str
    current: bool
    revoked_at: str | None = None


class PutSecret(msgspec.Struct, frozen=True):
    """The version of a secret that stands now; ``changed``: it is a new one."""

    version: int
    changed: bool = True


class TenantRow(msgspec.Struct, frozen=True):
    """A tenant in a list."""

    tenant_id: str
    display_name: str
    quota_class: str
    created_at: str


class TenantState(msgspec.Struct, frozen=True):
    """A tenant: what is declared, under which versions, and what of it is stopped."""

    tenant_id: str
    policy_version: int
    fleet_version: int
    killed: bool
    frozen: bool
    mode: str
    spec: dict[str, object]
    stopped: list[StoppedScope]
    mode_expires_at: str | None = None


class CreatedKey(msgspec.Struct, frozen=True):
    """A new API key; ``token`` is shown this once."""

    key_id: str
    principal_id: str
    role: str
    token: str
    workspace_id: str | None = None


class ApiKeyRow(msgspec.Struct, frozen=True):
    """An API key in a list, without its secret part."""

    key_id: str
    prefix: str
    principal_id: str
    role: str
    created_at: str
    workspace_id: str | None = None
    expires_at: str | None = None
    revoked_at: str | None = None
    last_used_at: str | None = None


class Problem(msgspec.Struct, frozen=True):
    """Something wrong with a policy, at its place."""

    layer: str
    line: int
    column: int
    message: str


class PolicyVersion(msgspec.Struct, frozen=True):
    """One version of a tenant's policies; ``layers`` None in a list."""

    policy_version: int
    author: str
    reason: str
    activated_at: str
    layers: dict[str, str] | None = None


class Meter(msgspec.Struct, frozen=True):
    """Whose meter, and which."""

    level: str
    subject_id: str
    name: str


class MeterReading(msgspec.Struct, frozen=True):
    """What a tenant sees of a meter; ``limit`` None does not bound, ``resets_at_s`` is Unix seconds."""

    meter: Meter
    limit: int | None
    used: int
    reserved: int
    resets_at_s: int | None
    refusals: int


class ScopeMeters(msgspec.Struct, frozen=True):
    """All meters of one scope."""

    level: str
    subject_id: str
    refusals: int
    overrun_tokens: int
    overrun_microusd: int
    meters: list[MeterReading]


class RunRow(msgspec.Struct, frozen=True):
    """A run in a list."""

    run_id: str
    workspace_id: str
    agent_id: str
    principal_id: str
    attempt: int
    state: str
    mode: str
    started_at: str
    deadline_at: str
    ended_at: str | None = None


class JournalEntry(msgspec.Struct, frozen=True):
    """One action as it stands in the journal. Money is micro-US-dollars."""

    action_id: str
    run_id: str
    agent_id: str
    workspace_id: str
    principal_id: str
    kind: str
    action_name: str
    risk: str
    target_system: str
    policy_version: int
    verdict: str
    state: str
    begun_at: str
    reason: list[str] = []
    detail: dict[str, object] | None = None
    status: str | None = None
    settled_at: str | None = None
    used_tokens: int | None = None
    used_microusd: int | None = None


class RunShown(msgspec.Struct, frozen=True):
    """A run with its labels, its result and the latest of its actions, newest first."""

    run: RunRow
    labels: list[str]
    killed: bool
    scope_mode: str
    actions: list[JournalEntry]
    result: object = None
