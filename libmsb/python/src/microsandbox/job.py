"""Jobs: commands that continue without a client.

A job survives this process. Another one finds it by `Sandbox.jobs`, reads what it printed meanwhile
from the log, and waits for it.
"""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass
from typing import Any

from . import frames, types
from .client import Client
from .command import ExecSink
from .errors import MicrosandboxError
from .exec_options import ExecOptions
from .exec_output import exit_code, not_started
from .logs import LogEntry, LogSources, LogStream, read_logs
from .times import milliseconds
from .tool import Host, Json
from .types import ExitStatus


@dataclass(frozen=True)
class JobInfo:
    """State of a job."""

    id: str
    status: str
    """`running`, `exited`, or `lost` if the sandbox ended before the command."""
    command: list[str]
    pid: int | None
    exit_code: int | None
    timed_out: bool
    oom_killed: bool
    started_at: float | None
    """Milliseconds since 1970."""
    ended_at: float | None
    """Milliseconds since 1970."""

    @classmethod
    def of(cls, fields: Json) -> JobInfo:
        """Returns the state of a JSON object."""
        return cls(
            id=str(fields["id"]),
            status=str(fields.get("status", "")).lower(),
            command=[str(word) for word in fields.get("command") or ()],
            pid=fields.get("pid"),
            exit_code=fields.get("exit_code"),
            timed_out=bool(fields.get("timed_out")),
            oom_killed=bool(fields.get("oom_killed")),
            started_at=milliseconds(fields.get("started_at")),
            ended_at=milliseconds(fields.get("ended_at")),
        )


class Job:
    """A command that continues without a client."""

    def __init__(self, client: Client, host: Host, name: str, job: str) -> None:
        self.id = job
        self._client = client
        self._host = host
        self._name = name

    @classmethod
    async def start(
        cls, client: Client, host: Host, name: str, options: ExecOptions
    ) -> Job:
        """Starts a job."""
        request = {**options.request(), "job": True}
        request.pop("log", None)
        if options.timeout is not None:
            request["timeout_ms"] = max(1, int(options.timeout * 1000))
        answer = await client.ask(request, ("jobs", *options.needs()))
        if answer.get("type") == "failed":
            raise not_started(answer, options.cmd)
        return cls(client, host, name, str(answer["job"]))

    async def info(self) -> JobInfo:
        """Returns the state."""
        rows: list[Json] = await self._host.json("jobs", "--format=json", self._name, self.id)
        return JobInfo.of(rows[0])

    async def wait(self) -> ExitStatus:
        """Waits for the end. Raises if the sandbox ended before the job."""
        code = await self._attach_to_end()
        if code is None:
            raise MicrosandboxError(f"the sandbox ended before the job '{self.id}'")
        return ExitStatus(code, code == 0)

    async def _attach_to_end(self) -> int | None:
        try:
            call = await self._client.call({"op": "attach", "job": self.id}, ("jobs",))
        except MicrosandboxError:
            # The sandbox does not run: its record of the job stays.
            return (await self.info()).exit_code
        try:
            while True:
                item = await call.receive()
                if isinstance(item, frames.Event) and item.last:
                    recorded = (await self.info()).exit_code
                    if recorded is None and item.message.get("type") == "exited":
                        # The record is written after the event.
                        return exit_code(item.message)
                    return recorded
        finally:
            call.abandon()

    async def signal(self, signal: int) -> None:
        """Sends a signal, by its number on Linux, to the process group of the job."""
        number = types.whole("signal", signal, 1)
        answer = await self._client.ask(
            {"op": "signal", "job": self.id, "signal": number}, ("jobs",)
        )
        if answer.get("type") == "failed":
            raise not_started(answer, f"job {self.id}")

    async def kill(self) -> None:
        """Kills the process group of the job."""
        await self.signal(signals.SIGKILL)

    async def attach_stdin(self) -> ExecSink:
        """Returns the input of a job that was started with `Stdin.pipe()`. One client may write."""
        request: dict[str, Any] = {"op": "attach", "job": self.id, "stdin": True}
        return ExecSink(await self._client.call(request, ("jobs",)))

    async def logs(self, *, sources: LogSources | None = None) -> list[LogEntry]:
        """Returns what the job has printed."""
        return await read_logs(self._host, self._name, sources=sources, job=self.id)

    async def log_stream(
        self, *, from_cursor: str | None = None, follow: bool = True
    ) -> LogStream:
        """Opens a stream of what the job prints, from the start or after a cursor."""
        return await LogStream.open(
            self._host, self._name, from_cursor=from_cursor, follow=follow, job=self.id
        )
