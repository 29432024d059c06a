"""Enumerations and small types that several modules share."""

from __future__ import annotations

import math
import os
from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeVar, Union, cast

from .errors import UnsupportedOperationError

StrPath = Union[str, os.PathLike[str]]
"""A path of the host."""

_E = TypeVar("_E", bound="StrEnum")


class StrEnum(str, Enum):
    """An enumeration of words. A member is equal to its word."""

    def __str__(self) -> str:
        return str(self.value)


class PullPolicy(StrEnum):
    """When to pull an image from its registry."""

    ALWAYS = "always"
    IF_MISSING = "if-missing"
    NEVER = "never"


class LogLevel(StrEnum):
    """Level of messages. It is accepted for compatibility and has no effect."""

    TRACE = "trace"
    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class SecurityProfile(StrEnum):
    """Privileges of commands in the guest."""

    DEFAULT = "default"
    RESTRICTED = "restricted"


class SandboxStatus(StrEnum):
    """State of a sandbox. `DRAINING` does not occur."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"
    CRASHED = "crashed"


class Action(StrEnum):
    """Verdict of a rule."""

    ALLOW = "allow"
    DENY = "deny"


class Direction(StrEnum):
    """Direction of a connection."""

    EGRESS = "egress"
    INGRESS = "ingress"
    ANY = "any"


class Protocol(StrEnum):
    """Protocol of a rule."""

    TCP = "tcp"
    UDP = "udp"
    ICMPV4 = "icmpv4"
    ICMPV6 = "icmpv6"


class PortProtocol(StrEnum):
    """Protocol of a published port."""

    TCP = "tcp"
    UDP = "udp"


class DestGroup(StrEnum):
    """A group of addresses; msb-net(1) defines them."""

    PUBLIC = "public"
    LOOPBACK = "loopback"
    PRIVATE = "private"
    LINK_LOCAL = "link-local"
    METADATA = "metadata"
    MULTICAST = "multicast"
    HOST = "host"


class MountKind(StrEnum):
    """Kind of a mount."""

    BIND = "bind"
    NAMED = "named"
    TMPFS = "tmpfs"
    DISK = "disk"


class StatVirtualization(StrEnum):
    """Owners and modes of a shared directory. Only `STRICT` is supported."""

    STRICT = "strict"
    RELAXED = "relaxed"
    OFF = "off"


class HostPermissions(StrEnum):
    """Permissions on the host of files that a guest writes. Only `PRIVATE` is supported."""

    PRIVATE = "private"
    MIRROR = "mirror"


class FsEntryKind(StrEnum):
    """Kind of a file."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


class DiskImageFormat(StrEnum):
    """Format of a disk image. `VMDK` is not supported."""

    QCOW2 = "qcow2"
    RAW = "raw"
    VMDK = "vmdk"


class RlimitResource(StrEnum):
    """A resource that setrlimit(2) limits."""

    AS = "as"
    CORE = "core"
    CPU = "cpu"
    DATA = "data"
    FSIZE = "fsize"
    LOCKS = "locks"
    MEMLOCK = "memlock"
    MSGQUEUE = "msgqueue"
    NICE = "nice"
    NOFILE = "nofile"
    NPROC = "nproc"
    RSS = "rss"
    RTPRIO = "rtprio"
    RTTIME = "rttime"
    SIGPENDING = "sigpending"
    STACK = "stack"


class LogSource(StrEnum):
    """Source of a log entry."""

    STDOUT = "stdout"
    STDERR = "stderr"
    OUTPUT = "output"
    SYSTEM = "system"
    KERNEL = "kernel"


class LogReadSource(StrEnum):
    """Sources that a reader of logs selects."""

    STDOUT = "stdout"
    STDERR = "stderr"
    OUTPUT = "output"
    SYSTEM = "system"
    KERNEL = "kernel"
    ALL = "all"


class ViolationAction(StrEnum):
    """Action when a secret is about to reach a host that may not have it."""

    BLOCK = "block"
    BLOCK_AND_LOG = "block-and-log"
    BLOCK_AND_TERMINATE = "block-and-terminate"
    PASSTHROUGH = "passthrough"


@dataclass(frozen=True)
class Size:
    """A size in bytes."""

    bytes: int

    @classmethod
    def mib(cls, count: int) -> Size:
        """Returns a size of that many MiB."""
        return cls(whole("size", count) << 20)

    @classmethod
    def gib(cls, count: int) -> Size:
        """Returns a size of that many GiB."""
        return cls(whole("size", count) << 30)

    @property
    def mib_count(self) -> int:
        """The size in MiB, rounded down."""
        return self.bytes >> 20


def MiB(count: int) -> Size:  # noqa: N802, the name is that of the unit
    """Returns a size of that many MiB."""
    return Size.mib(count)


def GiB(count: int) -> Size:  # noqa: N802, the name is that of the unit
    """Returns a size of that many GiB."""
    return Size.gib(count)


class ExitStatus(NamedTuple):
    """Exit status of a command: the pair (code, success)."""

    code: int
    success: bool


@dataclass(frozen=True)
class InitConfig:
    """The init of the image as the first process of the guest."""

    cmd: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RegistryAuth:
    """Credentials for one pull. They are not stored."""

    username: str
    password: str

    @classmethod
    def basic(cls, username: str, password: str) -> RegistryAuth:
        """Returns a user name with a password or token."""
        return cls(username, password)

    def __repr__(self) -> str:
        return f"RegistryAuth(username={self.username!r})"


@dataclass(frozen=True)
class Rlimit:
    """A resource limit. `None` is no limit."""

    resource: RlimitResource
    soft: int | None
    hard: int | None

    @classmethod
    def _of(cls, resource: RlimitResource, limit: int) -> Rlimit:
        whole(resource.value, limit)
        return cls(resource, limit, limit)

    @classmethod
    def nofile(cls, limit: int) -> Rlimit:
        """Limits open files."""
        return cls._of(RlimitResource.NOFILE, limit)

    @classmethod
    def cpu(cls, limit: int) -> Rlimit:
        """Limits CPU time in seconds."""
        return cls._of(RlimitResource.CPU, limit)

    @classmethod
    def nproc(cls, limit: int) -> Rlimit:
        """Limits processes of the user."""
        return cls._of(RlimitResource.NPROC, limit)

    @classmethod
    def fsize(cls, limit: int) -> Rlimit:
        """Limits the size of a file in bytes."""
        return cls._of(RlimitResource.FSIZE, limit)

    @classmethod
    def memlock(cls, limit: int) -> Rlimit:
        """Limits locked memory in bytes."""
        return cls._of(RlimitResource.MEMLOCK, limit)

    @classmethod
    def stack(cls, limit: int) -> Rlimit:
        """Limits the stack in bytes."""
        return cls._of(RlimitResource.STACK, limit)

    @classmethod
    def as_(cls, *, soft: int, hard: int) -> Rlimit:
        """Limits the address space in bytes."""
        if whole("soft", soft) > whole("hard", hard):
            raise ValueError("the soft limit is above the hard limit")
        return cls(RlimitResource.AS, soft, hard)


class AwaitableStr(str):
    """A word that can also be awaited, for callers that expect a coroutine."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, str]:
        yield from ()
        return str(self)


class AwaitableBool(int):
    """A truth value that can also be awaited, for callers that expect a coroutine."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, bool]:
        yield from ()
        return bool(self)

    def __repr__(self) -> str:
        return repr(bool(self))


def word(kind: type[_E], name: str, value: str) -> _E:
    """Returns the member of an enumeration, from itself or its word."""
    try:
        return kind(value)
    except ValueError:
        words = ", ".join(repr(member.value) for member in kind)
        raise ValueError(f"{name} must be one of {words}, not {value!r}") from None


def whole(name: str, value: int, least: int = 0) -> int:
    """Checks a whole number. A truth value is none."""
    checked = cast("object", value)
    if isinstance(checked, bool) or not isinstance(checked, int):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
    return value


def seconds(name: str, value: float) -> float:
    """Checks a time in seconds: a finite number, not negative."""
    checked = cast("object", value)
    if isinstance(checked, bool) or not isinstance(checked, (int, float)):
        raise ValueError(f"{name} must be a number of seconds, not {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be finite and not negative, not {value!r}")
    return float(value)


def duration(name: str, value: float) -> str:
    """Returns a time as the programs take it. Rounds up to whole milliseconds."""
    return f"{math.ceil(seconds(name, value) * 1000)}ms"


def text(name: str, value: str) -> str:
    """Checks a text."""
    checked = cast("object", value)
    if not isinstance(checked, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    return value


def unsupported(*fields: str) -> UnsupportedOperationError:
    """Returns the error for arguments or calls that msb does not serve."""
    return UnsupportedOperationError(f"not supported: {', '.join(fields)}", fields=fields)
