"""A pool of sandboxes from one snapshot, which are ready before they are needed.

usage: python pool.py [IMAGE]

The snapshot is prepared once. Each sandbox serves one task and is then replaced by a new one, so
that tasks share nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from microsandbox import Sandbox, Snapshot

SNAPSHOT = "example-pool"


class Pool:
    """Sandboxes that are ready."""

    def __init__(self, snapshot: str, size: int) -> None:
        self._snapshot = snapshot
        self._numbers = itertools.count()
        self._ready: asyncio.Queue[asyncio.Task[Sandbox]] = asyncio.Queue()
        for _ in range(size):
            self._add()

    def _add(self) -> None:
        name = f"example-pool-{next(self._numbers)}"
        work = Sandbox.create(name, snapshot=self._snapshot, replace=True)
        self._ready.put_nowait(asyncio.create_task(work))

    @asynccontextmanager
    async def sandbox(self) -> AsyncGenerator[Sandbox, None]:
        """Lends a sandbox, which is removed afterwards."""
        task = await self._ready.get()
        self._add()
        async with await task as sandbox:
            yield sandbox

    async def close(self) -> None:
        """Removes the sandboxes that wait."""
        while not self._ready.empty():
            async with await self._ready.get_nowait():
                pass


async def prepare(image: str) -> None:
    """Creates the snapshot, with what every task needs."""
    async with await Sandbox.create("example-pool-setup", image=image, replace=True) as sandbox:
        await sandbox.fs.write("/root/task", "#!/bin/sh\necho task $1\n", mode=0o755)
        await sandbox.stop()
        await Snapshot.create("example-pool-setup", name=SNAPSHOT, force=True)


async def main(image: str) -> list[str]:
    """Runs three tasks by a pool of two. Returns their output."""
    await prepare(image)
    pool = Pool(SNAPSHOT, 2)

    async def work(number: int) -> str:
        async with pool.sandbox() as sandbox:
            return (await sandbox.exec("/root/task", [str(number)])).stdout_text.strip()

    try:
        done = await asyncio.gather(*(work(number) for number in range(3)))
    finally:
        await pool.close()
        await Snapshot.remove(SNAPSHOT)
    print(done)
    return done


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "alpine:3.20"))
