"""Cancellation: time limits, partial output, and commands that end with their caller.

usage: python cancellation.py [IMAGE]
"""

from __future__ import annotations

import asyncio
import sys

from microsandbox import ExecTimeoutError, Sandbox


async def main(image: str) -> None:
    """Runs a command with a time limit, and cancels another one."""
    async with await Sandbox.create("example-cancel", image=image, replace=True) as sandbox:
        try:
            await sandbox.shell("echo half; sleep 600", timeout=1)
        except ExecTimeoutError as error:
            print("timed out after", error.timeout, "s with", error.stdout)

        task = asyncio.create_task(sandbox.exec("sleep", ["601"]))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        left = await sandbox.shell("ps | grep '[s]leep 60' || echo none")
        print("left in the guest:", left.stdout_text.strip())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "alpine:3.20"))
