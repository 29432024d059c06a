"""Results and events of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from . import types
from .errors import ExecFailedError, MicrosandboxError
from .tool import Json

_ERRNO = {"not_found": 2, "permission_denied": 13, "not_executable": 8, "resource_limit": 11}


@dataclass(frozen=True)
class ExecOutput:
    """Result of a command that has ended."""

    exit_code: int
    """Exit code; 128 + n if signal n killed the command."""
    stdout_bytes: bytes
    """Standard output."""
    stderr_bytes: bytes
    """Standard error."""
    truncated: bool = False
    """True if a stream was longer than `max_output_bytes`."""
    oom_killed: bool = False
    """True if the guest's kernel killed the command for lack of memory."""

    @property
    def success(self) -> bool:
        """True if the exit code is 0."""
        return self.exit_code == 0

    @property
    def stdout_text(self) -> str:
        """Standard output as text. Raises UnicodeDecodeError if it is not UTF-8."""
        return self.stdout_bytes.decode()

    @property
    def stderr_text(self) -> str:
        """Standard error as text. Raises UnicodeDecodeError if it is not UTF-8."""
        return self.stderr_bytes.decode()

    def stdout(self, errors: str = "strict") -> str:
        """Returns standard output as text; `errors` is that of bytes.decode."""
        return self.stdout_bytes.decode("utf-8", errors)

    def stderr(self, errors: str = "strict") -> str:
        """Returns standard error as text; `errors` is that of bytes.decode."""
        return self.stderr_bytes.decode("utf-8", errors)


@dataclass(frozen=True)
class ExecEvent:
    """An event of a command. The subclasses name its kind; so does `event_type`."""

    event_type: ClassVar[str] = ""
    pid: int | None = None
    """Process ID in the guest, of a started event."""
    data: bytes | None = None
    """Output, of a stdout or stderr event."""
    code: int | None = None
    """Exit code, of an exited event."""


@dataclass(frozen=True)
class StartedEvent(ExecEvent):
    """The command runs."""

    event_type: ClassVar[str] = "started"


@dataclass(frozen=True)
class StdoutEvent(ExecEvent):
    """Bytes of standard output."""

    event_type: ClassVar[str] = "stdout"


@dataclass(frozen=True)
class StderrEvent(ExecEvent):
    """Bytes of standard error."""

    event_type: ClassVar[str] = "stderr"


@dataclass(frozen=True)
class ExitedEvent(ExecEvent):
    """Last event: the command has ended."""

    event_type: ClassVar[str] = "exited"


def exit_code(message: Json) -> int:
    """Returns the exit code of a last event, as shells have it."""
    signal = message.get("signal")
    return 128 + int(signal) if signal is not None else int(message.get("code") or 0)


def not_started(message: Json, cmd: str) -> MicrosandboxError:
    """Returns the exception for a command that was not started."""
    kind, why = str(message.get("kind", "other")), str(message.get("message", ""))
    if kind == "unsupported_operation":
        return types.unsupported(why or "exec")
    return ExecFailedError(
        f"cannot run '{cmd}': {why}",
        kind=kind,
        errno=_ERRNO.get(kind),
        stage={"bad_cwd": "cwd", "user_not_found": "user", "bad_args": "args"}.get(kind, "start"),
    )
