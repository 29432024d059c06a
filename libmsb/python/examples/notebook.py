"""A notebook: calls without `await` while an event loop runs.

usage: python notebook.py [IMAGE]

A notebook runs its cells inside an event loop, where `asyncio.run` fails. `microsandbox.sync` works
there: its calls run in a loop of their own.
"""

from __future__ import annotations

import asyncio
import sys

from microsandbox.sync import Sandbox


async def cell(image: str) -> str:
    """A cell: it is run by a loop, and calls without `await`."""
    sandbox = Sandbox.create("example-notebook", image=image, replace=True)
    try:
        sandbox.fs.write("/root/x", "kept between cells")
        return sandbox.fs.read_text("/root/x")
    finally:
        sandbox.kill()
        sandbox.remove_persisted()


def main(image: str) -> str:
    """Runs a cell as a notebook does. Returns its result."""
    text = asyncio.run(cell(image))
    print(text)
    return text


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "alpine:3.20")
