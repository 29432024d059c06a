"""Handles of sandboxes: state, configuration, and what needs no connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import types
from .errors import (
    MicrosandboxError,
    SandboxNotRunningError,
)
from .logs import LogEntry, LogSources, LogStream, read_logs
from .metrics import MetricsStream, SandboxMetrics, read_metrics
from .snapshot import Snapshot
from .times import milliseconds
from .tool import Host, Json, LineReader
from .types import SandboxStatus, StrPath

if TYPE_CHECKING:
    from .sandbox import Sandbox

STOP_SECONDS = 10.0
"""Time for a sandbox to stop before it is killed."""
NAMES_AT_ONCE = 500
"""Names in the arguments of one program."""


@dataclass(frozen=True)
class SandboxStopResult:
    """The end of a sandbox."""

    name: str
    status: SandboxStatus
    exit_code: int | None
    """Exit code of the main command, if it ended."""
    signal: int | None
    """The signal that killed the main command."""
    reason: str
    """Reason of the end, as in msb-state(5)."""
    clean: bool
    """True if the guest's file systems were flushed and clean."""


def status_of(word: Any) -> SandboxStatus:
    """Returns the status of a word of the programs. Broken files count as a crash."""
    try:
        return SandboxStatus(str(word).lower())
    except ValueError:
        return SandboxStatus.CRASHED


async def stop(host: Host, name: str, timeout: float) -> None:
    """Stops a sandbox, and kills it when the time is up. 0 kills it at once."""
    limit = ["--force"] if timeout == 0 else [f"--timeout={types.duration('timeout', timeout)}"]
    try:
        await host.run("stop", "--quiet", *limit, "--", name)
    except SandboxNotRunningError:
        # It has ended already, which is what was asked for.
        return


async def wait_until_stopped(
    host: Host, name: str, timeout: float | None = None
) -> SandboxStopResult:
    """Waits for the end of a sandbox."""
    line: Json = await asyncio.wait_for(host.json("wait", "--format=json", "--", name), timeout)
    code = line.get("exit_code")
    return SandboxStopResult(
        name=name,
        status=status_of(line.get("status")),
        exit_code=code,
        signal=code - 128 if isinstance(code, int) and 128 < code < 193 else None,
        reason=str(line.get("reason") or ""),
        clean=bool(line.get("clean")),
    )


class SandboxHandle:
    """A sandbox by its name, with its state at one moment. `refresh` reads it again."""

    def __init__(self, host: Host, document: Json) -> None:
        self._host = host
        self._document = document

    @classmethod
    async def find(cls, name: str) -> SandboxHandle:
        """Returns the handle of a sandbox."""
        host = Host.current()
        # Settings that the form has no field for are no news here.
        args = ("inspect", "--error", "--format=json", "--as=microsandbox", "--")
        return cls(host, await host.json(*args, types.text("name", name)))

    @classmethod
    async def all(cls, labels: Mapping[str, str] | None = None) -> list[SandboxHandle]:
        """Returns the handles of all sandboxes with these labels, sorted by name."""
        host = Host.current()
        options = [
            f"--label={types.text('labels', key)}={types.text('labels', value)}"
            for key, value in (labels or {}).items()
        ]
        rows: list[Json] = await host.json("ls", "--format=json", *options)
        names = [str(row["name"]) for row in rows if not row.get("error")]
        found: dict[str, Json] = {}
        for at in range(0, len(names), NAMES_AT_ONCE):
            for document in await _inspect(host, names[at : at + NAMES_AT_ONCE]):
                found[str(document["name"])] = document
        # A sandbox that was removed meanwhile is missing; one that cannot be read has no config.
        listed = [found.get(str(row["name"]), row if row.get("error") else None) for row in rows]
        return [cls(host, document) for document in listed if document is not None]

    @property
    def name(self) -> str:
        """Name."""
        return str(self._document["name"])

    @property
    def status(self) -> SandboxStatus:
        """State, when the handle was made."""
        return status_of(self._document.get("status"))

    @property
    def config_json(self) -> str:
        """Configuration as JSON, in the form that `msb create --from-microsandbox` reads."""
        return json.dumps(self._document.get("config") or {})

    @property
    def created_at(self) -> float | None:
        """Time of the creation, in milliseconds since 1970."""
        return milliseconds(self._document.get("created_at"))

    @property
    def updated_at(self) -> float | None:
        """Time at which the state was entered, in milliseconds since 1970."""
        return milliseconds(self._document.get("updated_at"))

    def config(self) -> dict[str, Any]:
        """Returns the configuration."""
        return dict(self._document.get("config") or {})

    async def refresh(self) -> SandboxHandle:
        """Returns a new handle with the state of now."""
        return await SandboxHandle.find(self.name)

    async def metrics(self) -> SandboxMetrics:
        """Returns the last sample of the resource usage."""
        return await read_metrics(self._host, self.name)

    async def metrics_stream(self, interval: float = 1.0) -> MetricsStream:
        """Opens a stream of samples, every `interval` seconds."""
        return await MetricsStream.open(self._host, self.name, interval)

    async def logs(
        self,
        *,
        tail: int | None = None,
        since_ms: float | None = None,
        until_ms: float | None = None,
        sources: LogSources | None = None,
    ) -> list[LogEntry]:
        """Returns the log. The sandbox need not run."""
        return await read_logs(
            self._host,
            self.name,
            tail=tail,
            since_ms=since_ms,
            until_ms=until_ms,
            sources=sources,
        )

    async def log_stream(
        self,
        *,
        sources: LogSources | None = None,
        since_ms: float | None = None,
        from_cursor: str | None = None,
        until_ms: float | None = None,
        follow: bool = False,
    ) -> LogStream:
        """Opens a stream of the log, from the start, a time or a cursor."""
        return await LogStream.open(
            self._host,
            self.name,
            sources=sources,
            since_ms=since_ms,
            from_cursor=from_cursor,
            until_ms=until_ms,
            follow=follow,
        )

    async def start(self, *, detached: bool = False) -> Sandbox:
        """Starts the sandbox."""
        from .sandbox import Sandbox

        return await Sandbox.start(self.name, detached=detached)

    async def connect(self, *, timeout: float = 10.0) -> Sandbox:
        """Returns the running sandbox, without owning it."""
        from .sandbox import Sandbox

        return await Sandbox.connect(self.name, timeout=timeout)

    async def connect_with_timeout(self, timeout: float) -> Sandbox:
        """Returns the running sandbox, without owning it."""
        return await self.connect(timeout=timeout)

    async def stop(self, *, timeout: float = STOP_SECONDS) -> None:
        """Stops the sandbox, and kills it when the time is up."""
        await stop(self._host, self.name, timeout)

    async def stop_with_timeout(self, timeout: float) -> None:
        """Stops the sandbox, and kills it when the time is up; 0 kills it at once."""
        await stop(self._host, self.name, timeout)

    async def kill(self) -> None:
        """Kills the sandbox."""
        await stop(self._host, self.name, 0)

    async def remove(self) -> None:
        """Removes the sandbox. Raises SandboxStillRunningError."""
        await self._host.run("rm", "--", self.name)

    async def wait_until_stopped(self, *, timeout: float | None = None) -> SandboxStopResult:
        """Waits for the end of the sandbox."""
        return await wait_until_stopped(self._host, self.name, timeout)

    async def snapshot(self, name: str) -> Snapshot:
        """Creates a snapshot of the sandbox."""
        return await Snapshot.create(self.name, name=name)

    async def snapshot_to(self, path: StrPath) -> Snapshot:
        """Creates a snapshot of the sandbox in a new directory."""
        return await Snapshot.create(self.name, path=path)

    def __repr__(self) -> str:
        return f"<SandboxHandle {self.name!r} {self.status.value}>"


async def _inspect(host: Host, names: list[str]) -> list[Json]:
    """Returns the documents of sandboxes. One that was removed meanwhile is missing."""
    if not names:
        return []
    args = ("inspect", "--error", "--format=json", "--as=microsandbox", "--", *names)
    if len(names) == 1:
        try:
            return [await host.json(*args)]
        except MicrosandboxError:
            return []
    reader = LineReader(await host.start(*args), args)
    found: list[Json] = []
    try:
        async for document in reader.lines():
            found.append(document)
    except MicrosandboxError:
        if not found:
            raise
    finally:
        await reader.close()
    return found


__all__ = [
    "SandboxHandle",
    "SandboxStopResult",
    "status_of",
    "stop",
    "wait_until_stopped",
]
