"""Running commands in a sandbox: streams, input, time limits."""

from __future__ import annotations

import asyncio
import contextlib
import io
import signal as signals
from collections.abc import AsyncIterable, AsyncIterator
from typing import IO, Any, Union, cast

from . import frames, types, wire
from .client import Client
from .errors import (
    ExecTimeoutError,
    MicrosandboxError,
    ProtocolError,
    SandboxNotRunningError,
)
from .exec_options import ExecOptions, Stdin, StdinSource
from .exec_output import (
    ExecEvent,
    ExecOutput,
    ExitedEvent,
    StartedEvent,
    StderrEvent,
    StdoutEvent,
    exit_code,
    not_started,
)
from .tool import Json, shielded
from .types import ExitStatus

KILL_SECONDS = 2.0
"""Time for a killed command to end, before its call is given up."""
STDIN_CHUNK_BYTES = 256 * 1024
"""Bytes that are read at once from a file that is the input of a command."""


class ExecSink:
    """Standard input of a running command."""

    def __init__(self, call: wire.Call) -> None:
        self._call = call
        self._closed = False

    async def write(self, data: Union[bytes, str]) -> None:
        """Writes bytes, or text as UTF-8. Waits while the command does not read."""
        if self._closed:
            raise ValueError("the input is closed")
        await self._call.write(data.encode() if isinstance(data, str) else data)

    async def close(self) -> None:
        """Ends the input."""
        if not self._closed:
            self._closed = True
            self._call.close_stdin()

    async def __aenter__(self) -> ExecSink:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class ExecHandle:
    """A running command.

    Iterate over it, or call `recv`, for its events; `wait` and `collect` wait for its end. With
    `async with`, the command is killed at the end of the block if it still runs.
    """

    def __init__(self, call: wire.Call, options: ExecOptions, name: str) -> None:
        self._call = call
        self._options = options
        self._name = name
        self._started: StartedEvent | None = None
        self._status: ExitStatus | None = None
        self._oom_killed = False
        self._pump: asyncio.Task[None] | None = None
        self._sink: ExecSink | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._timed_out = False

    @classmethod
    async def start(cls, client: Client, options: ExecOptions, name: str) -> ExecHandle:
        """Starts a command and waits until it runs."""
        call = await client.call(options.request(), options.needs())
        handle = cls(call, options, name)
        try:
            await handle._wait_for_start()
        except asyncio.CancelledError:
            await handle._abandon()
            raise
        return handle

    async def _wait_for_start(self) -> None:
        options = self._options
        if options.timeout is not None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(options.timeout, self._time_out)
        item = await self._call.receive()
        if not isinstance(item, frames.Event):
            raise ProtocolError("output before the start of the command")
        if item.message.get("type") == "failed":
            self._stop_timer()
            raise not_started(item.message, options.cmd)
        self._started = StartedEvent(pid=int(item.message.get("pid") or 0))
        if not options.wants_stdin:
            return
        if isinstance(options.stdin, Stdin) and options.stdin.kind == "pipe":
            self._sink = ExecSink(self._call)
        else:
            self._pump = asyncio.ensure_future(_pump(self._call, options.stdin))

    @property
    def id(self) -> str:
        """Identifier of the call on its connection."""
        return str(self._call.stream)

    @property
    def pid(self) -> int:
        """Process ID in the guest."""
        return (self._started.pid if self._started else None) or self._pid

    _pid = 0

    def take_stdin(self) -> ExecSink | None:
        """Returns the input of a command with `Stdin.pipe()`, once; then `None`."""
        sink, self._sink = self._sink, None
        return sink

    async def recv(self) -> ExecEvent | None:
        """Returns the next event; `None` after the last one."""
        if self._started is not None:
            started, self._started = self._started, None
            self._pid = started.pid or 0
            return started
        while self._status is None:
            item = await self._next()
            if isinstance(item, frames.Event):
                if item.last:
                    return ExitedEvent(code=self._end(item.message))
            elif item.bytes:
                kind = StderrEvent if item.channel == frames.STDERR else StdoutEvent
                return kind(data=item.bytes)
        return None

    async def wait(self) -> ExitStatus:
        """Waits for the end. Output is dropped."""
        while self._status is None:
            item = await self._next()
            if isinstance(item, frames.Event) and item.last:
                self._end(item.message)
        return self._status

    async def collect(self) -> ExecOutput:
        """Waits for the end and returns the output."""
        most = self._options.max_output_bytes
        stdout, stderr = _Capture(most), _Capture(most)
        try:
            while self._status is None:
                item = await self._next()
                if isinstance(item, frames.Data):
                    (stderr if item.channel == frames.STDERR else stdout).add(item.bytes)
                elif item.last:
                    self._end(item.message)
        except ExecTimeoutError as error:
            error.stdout, error.stderr = stdout.value(), stderr.value()
            raise
        except SandboxNotRunningError as error:
            error.stdout, error.stderr = stdout.value(), stderr.value()
            raise
        return ExecOutput(
            self._status.code,
            stdout.value(),
            stderr.value(),
            stdout.truncated or stderr.truncated,
            self._oom_killed,
        )

    async def signal(self, signal: int) -> None:
        """Sends a signal, by its number on Linux, to the process group of the command."""
        self._call.control({"type": "signal", "signal": types.whole("signal", signal, 1)})

    async def kill(self) -> None:
        """Kills the process group of the command. `wait` waits for its end."""
        await self.signal(signals.SIGKILL)

    async def resize(self, rows: int, cols: int) -> None:
        """Sets the size of the command's terminal."""
        size = {"rows": types.whole("rows", rows, 1), "cols": types.whole("cols", cols, 1)}
        self._call.control({"type": "resize", **size})

    async def close(self) -> None:
        """Kills the command if it still runs, and waits until it has ended."""
        await self._abandon()

    def __aiter__(self) -> AsyncIterator[ExecEvent]:
        return self

    async def __anext__(self) -> ExecEvent:
        event = await self.recv()
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> ExecHandle:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._abandon()

    async def _next(self) -> frames.Incoming:
        try:
            item = self._call.receive_nowait()
            item = item if item is not None else await self._call.receive()
        except MicrosandboxError:
            self._finish()
            if self._timed_out:
                raise self._timeout() from None
            raise
        if self._timed_out and isinstance(item, frames.Event) and item.last:
            self._end(item.message)
            raise self._timeout()
        return item

    def _end(self, message: Json) -> int:
        code = exit_code(message)
        self._status = ExitStatus(code, code == 0)
        self._oom_killed = bool(message.get("oom_killed"))
        self._finish()
        return code

    def _finish(self) -> None:
        self._stop_timer()
        if self._pump is not None:
            self._pump.cancel()

    def _stop_timer(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        """Kills the command. Its last event, or the end of the call, raises the error."""
        self._timed_out = True
        if not self._call.ended:
            self._call.control({"type": "signal", "signal": int(signals.SIGKILL)})
            loop = asyncio.get_running_loop()
            # A command that does not end holds no caller.
            self._deadline = loop.call_later(KILL_SECONDS, self._call.finish)

    def _timeout(self) -> ExecTimeoutError:
        timeout = self._options.timeout or 0.0
        message = f"'{self._options.cmd}' was killed after {timeout:g} s"
        return ExecTimeoutError(message, timeout=timeout)

    async def _abandon(self) -> None:
        self._finish()
        if self._call.ended:
            return
        self._call.abandon()
        await shielded(self._call.wait_ended(KILL_SECONDS))


class _Capture:
    """Output up to a number of bytes."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._pieces: list[bytes] = []
        self._length = 0
        self.truncated = False

    def add(self, data: bytes) -> None:
        if self._most is not None and self._length + len(data) > self._most:
            self.truncated = True
            data = data[: self._most - self._length]
        if data:
            self._pieces.append(data)
            self._length += len(data)

    def value(self) -> bytes:
        return b"".join(self._pieces)


async def _pump(call: wire.Call, source: StdinSource | None) -> None:
    """Writes an input to a command and ends it."""
    try:
        async for data in chunks(source):
            await call.write(data)
    finally:
        call.close_stdin()


async def chunks(source: StdinSource | None) -> AsyncIterator[bytes]:
    """Iterates over the bytes of an input. A file is read in a thread."""
    if isinstance(source, Stdin):
        source = source.data
    if source is None:
        return
    if isinstance(source, str):
        yield source.encode()
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield bytes(source)
    elif isinstance(source, AsyncIterable):
        async for data in source:
            yield data
    elif isinstance(source, io.BytesIO):
        yield source.read()
    else:
        file = cast("IO[Any]", source)
        while data := await asyncio.to_thread(file.read, STDIN_CHUNK_BYTES):
            yield data.encode() if isinstance(data, str) else data


async def run(client: Client, options: ExecOptions, name: str) -> ExecOutput:
    """Runs a command to its end. A cancellation kills it in the guest."""
    handle = await ExecHandle.start(client, options, name)
    try:
        return await handle.collect()
    except asyncio.CancelledError:
        await handle.close()
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            handle._finish()  # pyright: ignore[reportPrivateUsage]
