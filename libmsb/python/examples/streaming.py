"""Streaming: the output of a command while it runs.

usage: python streaming.py [IMAGE]
"""

from __future__ import annotations

import asyncio
import sys

from microsandbox import ExitedEvent, Sandbox, StderrEvent, StdoutEvent

SCRIPT = "for n in 1 2 3; do echo step $n; sleep 0.2; done; echo done >&2; exit 4"


async def main(image: str) -> int:
    """Prints each event. Returns the exit code of the command."""
    async with await Sandbox.create("example-streaming", image=image, replace=True) as sandbox:
        code = -1
        async for event in await sandbox.shell_stream(SCRIPT):
            match event:
                case StdoutEvent(data=bytes(data)):
                    print("out:", data.decode().strip())
                case StderrEvent(data=bytes(data)):
                    print("err:", data.decode().strip())
                case ExitedEvent(code=int(exit_code)):
                    code = exit_code
                case _:
                    pass
        print("exit code:", code)
        return code


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "python:3.12-slim"))
