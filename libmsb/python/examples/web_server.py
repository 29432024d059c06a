"""A web server in a sandbox, with a port of the host.

usage: python web_server.py [IMAGE]
"""

from __future__ import annotations

import asyncio
import socket
import sys
import urllib.request

from microsandbox import Sandbox

SERVER = "mkdir -p /www; echo hello from the guest > /www/index.html; httpd -f -p 80 -h /www"


def free_port() -> int:
    """Returns a port of the host that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> str:
    """Returns the body of a page."""
    with urllib.request.urlopen(url, timeout=5) as page:
        return str(page.read().decode())


async def main(image: str) -> str:
    """Serves a page. Returns its text."""
    port = free_port()
    async with await Sandbox.create(
        "example-web", image=image, ports={port: 80}, replace=True
    ) as sandbox:
        await sandbox.start_job("sh", ["-c", SERVER])
        for _ in range(100):
            try:
                text = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/")
                print(text, end="")
                return text
            except OSError:
                await asyncio.sleep(0.1)
        raise SystemExit("the server did not start")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "busybox"))
