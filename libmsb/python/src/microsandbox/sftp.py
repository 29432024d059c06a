"""Version 3 of the SSH file transfer protocol, over the operation `sftp` of a sandbox.

Requests of several callers share one session. Answers are matched by their number.
"""

from __future__ import annotations

import asyncio
import os
import stat as modes
import struct
from dataclasses import dataclass

from . import frames, wire
from .client import Client
from .errors import FilesystemError, MicrosandboxError, PathNotFoundError, ProtocolError
from .exec_output import not_started
from .tool import shielded

PACKET_BYTES_MAX = 1 << 20
"""Longest packet that is accepted."""
CHUNK_BYTES = 128 * 1024
"""Bytes of a read or write."""
REQUESTS_MAX = 64
"""Requests that one caller has outstanding."""

READ, WRITE, APPEND, CREATE, TRUNCATE, EXCLUSIVE = 1, 2, 4, 8, 16, 32

_OPEN, _CLOSE, _READ, _WRITE, _LSTAT, _FSTAT, _SETSTAT, _FSETSTAT = range(3, 11)
_OPENDIR, _READDIR, _REMOVE, _MKDIR, _RMDIR, _REALPATH, _STAT, _RENAME = range(11, 19)
_READLINK, _SYMLINK, _EXTENDED = 19, 20, 200
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS = range(101, 106)
_OK, _EOF, _NO_SUCH_FILE = 0, 1, 2
_SIZE, _OWNER, _PERMISSIONS, _TIMES, _MORE = 1, 2, 4, 8, 0x80000000


@dataclass(frozen=True)
class Attributes:
    """Attributes of a file; unknown ones are `None`."""

    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    """Type and permission bits."""
    accessed: int | None = None
    """Seconds since 1970."""
    modified: int | None = None
    """Seconds since 1970."""

    def encode(self) -> bytes:
        """Returns the attributes as a packet has them."""
        flags, body = 0, b""
        if self.size is not None:
            flags, body = flags | _SIZE, body + struct.pack(">Q", self.size)
        if self.uid is not None and self.gid is not None:
            flags, body = flags | _OWNER, body + struct.pack(">II", self.uid, self.gid)
        if self.mode is not None:
            flags, body = flags | _PERMISSIONS, body + struct.pack(">I", self.mode)
        if self.accessed is not None and self.modified is not None:
            flags, body = flags | _TIMES, body + struct.pack(">II", self.accessed, self.modified)
        return struct.pack(">I", flags) + body

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return modes.S_ISDIR(self.mode or 0)


class _Fields:
    """Fields of a packet, in order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise ProtocolError("a packet of files ends early")
        taken, self._at = self._data[self._at : end], end
        return taken

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def string(self) -> bytes:
        return self.take(self.u32())

    def attributes(self) -> Attributes:
        flags = self.u32()
        size = self.u64() if flags & _SIZE else None
        uid, gid = (self.u32(), self.u32()) if flags & _OWNER else (None, None)
        mode = self.u32() if flags & _PERMISSIONS else None
        accessed, modified = (self.u32(), self.u32()) if flags & _TIMES else (None, None)
        if flags & _MORE:
            for _ in range(self.u32()):
                self.string()
                self.string()
        return Attributes(size, uid, gid, mode, accessed, modified)


def _string(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else os.fsencode(value)
    if isinstance(value, str) and b"\0" in raw:
        raise ValueError(f"{value!r} contains a NUL")
    return len(raw).to_bytes(4, "big") + raw


class Session:
    """A file session with a guest."""

    def __init__(self, call: wire.Call, connection: wire.Connection) -> None:
        self.connection = connection
        self.pid = os.getpid()
        self._call = call
        self._buffer = bytearray()
        self._waiting: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._next = 1
        self._broken: MicrosandboxError | None = None
        self._reader: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()

    @classmethod
    async def open(
        cls, client: Client, *, user: str | None = None, read_only: bool = False
    ) -> Session:
        """Opens a session as a user."""
        connection = await client.connection()
        request: dict[str, object] = {"op": "sftp"}
        if user is not None:
            request["user"] = frames.unix(user)
        if read_only:
            request["read_only"] = True
        call = connection.call(request)
        session = cls(call, connection)
        try:
            item = await call.receive()
            if not isinstance(item, frames.Event):
                raise ProtocolError("files before the start of their session")
            if item.message.get("type") == "failed":
                raise not_started(item.message, "sftp")
            await call.write(struct.pack(">IBI", 5, 1, 3))
            kind, _ = await session._packet()
            if kind != 2:
                raise ProtocolError("no version of the file protocol")
        except BaseException:
            call.abandon()
            raise
        session._reader = asyncio.ensure_future(session._read_answers())
        return session

    @property
    def is_open(self) -> bool:
        """True if requests can be made, in this process and event loop."""
        return (
            self._broken is None
            and not self._call.ended
            and self.pid == os.getpid()
            and self.connection.loop is asyncio.get_running_loop()
        )

    def close(self) -> None:
        """Ends the session."""
        if self.pid != os.getpid():
            return
        if self._reader is not None:
            self._reader.cancel()
        self._call.abandon()
        self._fail(FilesystemError("the file session was closed"))

    # ---- requests

    async def open_file(self, path: str, flags: int, attributes: Attributes) -> bytes:
        """Opens a file. Returns its handle."""
        body = _string(path) + flags.to_bytes(4, "big") + attributes.encode()
        return await self._handle(_OPEN, body, path)

    async def open_directory(self, path: str) -> bytes:
        """Opens a directory. Returns its handle."""
        return await self._handle(_OPENDIR, _string(path), path)

    async def close_handle(self, handle: bytes, path: str) -> None:
        """Closes a file or directory."""
        await self._status(_CLOSE, _string(handle), path)

    async def read(self, handle: bytes, offset: int, count: int, path: str) -> bytes:
        """Reads at an offset. Returns nothing at the end."""
        body = _string(handle) + struct.pack(">QI", offset, count)
        kind, fields = await self._request(_READ, body)
        if kind == _DATA:
            return fields.string()
        if _check(kind, fields, path, _EOF) == _EOF:
            return b""
        raise ProtocolError("no data")

    async def write(self, handle: bytes, offset: int, data: bytes, path: str) -> None:
        """Writes at an offset."""
        body = _string(handle) + offset.to_bytes(8, "big") + len(data).to_bytes(4, "big") + data
        await self._status(_WRITE, body, path)

    async def read_directory(self, handle: bytes, path: str) -> list[tuple[bytes, Attributes]]:
        """Returns the next entries of a directory; none at the end."""
        kind, fields = await self._request(_READDIR, _string(handle))
        if kind == _NAME:
            entries: list[tuple[bytes, Attributes]] = []
            for _ in range(fields.u32()):
                name = fields.string()
                fields.string()
                entries.append((name, fields.attributes()))
            return entries
        _check(kind, fields, path, _EOF)
        return []

    async def stat(self, path: str, *, follow: bool = True) -> Attributes:
        """Returns the attributes of a file."""
        kind, fields = await self._request(_STAT if follow else _LSTAT, _string(path))
        if kind == _ATTRS:
            return fields.attributes()
        _check(kind, fields, path)
        raise ProtocolError("no attributes")

    async def set_stat(self, path: str, attributes: Attributes) -> None:
        """Sets attributes of a file."""
        await self._status(_SETSTAT, _string(path) + attributes.encode(), path)

    async def set_handle_stat(self, handle: bytes, attributes: Attributes, path: str) -> None:
        """Sets attributes of an open file."""
        await self._status(_FSETSTAT, _string(handle) + attributes.encode(), path)

    async def remove(self, path: str) -> None:
        """Removes a file or link."""
        await self._status(_REMOVE, _string(path), path)

    async def make_directory(self, path: str, mode: int | None = None) -> None:
        """Creates a directory."""
        await self._status(_MKDIR, _string(path) + Attributes(mode=mode).encode(), path)

    async def remove_directory(self, path: str) -> None:
        """Removes an empty directory."""
        await self._status(_RMDIR, _string(path), path)

    async def rename(self, source: str, target: str) -> None:
        """Renames a file, over an existing one."""
        name = "posix-rename@openssh.com"
        await self._status(
            _EXTENDED, _string(name) + _string(source) + _string(target), f"{source}' to '{target}"
        )

    async def real_path(self, path: str) -> str:
        """Returns the absolute path without links."""
        return await self._name(_REALPATH, path)

    async def read_link(self, path: str) -> str:
        """Returns the target of a symbolic link."""
        return await self._name(_READLINK, path)

    async def symlink(self, target: str, link: str) -> None:
        """Creates a symbolic link."""
        await self._status(_SYMLINK, _string(target) + _string(link), link)

    async def copy(self, source: bytes, target: bytes, path: str) -> None:
        """Copies an open file to another one, inside the guest."""
        body = _string("copy-data") + _string(source) + struct.pack(">QQ", 0, 0)
        await self._status(_EXTENDED, body + _string(target) + struct.pack(">Q", 0), path)

    # ---- packets

    async def _request(self, kind: int, body: bytes) -> tuple[int, _Fields]:
        if self._broken is not None:
            raise self._error()
        number, self._next = self._next, (self._next + 1) & 0xFFFFFFFF
        answer: asyncio.Future[tuple[int, bytes]] = self.connection.loop.create_future()
        self._waiting[number] = answer
        try:
            async with self._sending:
                head = struct.pack(">IBI", len(body) + 5, kind, number)
                if not self._call.try_write(head + body):
                    # A packet is written whole, even if its caller is cancelled.
                    await shielded(self._call.write(head + body))
            kind, data = await answer
        finally:
            self._waiting.pop(number, None)
        return kind, _Fields(data)

    async def _status(self, kind: int, body: bytes, path: str) -> None:
        kind, fields = await self._request(kind, body)
        _check(kind, fields, path)

    async def _handle(self, kind: int, body: bytes, path: str) -> bytes:
        kind, fields = await self._request(kind, body)
        if kind == _HANDLE:
            return fields.string()
        _check(kind, fields, path)
        raise ProtocolError("no handle")

    async def _name(self, kind: int, path: str) -> str:
        kind, fields = await self._request(kind, _string(path))
        if kind == _NAME and fields.u32() == 1:
            return os.fsdecode(fields.string())
        _check(kind, fields, path)
        raise ProtocolError("no name")

    async def _read_answers(self) -> None:
        try:
            while True:
                kind, data = await self._packet()
                if len(data) < 4:
                    raise ProtocolError("an answer without a number")
                answer = self._waiting.get(int.from_bytes(data[:4], "big"))
                if answer is not None and not answer.done():
                    answer.set_result((kind, data[4:]))
        except MicrosandboxError as error:
            self._call.abandon()
            self._fail(error)

    async def _packet(self) -> tuple[int, bytes]:
        buffer = self._buffer
        while True:
            if len(buffer) >= 4:
                length = int.from_bytes(buffer[:4], "big")
                if not 1 <= length <= PACKET_BYTES_MAX:
                    raise ProtocolError(f"a packet of files with {length} bytes")
                if len(buffer) >= 4 + length:
                    packet = bytes(buffer[4 : 4 + length])
                    del buffer[: 4 + length]
                    return packet[0], packet[1:]
            item = await self._call.receive()
            if isinstance(item, frames.Data):
                if item.channel == frames.STDOUT:
                    buffer += item.bytes
            elif item.last:
                raise FilesystemError("the file session has ended")

    def _fail(self, error: MicrosandboxError) -> None:
        self._broken = self._broken or error
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._error())

    def _error(self) -> MicrosandboxError:
        broken = self._broken or FilesystemError("the file session has ended")
        return type(broken)(broken.message)


def _check(kind: int, fields: _Fields, path: str, also: int = _OK) -> int:
    """Returns the code of a status that is a success, or `also`. Raises for the others."""
    if kind != _STATUS:
        raise ProtocolError(f"an answer of the kind {kind}")
    code = fields.u32()
    if code in (_OK, also):
        return code
    why = fields.string().decode("utf-8", "replace")
    error = PathNotFoundError if code == _NO_SUCH_FILE else FilesystemError
    raise error(f"'{path}': {why}")
