"""Kill, revive, modes and freezes: a person's word in one commit, and the truth about who has heeded it.

States: refused -> (nothing) | committed -> confirmed | unconfirmed. From the commit on nothing of the scope
begins anywhere; confirmed means that nothing of it is under way at an upstream either.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from tenantry.control.acknowledgements import Acknowledgements, InstanceAnswer
from tenantry.control.errors import SwitchedMeanwhileError
from tenantry.core.clock import Clock
from tenantry.core.errors import (
    InvalidInputError,
    NotFoundError,
    StorageUnavailableError,
    TenantryError,
)
from tenantry.core.ids import SwitchId, TenantId, WorkspaceId, new_id
from tenantry.core.principal import Principal, Right
from tenantry.identity.rights import require, require_undo
from tenantry.journal.admin import AdminEntry, AdminJournal
from tenantry.storage.connect import Row
from tenantry.storage.database import ControlConnection
from tenantry.storage.errors import LockTimeoutError, StatementError
from tenantry.storage.scope import Scopes, TenantScope
from tenantry.storage.statements import Statement, load_statements
from tenantry.switches.board import FLEET, LEVEL_WORDS, TENANT, WORKSPACE
from tenantry.switches.history import (
    StoppedScope,
    SwitchRow,
    find_holders,
    list_stopped,
    list_switches,
)

Level = Literal["fleet", "tenant", "workspace", "agent", "run"]
Verb = Literal["kill", "revive", "mode", "freeze", "unfreeze"]
Mode = Literal["normal", "read_only", "drafts_only", "approvals_only", "suspended"]

WAIT_MS_MAX: Final = 60_000
REASON_CHARACTERS_MAX: Final = 1_000
ATTEMPTS: Final = 3
# Of an order that undoes: each loses only to another switch of the same scope that took effect.
UNDO_ATTEMPTS: Final = 16
_LEVELS: Final = {word: level for level, word in LEVEL_WORDS.items()}
_UNDONE_BY: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    # what a verb takes back: who may have done it since, and what had taken it back before
    "revive": (("kill",), ("revive",)),
    "unfreeze": (("freeze",), ("unfreeze",)),
    "mode": (("mode",), ()),
}


class SwitchOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person asks for. ``subject_id`` is left out for the fleet and for a whole tenant.

    ``mode`` and ``mode_expires_at`` (aware) belong to the verb ``mode``; ``wait_ms`` bounds the wait for
    processes.
    """

    level: Level
    verb: Verb
    reason: str
    tenant_id: TenantId | None = None
    subject_id: str | None = None
    mode: Mode | None = None
    mode_expires_at: dt.datetime | None = None
    wait_ms: int = 5_000


class SwitchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. ``confirmed_at`` None: committed, and some process has not answered; they are named.

    ``still_stopped`` is for a revival: recovery is staged, and what was stopped by itself stays so.
    """

    switch_id: SwitchId
    level: Level
    verb: Verb
    tenant_id: TenantId | None
    subject_id: str
    mode: Mode | None
    requested_at: dt.datetime
    confirmed_at: dt.datetime | None
    instances: list[InstanceAnswer]
    note: str
    still_stopped: list[StoppedScope] = []


class Switches:
    """Use cases of switches. `connection` is reserved for them: a kill works when all else is taken."""

    def __init__(
        self,
        scopes: Scopes,
        connection: ControlConnection,
        acknowledgements: Acknowledgements,
        journal: AdminJournal,
        clock: Clock,
    ) -> None:
        self._scopes = scopes
        self._connection = connection
        self._acknowledgements = acknowledgements
        self._journal = journal
        self._clock = clock
        self._statements: Mapping[str, Statement] = load_statements("tenantry.control", "switches.sql")
        self._history: Mapping[str, Statement] = load_statements("tenantry.switches", "store.sql")

    async def switch(self, principal: Principal, order: SwitchOrder) -> SwitchResult:
        """Do it and wait, bounded, for every process.

        Cost of the commit: one round trip as soon as the tenant's row is free. Errors: `ForbiddenError`,
        `NotFoundError`, `InvalidInputError`, and `StorageUnavailableError` when it is not known to have taken
        effect.
        """
        level = _LEVELS[order.level]
        switch_id = SwitchId(new_id("sw", self._clock))
        if level == FLEET:
            require(principal, Right.FLEET_APPLY)
            self._check(order)
            row = await self._commit_fleet(principal, order, switch_id)
            subject, scope = "fleet", None
        else:
            scope, subject = await self._target(principal, order, level)
            self._check(order)
            row = await self._commit(principal, order, scope, level, subject, switch_id)
        answers = await self._acknowledgements.wait(row["switch_seq"], order.wait_ms / 1000)
        waiting = [answer for answer in answers if answer.answer == "unconfirmed"]
        confirmed_at = None if waiting else self._clock.now()
        with contextlib.suppress(TenantryError):
            await self._acknowledgements.confirm(row["switch_seq"], confirmed_at, answers)
        still_stopped = []
        if order.verb == "revive" and scope is not None:
            async with scope:
                still_stopped = await list_stopped(scope)
        return SwitchResult(
            switch_id=switch_id,
            level=order.level,
            verb=order.verb,
            tenant_id=None if scope is None else scope.tenant_id,
            subject_id=subject,
            mode=order.mode,
            requested_at=row["requested_at"],
            confirmed_at=confirmed_at,
            instances=answers,
            note=_note(waiting, still_stopped),
            still_stopped=still_stopped,
        )

    async def list_switches(
        self,
        principal: Principal,
        tenant_id: TenantId | None = None,
        *,
        before: int | None = None,
        limit: int = 100,
    ) -> list[SwitchRow]:
        """A page of the history, newest first: a tenant's with the fleet's, or an operator's: everybody's."""
        require(principal, Right.TENANT_READ, tenant_id)
        if tenant_id is None and principal.tenant_id is None:
            async with self._scopes.platform(
                reason="list of switches", operator=principal.principal_id
            ) as platform:
                return await list_switches(platform, before=before, limit=limit)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            return await list_switches(scope, before=before, limit=limit)

    async def list_stopped(
        self, principal: Principal, tenant_id: TenantId | None = None
    ) -> list[StoppedScope]:
        """What of a tenant is not as usual now."""
        require(principal, Right.TENANT_READ, tenant_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            return await list_stopped(scope)

    def _check(self, order: SwitchOrder) -> None:
        """Refuse an order that makes no sense. Errors: `InvalidInputError` that names the field."""
        if (
            not order.reason.strip()
            or len(order.reason) > REASON_CHARACTERS_MAX
            or not _storable(order.reason)
        ):
            raise InvalidInputError("a switch has a reason of 1 to 1000 characters", path="$.reason")
        if (order.mode is None) == (order.verb == "mode"):
            raise InvalidInputError("a mode belongs to the verb mode, and to no other", path="$.mode")
        if order.verb in {"freeze", "unfreeze"} and order.level != "tenant":
            raise InvalidInputError("only a whole tenant's policy is frozen", path="$.level")
        if not 0 <= order.wait_ms <= WAIT_MS_MAX:
            raise InvalidInputError("a wait is 0 to 60000 ms", path="$.wait_ms")
        expires_at = order.mode_expires_at
        if expires_at is None:
            return
        if order.verb != "mode" or order.level == "fleet":
            raise InvalidInputError("only the mode of a tenant's scope expires", path="$.mode_expires_at")
        if expires_at.tzinfo is None or expires_at <= self._clock.now():
            raise InvalidInputError("an expiry is a time to come, with its zone", path="$.mode_expires_at")

    async def _target(self, principal: Principal, order: SwitchOrder, level: int) -> tuple[TenantScope, str]:
        """The scope to switch, when the principal may. A key that is narrowed has its workspace only."""
        right = Right.TENANT_MODE if order.verb == "mode" else Right.TENANT_SWITCH
        tenant_id = order.tenant_id or principal.tenant_id
        if level == TENANT:
            require(principal, right, tenant_id)
            if order.subject_id not in {None, tenant_id}:
                raise InvalidInputError("a whole tenant has no other subject", path="$.subject_id")
            scope = await self._scopes.for_principal(principal, tenant_id)
            return scope, scope.tenant_id
        subject = order.subject_id
        if subject is None or not _storable(subject):
            raise InvalidInputError("name what is to be switched", path="$.subject_id")
        narrowed = principal.workspace_id
        if narrowed is None:
            require(principal, right, tenant_id)
            return await self._scopes.for_principal(principal, tenant_id), subject
        require(principal, right, tenant_id, WorkspaceId(subject) if level == WORKSPACE else narrowed)
        scope = await self._scopes.for_principal(principal, tenant_id)
        if level != WORKSPACE:
            async with scope:
                found = await scope.fetch_one(
                    self._statements["workspace_of"], scope.tenant_id, level, subject
                )
            if found is None or found["workspace_id"] != narrowed:
                raise NotFoundError(f"there is no such {order.level}")
        return scope, subject

    async def _commit(
        self,
        principal: Principal,
        order: SwitchOrder,
        scope: TenantScope,
        level: int,
        subject: str,
        switch_id: SwitchId,
    ) -> Row:
        for _ in range(UNDO_ATTEMPTS):
            epoch = await self._may_undo(principal, order, scope, level, subject)
            entry = self._journal.entry(
                scope,
                name=f"switch.{order.verb}",
                target=f"{order.level}/{subject}",
                detail={
                    "switch_id": switch_id,
                    "mode": order.mode,
                    "mode_expires_at": order.mode_expires_at,
                    "reason": order.reason,
                },
            )
            try:
                return await self._send(
                    switch_id,
                    "switch_scope",
                    *_arguments(order, scope, level, subject, switch_id, epoch, entry),
                )
            except StatementError as error:
                if error.sqlstate == "40001":
                    continue
                if error.sqlstate in {"P0002", "22021", "22000"}:
                    raise NotFoundError(f"there is no such {order.level}") from None
                raise
        raise SwitchedMeanwhileError(order.level)

    async def _commit_fleet(self, principal: Principal, order: SwitchOrder, switch_id: SwitchId) -> Row:
        return await self._send(
            switch_id,
            "switch_fleet",
            order.verb,
            order.mode,
            principal.principal_id,
            order.reason,
            switch_id,
        )

    async def _may_undo(
        self, principal: Principal, order: SwitchOrder, scope: TenantScope, level: int, subject: str
    ) -> int | None:
        """Check that nobody's word is overridden who outranks the asker; the epoch on which that was seen."""
        undone = _UNDONE_BY.get(order.verb)
        if undone is None:
            return None
        switches, undoes = undone
        async with scope:
            held = await find_holders(scope, level, subject, switches=switches, undoes=undoes)
        if held is None:
            raise NotFoundError(f"there is no such {order.level}")
        epoch, holders = held
        for holder in holders:
            require_undo(principal, holder)
        return epoch

    async def _send(self, switch_id: SwitchId, statement: str, *args: object) -> Row:
        """Commit on the reserved connection; when its answer is lost, look whether it took effect."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                row = await self._connection.fetch_one(self._statements[statement], *args)
            except LockTimeoutError:
                if attempt == ATTEMPTS:
                    raise StorageUnavailableError(
                        "somebody holds the scope's row: nothing was switched; see pg_stat_activity"
                    ) from None
            except StorageUnavailableError:
                found = await self._connection.fetch_one(self._history["find_switch"], switch_id)
                if found is not None:
                    return found
                if attempt == ATTEMPTS:
                    raise
            else:
                assert row is not None, "a switch answers its number"
                return row
        raise AssertionError("the last attempt raises or returns")


def _arguments(
    order: SwitchOrder,
    scope: TenantScope,
    level: int,
    subject: str,
    switch_id: SwitchId,
    epoch: int | None,
    entry: AdminEntry,
) -> tuple[object, ...]:
    return (
        scope.tenant_id,
        level,
        subject,
        order.verb,
        order.mode,
        order.mode_expires_at,
        scope.actor,
        order.reason,
        switch_id,
        epoch,
        entry.action_id,
        entry.name,
        entry.target,
        entry.detail,
        entry.instance_id,
        entry.content,
        entry.content_sha256,
    )


def _note(waiting: list[InstanceAnswer], still_stopped: list[StoppedScope]) -> str:
    if waiting:
        names = ", ".join(f"{answer.role} {answer.instance_id}" for answer in waiting)
        return f"unconfirmed: {names}"
    if still_stopped:
        names = ", ".join(f"{scope.level} {scope.subject_id}" for scope in still_stopped)
        return f"confirmed; recovery is staged, still stopped: {names}"
    return "confirmed"


def _storable(text: str) -> bool:
    """Whether the database can hold it as the name of something."""
    return text.isprintable() and 0 < len(text) <= REASON_CHARACTERS_MAX
