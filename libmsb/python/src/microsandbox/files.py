"""Files in a sandbox."""

from __future__ import annotations

import asyncio
import builtins
import os
import stat as modes
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, Union

from . import sftp, types
from .client import Client
from .errors import FilesystemError, IoError, PathNotFoundError
from .sftp import CHUNK_BYTES, Attributes, Session
from .tool import Host
from .types import FsEntryKind, StrPath

OUTSTANDING = 8
"""Reads or writes of one file that are on their way at a time."""
REMOVALS = 32
"""Entries of a tree that are removed at a time."""
READ_STREAM_BYTES = 1 << 20
"""Most bytes of a chunk of a stream."""


@dataclass(frozen=True)
class FsMetadata:
    """Metadata of a file. Times are in milliseconds since 1970."""

    kind: FsEntryKind
    size: int
    mode: int
    """Permission bits."""
    readonly: bool
    """True if no permission bit for writing is set."""
    modified: float | None
    created: float | None = None
    """Always `None`: the protocol has no time of creation."""
    accessed: float | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True)
class FsEntry:
    """An entry of a directory."""

    path: str
    kind: FsEntryKind
    size: int
    mode: int
    """Permission bits."""
    modified: float | None
    """Milliseconds since 1970."""


def kind_of(mode: int | None) -> FsEntryKind:
    """Returns the kind of a file with this mode."""
    if modes.S_ISREG(mode or 0):
        return FsEntryKind.FILE
    if modes.S_ISDIR(mode or 0):
        return FsEntryKind.DIRECTORY
    return FsEntryKind.SYMLINK if modes.S_ISLNK(mode or 0) else FsEntryKind.OTHER


def _milliseconds(seconds: int | None) -> float | None:
    return None if seconds is None else seconds * 1000.0


def _metadata(attributes: Attributes) -> FsMetadata:
    mode = attributes.mode or 0
    return FsMetadata(
        kind=kind_of(mode),
        size=attributes.size or 0,
        mode=modes.S_IMODE(mode),
        readonly=not mode & 0o222,
        modified=_milliseconds(attributes.modified),
        accessed=_milliseconds(attributes.accessed),
        uid=attributes.uid,
        gid=attributes.gid,
    )


class FsReadStream:
    """Contents of a file, in chunks. Iterate over it, or call `recv` or `collect`."""

    def __init__(self, session: Session, handle: bytes, path: str) -> None:
        self._session = session
        self._handle = handle
        self._path = path
        self._offset = 0
        self._ahead: deque[asyncio.Task[bytes]] = deque()
        self._open = True

    async def recv(self) -> bytes | None:
        """Returns the next chunk; `None` at the end."""
        if not self._open:
            return None
        while len(self._ahead) < OUTSTANDING:
            read = self._session.read(self._handle, self._offset, CHUNK_BYTES, self._path)
            self._ahead.append(asyncio.ensure_future(read))
            self._offset += CHUNK_BYTES
        first = self._ahead[0]
        try:
            data = await asyncio.shield(first)
        except Exception:
            await self._drop()
            raise
        self._ahead.popleft()
        if len(data) < CHUNK_BYTES:
            await self._continue_after(data)
        if not data:
            await self.close()
            return None
        return data

    async def _continue_after(self, data: bytes) -> None:
        """Drops reads behind a short one and goes on after its bytes."""
        read_ahead = (len(self._ahead) + 1) * CHUNK_BYTES
        await self._drop()
        self._offset += len(data) - read_ahead

    async def _drop(self) -> None:
        dropped, self._ahead = list(self._ahead), deque()
        for read in dropped:
            read.cancel()
        await asyncio.gather(*dropped, return_exceptions=True)

    async def collect(self) -> bytes:
        """Returns the rest."""
        return b"".join([data async for data in self])

    async def close(self) -> None:
        """Closes the file."""
        if self._open:
            self._open = False
            await self._drop()
            if self._session.is_open:
                await self._session.close_handle(self._handle, self._path)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self.recv()
        if data is None:
            raise StopAsyncIteration
        return data

    async def __aenter__(self) -> FsReadStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class FsWriteSink:
    """A file that is written in chunks. `close` reports errors of writes that were under way."""

    def __init__(self, session: Session, handle: bytes, path: str) -> None:
        self._session = session
        self._handle = handle
        self._path = path
        self._offset = 0
        self._writes: deque[asyncio.Task[None]] = deque()
        self._open = True

    async def write(self, data: Union[bytes, bytearray, memoryview, str]) -> None:
        """Writes bytes, or text as UTF-8."""
        if not self._open:
            raise ValueError("the file is closed")
        view = memoryview(data.encode() if isinstance(data, str) else data).cast("B")
        for at in range(0, len(view), CHUNK_BYTES):
            chunk = bytes(view[at : at + CHUNK_BYTES])
            while len(self._writes) >= OUTSTANDING:
                await asyncio.shield(self._writes[0])
                self._writes.popleft()
            write = self._session.write(self._handle, self._offset, chunk, self._path)
            self._writes.append(asyncio.ensure_future(write))
            self._offset += len(chunk)

    async def close(self) -> None:
        """Waits for the writes and closes the file."""
        if not self._open:
            return
        self._open = False
        requests = list[Awaitable[None]](self._writes)
        if self._session.is_open:
            # The guest answers in order, so that the last writes need not be waited for.
            requests.append(self._session.close_handle(self._handle, self._path))
        results = await asyncio.gather(*requests, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def __aenter__(self) -> FsWriteSink:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class SandboxFs:
    """Files in a sandbox, read and changed as the sandbox's user.

    Relative paths start in the user's home directory. Any number of calls can be made at a time.
    """

    def __init__(
        self, client: Client, host: Host, name: str, *, user: str | None = None
    ) -> None:
        self._client = client
        self._host = host
        self._name = name
        self._user = user
        self._session: Session | None = None
        self._opening: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    async def session(self) -> Session:
        """Returns an open file session, which all calls share."""
        loop = asyncio.get_running_loop()
        if self._opening is None or self._opening[0] is not loop:
            self._opening = (loop, asyncio.Lock())
        if self._session is not None and self._session.is_open:
            return self._session
        async with self._opening[1]:
            if self._session is None or not self._session.is_open:
                self._session = await Session.open(self._client, user=self._user)
            return self._session

    async def read(self, path: str) -> bytes:
        """Returns the contents of a file."""
        session = await self.session()
        handle = await session.open_file(_path(path), sftp.READ, Attributes())
        first = asyncio.ensure_future(session.read(handle, 0, CHUNK_BYTES, path))
        try:
            data = await first
            if len(data) < CHUNK_BYTES:
                # A short read need not be the end.
                rest = await session.read(handle, len(data), CHUNK_BYTES, path) if data else b""
                if not rest:
                    return data
                data += rest
            stream = FsReadStream(session, handle, path)
            stream._offset = len(data)  # pyright: ignore[reportPrivateUsage]
            pieces = [data]
            while (more := await stream.recv()) is not None:
                pieces.append(more)
            handle = b""
            return b"".join(pieces)
        finally:
            if handle and session.is_open:
                await session.close_handle(handle, path)

    async def read_text(self, path: str) -> str:
        """Returns the contents of a file as text."""
        return (await self.read(path)).decode()

    async def read_stream(self, path: str) -> FsReadStream:
        """Opens a file for reading in chunks."""
        session = await self.session()
        return FsReadStream(
            session, await session.open_file(_path(path), sftp.READ, Attributes()), path
        )

    async def write(
        self,
        path: str,
        data: Union[bytes, bytearray, memoryview, str],
        *,
        mode: int | None = None,
    ) -> None:
        """Writes a file, from bytes or text. `mode` sets its permission bits."""
        async with await self.write_stream(path, mode=mode) as sink:
            await sink.write(data)

    async def write_stream(self, path: str, *, mode: int | None = None) -> FsWriteSink:
        """Opens a file for writing in chunks. An existing file is truncated."""
        session = await self.session()
        flags = sftp.WRITE | sftp.CREATE | sftp.TRUNCATE
        attributes = Attributes(mode=None if mode is None else types.whole("mode", mode))
        handle = await session.open_file(_path(path), flags, attributes)
        if mode is not None:
            # The mode of an existing file, and without the umask of the guest.
            await session.set_handle_stat(handle, attributes, path)
        return FsWriteSink(session, handle, path)

    async def list(self, path: str) -> builtins.list[FsEntry]:
        """Returns the entries of a directory, sorted by name."""
        session = await self.session()
        entries = [
            FsEntry(
                path=os.path.join(path, os.fsdecode(name)),
                kind=kind_of(attributes.mode),
                size=attributes.size or 0,
                mode=modes.S_IMODE(attributes.mode or 0),
                modified=_milliseconds(attributes.modified),
            )
            for name, attributes in await _entries(session, path)
        ]
        return sorted(entries, key=lambda entry: entry.path)

    async def mkdir(self, path: str, *, mode: int | None = None) -> None:
        """Creates a directory and its parents. An existing directory is no error."""
        session = await self.session()
        try:
            await session.make_directory(_path(path), mode)
            return
        except PathNotFoundError:
            parent = os.path.dirname(path.rstrip("/"))
            if not parent or parent == path:
                raise
        except FilesystemError:
            if (await session.stat(path)).is_directory:
                return
            raise
        await self.mkdir(parent)
        await self.mkdir(path, mode=mode)

    async def remove(self, path: str) -> None:
        """Removes a file or symbolic link."""
        await (await self.session()).remove(_path(path))

    async def remove_dir(self, path: str) -> None:
        """Removes a directory with all that is in it."""
        session = await self.session()
        if not (await session.stat(_path(path), follow=False)).is_directory:
            raise FilesystemError(f"'{path}': not a directory")
        await self._remove_tree(session, path)

    async def _remove_tree(self, session: Session, path: str) -> None:
        files: list[Coroutine[Any, Any, None]] = []
        for name, attributes in await _entries(session, path):
            entry = os.path.join(path, os.fsdecode(name))
            if attributes.is_directory:
                await self._remove_tree(session, entry)
            else:
                files.append(session.remove(entry))
        for at in range(0, len(files), REMOVALS):
            await asyncio.gather(*files[at : at + REMOVALS])
        await session.remove_directory(path)

    async def remove_empty_dir(self, path: str) -> None:
        """Removes an empty directory."""
        await (await self.session()).remove_directory(_path(path))

    async def copy(self, source: str, target: str) -> None:
        """Copies a file inside the guest, with its permission bits."""
        session = await self.session()
        mode = modes.S_IMODE((await session.stat(_path(source))).mode or 0)
        reading = await session.open_file(source, sftp.READ, Attributes())
        try:
            flags = sftp.WRITE | sftp.CREATE | sftp.TRUNCATE
            writing = await session.open_file(_path(target), flags, Attributes(mode=mode))
            try:
                await session.copy(reading, writing, f"{source}' to '{target}")
                await session.set_handle_stat(writing, Attributes(mode=mode), target)
            finally:
                await session.close_handle(writing, target)
        finally:
            await session.close_handle(reading, source)

    async def rename(self, source: str, target: str) -> None:
        """Renames a file or directory. An existing file is replaced."""
        await (await self.session()).rename(_path(source), _path(target))

    async def stat(self, path: str, *, follow: bool = True) -> FsMetadata:
        """Returns the metadata of a file. Without `follow`, of a link itself."""
        return _metadata(await (await self.session()).stat(_path(path), follow=follow))

    async def exists(self, path: str) -> bool:
        """Returns whether a path exists. Other errors than a missing path are raised."""
        try:
            await self.stat(path)
        except PathNotFoundError:
            return False
        return True

    async def read_link(self, path: str) -> str:
        """Returns the target of a symbolic link."""
        return await (await self.session()).read_link(_path(path))

    async def symlink(self, target: str, link: str) -> None:
        """Creates a symbolic link to `target`."""
        await (await self.session()).symlink(_path(target), _path(link))

    async def real_path(self, path: str) -> str:
        """Returns the absolute path without symbolic links."""
        return await (await self.session()).real_path(_path(path))

    async def chmod(self, path: str, mode: int) -> None:
        """Sets the permission bits of a file."""
        session = await self.session()
        await session.set_stat(_path(path), Attributes(mode=types.whole("mode", mode)))

    async def chown(self, path: str, uid: int, gid: int) -> None:
        """Sets the owner and group of a file."""
        session = await self.session()
        await session.set_stat(
            _path(path), Attributes(uid=types.whole("uid", uid), gid=types.whole("gid", gid))
        )

    async def copy_from_host(self, host_path: StrPath, guest_path: str) -> None:
        """Copies a file or directory tree of the host into the guest."""
        source = os.fspath(host_path)
        if await asyncio.to_thread(os.path.isdir, source):
            source = os.path.abspath(source)
            await self._host.run("cp", "--", source, f"{self._name}:{_path(guest_path)}")
            return
        try:
            file = await asyncio.to_thread(open, source, "rb")
        except OSError as error:
            raise IoError(f"cannot open '{source}': {error.strerror}") from error
        with file:
            mode = modes.S_IMODE(os.fstat(file.fileno()).st_mode)
            async with await self.write_stream(guest_path, mode=mode) as sink:
                while data := await asyncio.to_thread(file.read, READ_STREAM_BYTES):
                    await sink.write(data)

    async def copy_to_host(self, guest_path: str, host_path: StrPath) -> None:
        """Copies a file or directory tree of the guest to the host."""
        target = os.fspath(host_path)
        if (await self.stat(guest_path)).kind is FsEntryKind.DIRECTORY:
            target = os.path.abspath(target)
            await self._host.run("cp", "--", f"{self._name}:{guest_path}", target)
            return
        async with await self.read_stream(guest_path) as stream:
            try:
                file = await asyncio.to_thread(open, target, "wb")
            except OSError as error:
                raise IoError(f"cannot open '{target}': {error.strerror}") from error
            with file:
                async for data in stream:
                    await asyncio.to_thread(file.write, data)

    def close(self) -> None:
        """Ends the file session. The next call opens another one."""
        session, self._session = self._session, None
        if session is not None and session.is_open:
            session.close()


async def _entries(session: Session, path: str) -> list[tuple[bytes, Attributes]]:
    handle = await session.open_directory(_path(path))
    try:
        found: list[tuple[bytes, Attributes]] = []
        while entries := await session.read_directory(handle, path):
            found += [entry for entry in entries if entry[0] not in (b".", b"..")]
        return found
    finally:
        if session.is_open:
            await session.close_handle(handle, path)


def _path(path: str) -> str:
    return types.text("path", path)
