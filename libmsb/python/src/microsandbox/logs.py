"""Logs of a sandbox: the output of its main command, of jobs and of logged commands."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, Union

from . import types
from .errors import MicrosandboxError, MissedLogsError
from .times import milliseconds, rfc3339
from .tool import Host, Json, LineReader
from .types import LogReadSource, LogSource

LogSources = Iterable[Union[LogReadSource, LogSource, str]]


@dataclass(frozen=True)
class LogEntry:
    """An entry of a log. The entries of one source, joined, are its output byte for byte."""

    timestamp_ms: float | None
    """Milliseconds since 1970; `None` for the kernel and the supervisor process."""
    source: LogSource
    session_id: str | None
    """Identifier of the job or command; `None` for the main command."""
    cursor: str | None
    """Position after the entry, for `from_cursor`."""
    data: bytes

    def text(self) -> str:
        """Returns the data as text; bytes that are not UTF-8 are replaced."""
        return self.data.decode("utf-8", "replace")


def _entry(line: Json) -> LogEntry:
    text: Any = line.get("d", "")
    data = base64.b64decode(text) if line.get("e") == "b64" else str(text).encode()
    source = str(line.get("s"))
    known = {member.value for member in LogSource}
    return LogEntry(
        timestamp_ms=milliseconds(line.get("t")),
        source=LogSource(source) if source in known else LogSource.SYSTEM,
        session_id=line.get("id"),
        cursor=line.get("cursor"),
        data=data,
    )


def _arguments(
    name: str,
    sources: LogSources | None,
    since_ms: float | None,
    until_ms: float | None,
    job: str | None = None,
) -> list[str]:
    options = ["--format=json", "--cursors"]
    if sources is not None:
        words = [types.word(LogReadSource, "sources", str(source)).value for source in sources]
        if words:
            options.append(f"--source={','.join(words)}")
    if since_ms is not None:
        options.append(f"--since={rfc3339(since_ms)}")
    if until_ms is not None:
        options.append(f"--until={rfc3339(until_ms)}")
    if job is not None:
        options.append(f"--job={job}")
    return ["logs", *options, name]


class LogStream:
    """A stream of log entries. Iterate over it, or call `recv`."""

    def __init__(self, reader: LineReader) -> None:
        self._reader = reader
        self._ended = False

    @classmethod
    async def open(
        cls,
        host: Host,
        name: str,
        *,
        sources: LogSources | None = None,
        since_ms: float | None = None,
        from_cursor: str | None = None,
        until_ms: float | None = None,
        follow: bool = False,
        job: str | None = None,
    ) -> LogStream:
        """Opens a stream."""
        if since_ms is not None and from_cursor is not None:
            raise ValueError("give one of since_ms and from_cursor")
        args = _arguments(name, sources, since_ms, until_ms, job)
        if from_cursor is not None:
            args.insert(1, f"--after-cursor={from_cursor}")
        if follow:
            args.insert(1, "--follow")
        return cls(LineReader(await host.start(*args), tuple(args)))

    async def recv(self) -> LogEntry | None:
        """Returns the next entry; `None` at the end."""
        if self._ended:
            return None
        try:
            line = await self._reader.next()
        except MicrosandboxError as error:
            self._ended = True
            if "rotated" in error.message or "after-cursor" in (error.hint or ""):
                raise MissedLogsError(error.message, hint=error.hint) from None
            raise
        if line is None:
            self._ended = True
            return None
        return _entry(line)

    async def close(self) -> None:
        """Ends the stream."""
        self._ended = True
        await self._reader.close()

    def __aiter__(self) -> AsyncIterator[LogEntry]:
        return self

    async def __anext__(self) -> LogEntry:
        entry = await self.recv()
        if entry is None:
            await self.close()
            raise StopAsyncIteration
        return entry

    async def __aenter__(self) -> LogStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def read_logs(
    host: Host,
    name: str,
    *,
    tail: int | None = None,
    since_ms: float | None = None,
    until_ms: float | None = None,
    sources: LogSources | None = None,
    job: str | None = None,
) -> list[LogEntry]:
    """Returns the entries of a log, or the last `tail` of them."""
    most = None if tail is None else types.whole("tail", tail)
    entries: deque[LogEntry] = deque(maxlen=most)
    async with await LogStream.open(
        host, name, sources=sources, since_ms=since_ms, until_ms=until_ms, job=job
    ) as stream:
        async for entry in stream:
            entries.append(entry)
    return list(entries)
