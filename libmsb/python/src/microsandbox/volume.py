"""Named volumes, and makers of mounts."""

from __future__ import annotations

import asyncio
import builtins
import os
import stat as modes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, Union

from . import types
from .config import MountConfig
from .errors import (
    FilesystemError,
    PathNotFoundError,
    VolumeNotFoundError,
)
from .files import FsEntry, kind_of
from .times import milliseconds
from .tool import Host, Json
from .types import DiskImageFormat, HostPermissions, MountKind, StatVirtualization, StrPath

_T = TypeVar("_T")


class VolumeFs:
    """Files of a volume of the kind `dir`, from the host.

    A path never leaves the volume: symbolic links in it are not followed.
    """

    def __init__(self, root: str, kind: str) -> None:
        self._root = root
        self._kind = kind

    async def read(self, path: str) -> bytes:
        """Returns the contents of a file."""
        return await self._in_thread(path, lambda at, name: _read(at, name))

    async def read_text(self, path: str) -> str:
        """Returns the contents of a file as text."""
        return (await self.read(path)).decode()

    async def write(self, path: str, data: Union[bytes, bytearray, memoryview, str]) -> None:
        """Writes a file, from bytes or text."""
        raw = data.encode() if isinstance(data, str) else bytes(data)
        await self._in_thread(path, lambda at, name: _write(at, name, raw))

    async def list(self, path: str = "/") -> builtins.list[FsEntry]:
        """Returns the entries of a directory, sorted by name."""
        return await self._in_thread(path, lambda at, name: _list(at, name, path))

    async def mkdir(self, path: str) -> None:
        """Creates a directory and its parents."""
        await self._in_thread(path, _make_directory, parents=True)

    async def remove_file(self, path: str) -> None:
        """Removes a file."""
        await self._in_thread(path, lambda at, name: os.unlink(name, dir_fd=at))

    async def remove_dir(self, path: str) -> None:
        """Removes a directory with all that is in it."""
        await self._in_thread(path, _remove_tree)

    async def exists(self, path: str) -> bool:
        """Returns whether a path exists."""
        try:
            await self._in_thread(path, lambda at, name: os.lstat(name, dir_fd=at))
        except PathNotFoundError:
            return False
        return True

    async def _in_thread(
        self, path: str, act: Callable[[int, str], _T], *, parents: bool = False
    ) -> _T:
        if self._kind != "dir":
            raise types.unsupported("VolumeFs of a volume with a quota, whose files a guest has")
        return await asyncio.to_thread(_within, self._root, path, act, parents)


def _within(root: str, path: str, act: Callable[[int, str], _T], parents: bool) -> _T:
    """Opens the parent of a path step by step, without symbolic links, and acts in it."""
    words = [word for word in types.text("path", path).split("/") if word not in ("", ".")]
    if ".." in words or "\0" in path:
        raise FilesystemError(f"'{path}': leaves the volume")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        at = os.open(root, flags)
        try:
            for word in words[:-1]:
                if parents:
                    _make_directory(at, word)
                inner = os.open(word, flags, dir_fd=at)
                os.close(at)
                at = inner
            return act(at, words[-1] if words else ".")
        finally:
            os.close(at)
    except FileNotFoundError:
        raise PathNotFoundError(f"'{path}': no such file or directory") from None
    except OSError as error:
        raise FilesystemError(f"'{path}': {error.strerror}") from error


def _make_directory(at: int, name: str) -> None:
    try:
        os.mkdir(name, dir_fd=at)
    except FileExistsError:
        if not modes.S_ISDIR(os.lstat(name, dir_fd=at).st_mode):
            raise


def _read(at: int, name: str) -> bytes:
    # A pipe that a guest has made does not block the host.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with open(os.open(name, flags, dir_fd=at), "rb") as file:
        if not modes.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(22, "not a regular file")
        return file.read()


def _write(at: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with open(os.open(name, flags, 0o644, dir_fd=at), "wb") as file:
        if not modes.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(22, "not a regular file")
        file.truncate()
        file.write(data)


def _remove_tree(at: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open(name, flags, dir_fd=at)
    try:
        for entry in os.listdir(directory):
            if modes.S_ISDIR(os.lstat(entry, dir_fd=directory).st_mode):
                _remove_tree(directory, entry)
            else:
                os.unlink(entry, dir_fd=directory)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=at)


def _list(at: int, name: str, path: str) -> list[FsEntry]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open(name, flags, dir_fd=at)
    try:
        found: list[FsEntry] = []
        for entry in sorted(os.listdir(directory)):
            status = os.lstat(entry, dir_fd=directory)
            found.append(
                FsEntry(
                    path=os.path.join(path, entry),
                    kind=kind_of(status.st_mode),
                    size=status.st_size,
                    mode=modes.S_IMODE(status.st_mode),
                    modified=status.st_mtime * 1000,
                )
            )
        return found
    finally:
        os.close(directory)


@dataclass(frozen=True)
class VolumeHandle:
    """A volume."""

    name: str
    quota_mib: int | None
    """Size of the disk; `None` for the kind `dir`."""
    used_bytes: int
    labels: dict[str, str] = field(default_factory=dict[str, str])
    created_at: float | None = None
    """Milliseconds since 1970."""
    kind: str = "dir"
    """`disk` or `dir`."""
    path: str = ""
    """Path of the contents on the host."""

    @property
    def fs(self) -> VolumeFs:
        """Files of the volume, from the host."""
        return VolumeFs(self.path, self.kind)

    async def remove(self) -> None:
        """Removes the volume."""
        await Volume.remove(self.name)


class Volume:
    """A named volume, and makers of mounts for `Sandbox.create`."""

    def __init__(self, name: str, path: str, kind: str) -> None:
        self.name = name
        self.path = path
        """Path of the contents on the host."""
        self.kind = kind

    @property
    def fs(self) -> VolumeFs:
        """Files of the volume, from the host."""
        return VolumeFs(self.path, self.kind)

    # ---- volumes

    @staticmethod
    async def create(
        name: str, *, quota_mib: int | None = None, labels: Mapping[str, str] | None = None
    ) -> Volume:
        """Creates a volume: a disk of `quota_mib`, or a directory without a limit."""
        args = ["volume", "create", "--quiet"]
        if quota_mib is None:
            args.append("--kind=dir")
        else:
            args += ["--kind=disk", f"--size={types.whole('quota_mib', quota_mib, 1)}"]
        args += [f"--label={key}={value}" for key, value in (labels or {}).items()]
        await Host.current().run(*args, "--", name)
        handle = await Volume.get(name)
        return Volume(handle.name, handle.path, handle.kind)

    @staticmethod
    async def get(name: str) -> VolumeHandle:
        """Returns a volume. Raises VolumeNotFoundError."""
        return _handle(await Host.current().json("volume", "inspect", "--format=json", "--", name))

    @staticmethod
    async def list() -> builtins.list[VolumeHandle]:
        """Returns all volumes, sorted by name."""
        host = Host.current()
        rows: list[Json] = await host.json("volume", "list", "--format=json")
        readable = [row for row in rows if not row.get("error")]
        found: list[VolumeHandle] = []
        for row in readable:
            try:
                found.append(await Volume.get(str(row["name"])))
            except VolumeNotFoundError:
                # It was removed meanwhile.
                continue
        return found

    @staticmethod
    async def remove(name: str) -> None:
        """Removes a volume and its contents. Raises VolumeNotFoundError."""
        await Host.current().run("volume", "remove", "--quiet", "--", name)

    # ---- mounts

    @staticmethod
    def bind(
        path: StrPath,
        *,
        readonly: bool = False,
        noexec: bool = False,
        nosuid: bool = False,
        nodev: bool = False,
        stat_virtualization: StatVirtualization = StatVirtualization.STRICT,
        host_permissions: HostPermissions = HostPermissions.PRIVATE,
    ) -> MountConfig:
        """Returns a mount of a directory or file of the host."""
        return MountConfig(
            MountKind.BIND,
            bind=os.fspath(path),
            readonly=readonly,
            noexec=noexec,
            nosuid=nosuid,
            nodev=nodev,
            stat_virtualization=stat_virtualization,
            host_permissions=host_permissions,
        )

    @staticmethod
    def named(
        name: str,
        *,
        readonly: bool = False,
        noexec: bool = False,
        nosuid: bool = False,
        nodev: bool = False,
        stat_virtualization: StatVirtualization = StatVirtualization.STRICT,
        host_permissions: HostPermissions = HostPermissions.PRIVATE,
    ) -> MountConfig:
        """Returns a mount of a named volume, which is created if it is missing."""
        return MountConfig(
            MountKind.NAMED,
            named=name,
            readonly=readonly,
            noexec=noexec,
            nosuid=nosuid,
            nodev=nodev,
            stat_virtualization=stat_virtualization,
            host_permissions=host_permissions,
        )

    @staticmethod
    def tmpfs(
        *,
        size_mib: int | None = None,
        readonly: bool = False,
        noexec: bool = False,
        nosuid: bool = False,
        nodev: bool = False,
    ) -> MountConfig:
        """Returns a mount of memory."""
        return MountConfig(
            MountKind.TMPFS,
            size_mib=size_mib,
            readonly=readonly,
            noexec=noexec,
            nosuid=nosuid,
            nodev=nodev,
        )

    @staticmethod
    def disk(
        path: StrPath,
        *,
        format: DiskImageFormat | str | None = None,
        fstype: str | None = None,
        readonly: bool = False,
        noexec: bool = False,
        nosuid: bool = False,
        nodev: bool = False,
    ) -> MountConfig:
        """Returns a mount of a disk image. The suffix names its format if it is not given."""
        return MountConfig(
            MountKind.DISK,
            disk=os.fspath(path),
            format=None if format is None else types.word(DiskImageFormat, "format", format),
            fstype=fstype,
            readonly=readonly,
            noexec=noexec,
            nosuid=nosuid,
            nodev=nodev,
        )


def _handle(fields: Json) -> VolumeHandle:
    return VolumeHandle(
        name=str(fields["name"]),
        quota_mib=fields.get("quota_mib"),
        used_bytes=int(fields.get("used_bytes") or 0),
        labels=dict(fields.get("labels") or {}),
        created_at=milliseconds(fields.get("created_at")),
        kind=str(fields.get("kind", "dir")),
        path=str(fields.get("path", "")),
    )
