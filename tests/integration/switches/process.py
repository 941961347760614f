"""A gateway of its own for the tests: an instance with streams, which says each thing it does in a line.

Lines out: ``ready ID``, ``sent NAME`` (a byte would have gone upstream), ``refused NAME``, ``ended NAME``.
Lines in: ``begin NAME TENANT``: from now on that action tries to send each 5 ms.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from tenantry.core.clock import SystemClock
from tenantry.core.errors import LeaseLapsedError
from tenantry.core.ids import AgentId, RunId, TenantId, WorkspaceId
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.database import PoolSizes, Shard
from tenantry.storage.seal import RootKey
from tenantry.switches.board import LiveKeys
from tenantry.switches.guard import StoppedError
from tenantry.switches.instance import Instance


def say(*words: str) -> None:
    print(*words, flush=True)


async def act(instance: Instance, name: str, tenant: str) -> None:
    keys = LiveKeys(TenantId(tenant), WorkspaceId("support"), AgentId("helper"), RunId(name))
    try:
        async with instance.live(keys) as guard:
            while True:
                guard.check()
                say("sent", name)
                await asyncio.sleep(0.005)
    except LeaseLapsedError:
        say("refused", name)
    except StoppedError:
        say("ended", name)


async def main() -> None:
    clock = SystemClock()
    target = msgspec.json.decode(sys.argv[1], type=DatabaseTarget)
    sizes = PoolSizes(gate=0, app=1, platform=0, control=1)
    shard = await Shard.open(target, RootKey(bytes(range(32))), sizes, clock)
    instance = Instance(await shard.control_connection(), clock, role="gateway", address="child")
    await instance.start()
    say("ready", instance.instance_id)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        _, name, tenant = line.decode().split()
        tasks.add(asyncio.create_task(act(instance, name, tenant)))
    await instance.stop()
    await shard.close()


if __name__ == "__main__":
    asyncio.run(main())
