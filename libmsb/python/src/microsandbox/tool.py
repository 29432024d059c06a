"""Programs of msb: where they are, how they are run, and their errors.

A program prints data on standard output and one JSON object per line on standard error. What a
caller passes as a secret goes through standard input, never through arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import errors
from .errors import MicrosandboxError, ProgramNotFoundError, UnsupportedOperationError

LOG = logging.getLogger("microsandbox")
"""Warnings of the programs."""

STOP_SECONDS = 2.0
"""Time for a program to end after SIGTERM, when its call is cancelled."""
LINE_BYTES_MAX = 64 << 20
"""Longest JSON line that is read."""

Json = dict[str, Any]
"""A JSON object."""

_ERRORS: dict[str, type[MicrosandboxError]] = {
    "SandboxNotFound": errors.SandboxNotFoundError,
    "SandboxAlreadyExists": errors.SandboxAlreadyExistsError,
    "SandboxStillRunning": errors.SandboxStillRunningError,
    "SandboxNotRunning": errors.SandboxNotRunningError,
    "ImageNotFound": errors.ImageNotFoundError,
    "ImageInUse": errors.ImageInUseError,
    "BootFailed": errors.BootStartError,
    "MetricsDisabled": errors.MetricsDisabledError,
    "UnsupportedOperation": errors.UnsupportedOperationError,
    "Usage": errors.InvalidConfigError,
    "InvalidConfig": errors.InvalidConfigError,
    "VolumeNotFound": errors.VolumeNotFoundError,
    "VolumeAlreadyExists": errors.VolumeAlreadyExistsError,
    "VolumeInUse": errors.VolumeInUseError,
    "SnapshotNotFound": errors.SnapshotNotFoundError,
    "SnapshotAlreadyExists": errors.SnapshotAlreadyExistsError,
    "SnapshotSandboxRunning": errors.SnapshotSandboxRunningError,
    "SnapshotImageMissing": errors.SnapshotImageMissingError,
    "SnapshotIntegrity": errors.SnapshotIntegrityError,
    "PullFailed": errors.ImagePullFailedError,
}

_path: str | None = None


def set_program(path: str | None) -> None:
    """Sets the path of the program `msb`; `None` searches it again."""
    global _path
    _path = path


def find_program() -> str:
    """Returns the path of the program `msb`: the one that was set, `MSB_PATH`, or of `PATH`."""
    named = _path or os.environ.get("MSB_PATH")
    found = shutil.which(named or "msb")
    if found is None:
        where = repr(named) if named else "PATH"
        raise ProgramNotFoundError(
            f"cannot find the program 'msb' in {where}",
            hint="install msb, or set MSB_PATH to its path",
        )
    return os.path.abspath(found)


@dataclass(frozen=True)
class Host:
    """The programs and the state directory that a call uses."""

    program: str
    home: str | None
    runtime: str | None = None

    @classmethod
    def current(cls) -> Host:
        """Returns what the environment names now."""
        runtime = os.environ.get("XDG_RUNTIME_DIR") or None
        return cls(find_program(), os.environ.get("MSB_HOME") or None, runtime)

    def environment(self, more: dict[str, str] | None = None) -> dict[str, str]:
        """Returns the environment of a program."""
        environment = {**os.environ, "MSB_ERRORS": "json", **(more or {})}
        for name, value in (("MSB_HOME", self.home), ("XDG_RUNTIME_DIR", self.runtime)):
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        return environment

    def socket(self, name: str) -> str:
        """Returns the path of a sandbox's socket, as in msb-state(5)."""
        if self.home is None and self.runtime is not None:
            with contextlib.suppress(OSError):
                if os.stat(self.runtime).st_uid == os.getuid():
                    return os.path.join(self.runtime, "msb", name, "agent.sock")
        home = self.home or os.path.join(os.path.expanduser("~"), ".msb")
        return os.path.join(home, "run", name, "agent.sock")

    async def run(
        self,
        *args: str,
        stdin: bytes | None = None,
        descriptors: Sequence[int] = (),
        more: dict[str, str] | None = None,
    ) -> bytes:
        """Runs `msb` with these arguments to its end. Returns its standard output."""
        process = await self.start(
            *args, stdin=stdin is not None, descriptors=descriptors, more=more
        )
        try:
            output, notes = await process.communicate(stdin)
        except BaseException:
            await end(process)
            raise
        report(notes)
        if process.returncode:
            raise failure(args, notes, process.returncode)
        return output

    async def json(self, *args: str) -> Any:
        """Runs `msb` and returns the JSON document that it prints."""
        return parse(args, await self.run(*args))

    async def start(
        self,
        *args: str,
        stdin: bool = False,
        descriptors: Sequence[int] = (),
        more: dict[str, str] | None = None,
    ) -> asyncio.subprocess.Process:
        """Starts `msb` with these arguments."""
        try:
            return await asyncio.create_subprocess_exec(
                self.program,
                *args,
                stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=tuple(descriptors),
                env=self.environment(more),
                limit=LINE_BYTES_MAX,
                # A key such as Ctrl-C reaches the caller, which ends the program itself.
                start_new_session=True,
            )
        except FileNotFoundError:
            raise ProgramNotFoundError(f"cannot find the program '{self.program}'") from None
        except OSError as error:
            raise errors.IoError(f"cannot start '{self.program}': {error}") from error


async def end(process: asyncio.subprocess.Process) -> None:
    """Ends a program: by SIGTERM, then by SIGKILL. A cancellation does not shorten this."""
    await shielded(_end(process))


async def _end(process: asyncio.subprocess.Process) -> None:
    for stop in (process.terminate, process.kill):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            stop()
        with contextlib.suppress(asyncio.TimeoutError):
            # The loop goes on reading what the program still writes, so that it can end.
            await asyncio.wait_for(process.wait(), STOP_SECONDS)


async def shielded(work: Any) -> Any:
    """Waits for work that a cancellation must not stop. Passes the cancellation on afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except BaseException:  # the result is read below
            break
    if cancelled is not None:
        task.exception()
        raise cancelled
    return task.result()


@dataclass
class LineReader:
    """JSON lines of a running program."""

    process: asyncio.subprocess.Process
    args: tuple[str, ...]
    _notes: asyncio.Task[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.process.stderr is not None:
            self._notes = asyncio.ensure_future(self.process.stderr.read())

    async def next(self) -> Json | None:
        """Returns the next object; `None` at the end of a program that succeeded."""
        assert self.process.stdout is not None
        while True:
            try:
                line = await self.process.stdout.readline()
            except ValueError as error:
                raise errors.ProtocolError(f"a line of the program is too long: {error}") from None
            if not line:
                break
            if line.strip():
                value = parse(self.args, line)
                if not isinstance(value, dict):
                    raise errors.ProtocolError("the program printed no JSON object")
                return value  # pyright: ignore[reportUnknownVariableType]
        code = await self.process.wait()
        notes = await self._notes if self._notes is not None else b""
        report(notes)
        if code:
            raise failure(self.args, notes, code)
        return None

    async def lines(self) -> AsyncIterator[Json]:
        """Iterates over the objects."""
        while (value := await self.next()) is not None:
            yield value

    async def close(self) -> None:
        """Ends the program."""
        if self.process.returncode is None:
            await end(self.process)
        if self._notes is not None:
            self._notes.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._notes


def parse(args: Iterable[str], output: bytes) -> Any:
    """Parses a JSON document of a program."""
    try:
        return json.loads(output)
    except ValueError:
        name = " ".join(["msb", *list(args)[:2]])
        raise errors.ProtocolError(f"'{name}' printed no JSON") from None


def report(notes: bytes) -> None:
    """Logs the warnings of a program."""
    for line in _objects(notes):
        if "warning" in line:
            LOG.warning("%s: %s", line.get("tool", "msb"), line["warning"])


def failure(args: Sequence[str], notes: bytes, code: int) -> MicrosandboxError:
    """Returns the exception for a program that failed: its last error line."""
    reported = [line for line in _objects(notes) if "error" in line]
    if not reported:
        name = " ".join(["msb", *args[:1]])
        text = notes.decode("utf-8", "replace").strip()[-2000:]
        ended = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
        return MicrosandboxError(f"'{name}' {ended}{': ' + text if text else ''}")
    last = reported[-1]
    hints = [line["hint"] for line in _objects(notes) if line.get("hint")]
    message, hint = str(last["error"]), hints[-1] if hints else None
    kind = _ERRORS.get(str(last.get("code")), MicrosandboxError)
    if kind is UnsupportedOperationError:
        return UnsupportedOperationError(message, hint=hint, fields=fields_of(message))
    if kind is MicrosandboxError and last.get("tool") == "msb-image" and args[:1] != ("image",):
        kind = errors.ImagePullFailedError
    return kind(message, hint=hint)


def fields_of(message: str) -> tuple[str, ...]:
    """Returns the names in `… unsupported fields: NAME (reason), NAME (reason)`."""
    _, found, listed = message.partition("unsupported fields: ")
    if not found:
        return ()
    names: list[str] = []
    depth = 0
    start = True
    for word in listed.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(":
            depth += 1
        elif word == ")":
            depth -= 1
        elif depth == 0 and word == ",":
            start = True
        elif depth == 0 and start:
            names.append(word.rstrip(","))
            start = False
    return tuple(names)


def _objects(notes: bytes) -> list[Json]:
    found: list[Json] = []
    for line in notes.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)  # pyright: ignore[reportUnknownArgumentType]
    return found
