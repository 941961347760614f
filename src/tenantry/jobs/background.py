"""All background jobs, put together on one reserved connection."""

from __future__ import annotations

from collections.abc import Callable

from tenantry.core.clock import Clock
from tenantry.jobs.confirm import ConfirmSwitches
from tenantry.jobs.leader import Leader
from tenantry.jobs.reaper import Reaper, Settle
from tenantry.jobs.runner import Jobs
from tenantry.jobs.runs import CloseRun, ExpireRuns
from tenantry.storage.database import Shard
from tenantry.storage.scope import Scopes


async def background_jobs(
    shard: Shard,
    clock: Clock,
    *,
    settle: Settle,
    close_run: CloseRun,
    on_fault: Callable[[str, Exception], None],
) -> Jobs:
    """The jobs of a shard, not yet started; takes one of its control connections, which holds the lease.

    `settle` and `close_run` are the gate's (`Ledger.settle`, `Runs.close`).
    """
    scopes = Scopes(shard, clock)
    connection = await shard.control_connection()
    return Jobs(
        Leader(connection),
        {
            "reaper": Reaper(scopes, connection, settle, clock),
            "expire_runs": ExpireRuns(scopes, close_run),
            "confirm_switches": ConfirmSwitches(connection),
        },
        clock,
        on_fault=on_fault,
    )
