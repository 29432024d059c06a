"""Commands on the terminal of this process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence

from .errors import MicrosandboxError
from .tool import Host


async def attach(
    host: Host,
    name: str,
    words: Sequence[str],
    *,
    cwd: str | None = None,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    detach_keys: str | None = None,
) -> int:
    """Runs a command on standard input and output of this process. Returns its exit code.

    With `detach_keys` the command is a job, which continues after these keys.
    """
    options: list[str] = []
    if sys.stdin.isatty() and sys.stdout.isatty():
        options.append("--tty")
    if cwd is not None:
        options.append(f"--workdir={cwd}")
    if user is not None:
        options.append(f"--user={user}")
    options += [f"--env={key}={value}" for key, value in (env or {}).items() if value]
    if detach_keys is None:
        return await _run(host, "exec", "--interactive", *options, name, "--", *words)
    started = await host.run(
        "exec", "--detach", "--interactive", *options, name, "--", *words
    )
    job = started.decode().strip()
    keys = f"--detach-keys={detach_keys}"
    return await _run(host, "attach", "--logs", keys, name, job)


async def _run(host: Host, *args: str) -> int:
    process = await asyncio.create_subprocess_exec(
        host.program, *args, env=host.environment()
    )
    try:
        code = await process.wait()
    except BaseException:
        process.terminate()
        await process.wait()
        raise
    if code == 125:
        raise MicrosandboxError(f"'msb {args[0]}' failed")
    return code
