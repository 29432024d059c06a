"""Options of a command, and its input."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, ClassVar, Union

from . import frames, types
from .tool import Json
from .types import Rlimit


@dataclass(frozen=True)
class Stdin:
    """Standard input of a command."""

    kind: str
    data: builtins.bytes | None = None

    @classmethod
    def null(cls) -> Stdin:
        """Returns no input, as from `/dev/null`."""
        return cls("null")

    @classmethod
    def pipe(cls) -> Stdin:
        """Returns a pipe: `ExecHandle.take_stdin` writes to it."""
        return cls("pipe")

    @classmethod
    def bytes(cls, data: Union[bytes, bytearray, memoryview]) -> Stdin:
        """Returns these bytes as the input."""
        return cls("bytes", bytes(data))


StdinSource = Union[
    Stdin, bytes, bytearray, memoryview, str, IO[bytes], IO[str], AsyncIterable[bytes]
]
"""Input of a command: bytes, text (UTF-8), a file object, an asynchronous iterator, or `Stdin`."""


@dataclass
class ExecOptions:
    """Checked options of a command."""

    cmd: str
    args: list[str]
    cwd: str | None = None
    user: str | None = None
    env: dict[str, str] | None = None
    timeout: float | None = None
    stdin: StdinSource | None = None
    tty: bool = False
    rlimits: list[Rlimit] | None = None
    log: bool = True
    max_output_bytes: int | None = None

    NAMES: ClassVar[frozenset[str]] = frozenset(
        {"args", "cwd", "user", "env", "timeout", "tty", "stdin", "stdin_data", "rlimits"}
        | {"log", "max_output_bytes"}
    )

    @classmethod
    def of(cls, cmd: str, args: ExecArgs, given: Mapping[str, Any]) -> ExecOptions:
        """Merges arguments and a mapping of options, and checks them."""
        types.text("cmd", cmd)
        merged: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        words: Any = args
        if isinstance(args, Mapping):
            unknown = sorted(set(args) - cls.NAMES)
            if unknown:
                raise TypeError(f"unknown options of a command: {', '.join(map(str, unknown))}")
            options = {key: value for key, value in args.items() if value is not None}
            words = options.pop("args", None)
            data = options.pop("stdin_data", None)
            if data is not None:
                options["stdin"] = data
            merged = {**options, **merged}
        if isinstance(words, (str, bytes)):
            raise TypeError("args must be a list of str, not one text")
        listed = [types.text("args", word) for word in (words or ())]
        if (timeout := merged.get("timeout")) is not None:
            merged["timeout"] = types.seconds("timeout", timeout)
        if (most := merged.get("max_output_bytes")) is not None:
            types.whole("max_output_bytes", most)
        if isinstance(merged.get("stdin"), str) and merged["stdin"] in ("null", "pipe"):
            merged["stdin"] = Stdin(merged["stdin"])
        env = merged.get("env")
        if env is not None:
            for name, value in env.items():
                if not types.text("env", name) or "=" in name:
                    raise ValueError(f"{name!r} cannot be the name of a variable")
                types.text(f"env[{name!r}]", value)
        return cls(cmd, listed, **merged)

    @property
    def wants_stdin(self) -> bool:
        """True if the command gets an input."""
        return self.stdin is not None and not (
            isinstance(self.stdin, Stdin) and self.stdin.kind == "null"
        )

    def request(self) -> Json:
        """Returns the request of the wire protocol."""
        request: Json = {
            "op": "exec",
            "argv": [frames.unix(word) for word in [self.cmd, *self.args]],
            "stdin": self.wants_stdin,
        }
        if self.env:
            request["env"] = [frames.unix(f"{name}={value}") for name, value in self.env.items()]
        if self.cwd is not None:
            request["cwd"] = frames.unix(self.cwd)
        if self.user is not None:
            request["user"] = frames.unix(self.user)
        if self.tty:
            request["tty"] = {"rows": 24, "cols": 80}
        if self.log:
            request["log"] = True
        if self.rlimits:
            request["rlimits"] = [
                {"resource": str(limit.resource), "soft": limit.soft, "hard": limit.hard}
                for limit in self.rlimits
            ]
        return request

    def needs(self) -> tuple[str, ...]:
        """Returns the operations that the fields of the request need."""
        return (("exec.log",) if self.log else ()) + (("exec.rlimit",) if self.rlimits else ())


ExecArgs = Union[Sequence[str], Mapping[str, Any], None]
"""Arguments of a command, or a mapping of all its options."""


def given_options(
    cwd: str | None,
    user: str | None,
    env: Mapping[str, str] | None,
    timeout: float | None,
    stdin: StdinSource | None,
    tty: bool,
    rlimits: Sequence[Rlimit] | None,
    log: bool | None,
    max_output_bytes: int | None,
) -> dict[str, Any]:
    """Returns keyword arguments by their names; `None` is not given."""
    given = {**locals()}
    given["tty"] = tty or None
    return given
