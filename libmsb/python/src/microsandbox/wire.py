"""Client of the wire protocol msb-wire(5): one connection, many flow-controlled calls.

A receiver grants credit when a caller has consumed bytes. So a slow reader holds at most one window
per channel in memory, and stops its own command and no other. Each operation is negotiated: a peer
that lacks one refuses that call alone.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import socket
import struct
from typing import Any

from .errors import (
    IoError,
    MicrosandboxError,
    ProtocolError,
    SandboxNotRunningError,
    UnsupportedOperationError,
)
from .frames import (
    ADDRESS_BYTES_MAX,
    CLOSE,
    CONTROL,
    CREDIT,
    CREDIT_BYTES,
    DATA,
    DATA_BYTES,
    END,
    EVENT,
    FRAME_BYTES_MAX,
    HEADER,
    HELLO,
    HELLO_SECONDS,
    INCOMPLETE_MAX,
    MESSAGE_BYTES_MAX,
    MORE,
    OPEN,
    STDERR,
    STDIN,
    STDOUT,
    U32,
    VERSION,
    WINDOW,
    Data,
    Event,
    Incoming,
    frame,
    message,
)
from .tool import Json

# Requests whose operation has another name.
_OPERATIONS = {"attach": "jobs", "signal": "jobs"}

class Call:
    """One call of a connection."""

    def __init__(self, connection: Connection, stream: int) -> None:
        self.stream = stream
        self.ended = False
        """True after the last event, or the end of the connection."""
        self._connection = connection
        self._inbox: collections.deque[Incoming] = collections.deque()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._credit = WINDOW
        self._consumed = [0, 0, 0]
        self._received = [WINDOW, WINDOW, WINDOW]
        self._abandoned = False
        self._done = connection.loop.create_future()

    # ---- for the caller

    async def receive(self) -> Incoming:
        """Returns the next bytes or event. Raises when the connection has ended before the call."""
        while not self._inbox:
            if self.ended:
                raise self._connection.error()
            self._reader = self._connection.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        item = self._inbox.popleft()
        if isinstance(item, Data) and item.bytes:
            self._grant(item.channel, len(item.bytes))
        return item

    def receive_nowait(self) -> Incoming | None:
        """Returns what has arrived; `None` if there is nothing."""
        if not self._inbox:
            return None
        item = self._inbox.popleft()
        if isinstance(item, Data) and item.bytes:
            self._grant(item.channel, len(item.bytes))
        return item

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Writes to channel 0. Waits while the peer does not read. Drops what comes too late."""
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            if self.ended:
                return
            if self._credit == 0 or self._connection.is_full:
                await self._wait_to_write()
                continue
            count = min(len(view) - at, self._credit, DATA_BYTES)
            self._credit -= count
            self._connection.send(frame(self.stream, DATA, bytes(view[at : at + count])))
            at += count

    def try_write(self, data: bytes) -> bool:
        """Writes to channel 0 if that needs no wait. Returns whether it was written."""
        if self._credit < len(data) or self._connection.is_full or self._writer is not None:
            return self.ended
        self._credit -= len(data)
        for at in range(0, len(data), DATA_BYTES):
            self._send(frame(self.stream, DATA, data[at : at + DATA_BYTES]))
        return True

    def close_stdin(self) -> None:
        """Ends channel 0."""
        self._send(frame(self.stream, DATA, b"", flags=END))

    def control(self, value: Json) -> None:
        """Sends a control message."""
        self._send(message(self.stream, CONTROL, value))

    def abandon(self) -> None:
        """Abandons the call: the guest kills the command. Bytes that still come are dropped."""
        if not self.ended and not self._abandoned:
            self._abandoned = True
            self._send(frame(self.stream, CLOSE, b""))
        self._abandoned = True
        for item in self._inbox:
            if isinstance(item, Data):
                self._grant(item.channel, len(item.bytes))
        self._inbox.clear()

    async def wait_ended(self, timeout: float) -> bool:
        """Waits for the end of the call. Returns whether it came in time."""
        done, _ = await asyncio.wait([self._done], timeout=timeout)
        return bool(done)

    # ---- for the connection

    def take(self, item: Incoming) -> None:
        """Takes what has arrived."""
        if isinstance(item, Data):
            if item.channel not in (STDOUT, STDERR):
                raise ProtocolError(f"data on channel {item.channel}")
            self._received[item.channel] -= len(item.bytes)
            if self._received[item.channel] < 0:
                raise ProtocolError("more data than credit")
            if self._abandoned:
                self._grant(item.channel, len(item.bytes))
                return
        elif item.last:
            self.finish()
        if not self._abandoned:
            self._inbox.append(item)
            _wake(self._reader)

    def take_credit(self, channel: int, count: int) -> None:
        """Takes additional credit."""
        if channel != STDIN or self._credit + count > WINDOW:
            raise ProtocolError("more credit than a window")
        self._credit += count
        _wake(self._writer)

    def finish(self) -> None:
        """Ends the call."""
        self.ended = True
        if not self._done.done():
            self._done.set_result(None)
        _wake(self._reader)
        _wake(self._writer)

    def resume(self) -> None:
        """Wakes a writer that waits for the socket."""
        _wake(self._writer)

    async def _wait_to_write(self) -> None:
        while self._writer is not None:
            await asyncio.shield(self._writer)
        self._writer = self._connection.loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    def _grant(self, channel: int, count: int) -> None:
        self._consumed[channel] += count
        if self._consumed[channel] >= CREDIT_BYTES:
            granted, self._consumed[channel] = self._consumed[channel], 0
            self._received[channel] += granted
            self._send(frame(self.stream, CREDIT, U32.pack(granted), channel=channel))

    def _send(self, data: bytes) -> None:
        if not self.ended:
            self._connection.send(data)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Connection(asyncio.Protocol):
    """A connection to the supervisor of a sandbox."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.operations: frozenset[str] = frozenset()
        """Operations that the peer serves."""
        self.program = ""
        """Program and release of the peer."""
        self.is_full = False
        """True while the socket takes no more."""
        self._name = name
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._calls: dict[int, Call] = {}
        self._incomplete: dict[tuple[int, int], bytearray] = {}
        self._next = 1
        self._hello: asyncio.Future[None] = self.loop.create_future()
        self._lost: MicrosandboxError | None = None

    @classmethod
    async def open(cls, path: str, name: str) -> Connection:
        """Connects to a socket and exchanges the handshake."""
        try:
            peer = await asyncio.wait_for(_connect(path), HELLO_SECONDS)
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
            raise SandboxNotRunningError(f"the sandbox '{name}' is not running") from None
        except asyncio.TimeoutError:
            raise SandboxNotRunningError(f"the sandbox '{name}' does not accept clients") from None
        except OSError as error:
            raise IoError(f"cannot connect to the sandbox '{name}': {error}") from error
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: cls(name), sock=peer
            )
        except BaseException:
            peer.close()
            raise
        connection._socket = peer
        try:
            await asyncio.wait_for(connection._hello, HELLO_SECONDS)
        except asyncio.TimeoutError:
            connection.close()
            raise ProtocolError(f"the sandbox '{name}' sent no hello") from None
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def is_open(self) -> bool:
        """True if calls can be opened."""
        return self._lost is None

    @property
    def calls(self) -> int:
        """Number of open calls."""
        return len(self._calls)

    def call(self, request: Json, needs: tuple[str, ...] = ()) -> Call:
        """Opens a call. `needs` are the operations of its fields, besides its own."""
        if self._lost is not None:
            raise self.error()
        name = str(request["op"])
        operation = _OPERATIONS.get(name, name)
        missing = [need for need in (operation, *needs) if need not in self.operations]
        if missing:
            raise UnsupportedOperationError(
                f"{self.program or 'the sandbox'} does not serve: {', '.join(missing)}",
                hint=f"restart the sandbox: msb restart {self._name}",
                fields=tuple(missing),
            )
        stream = self._next
        opened = message(stream, OPEN, request)
        self._next += 1
        call = Call(self, stream)
        self._calls[stream] = call
        self.send(opened)
        return call

    def send(self, data: bytes) -> None:
        """Sends frames."""
        if self._transport is not None and self._lost is None:
            self._transport.write(data)

    def error(self) -> MicrosandboxError:
        """Returns a new exception for the end of this connection."""
        lost = self._lost or SandboxNotRunningError(f"the sandbox '{self._name}' has ended")
        return type(lost)(lost.message)

    def close(self) -> None:
        """Closes the connection. The peer ends its calls."""
        self._end(SandboxNotRunningError(f"the connection to '{self._name}' was closed"))

    def forget(self) -> None:
        """Closes this process's copy of the socket after a fork, without a word to the peer."""
        self._transport = None
        self._lost = SandboxNotRunningError("the connection belongs to another process")
        if self._socket is not None:
            # A detached socket is not closed again by the transport, whose number may be reused.
            os.close(self._socket.detach())
            self._socket = None

    # ---- of asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        hello: Json = {
            "version_min": VERSION,
            "version_max": VERSION,
            "program": "msb-sdk-python",
            "operations": [],
        }
        transport.write(message(0, HELLO, hello))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(SandboxNotRunningError(f"the sandbox '{self._name}' has ended"))

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        for call in self._calls.values():
            call.resume()

    def data_received(self, data: bytes) -> None:
        try:
            self._buffer += data
            self._parse()
        except MicrosandboxError as error:
            self._end(ProtocolError(f"the sandbox '{self._name}' broke the protocol: {error}"))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self._end(
                ProtocolError(f"the sandbox '{self._name}' sent an invalid message: {error!r}")
            )

    # ---- frames

    def _parse(self) -> None:
        buffer, at = self._buffer, 0
        size = HEADER.size
        while len(buffer) - at >= size and self._lost is None:
            length, stream, kind, channel, flags = HEADER.unpack_from(buffer, at)
            if length > FRAME_BYTES_MAX:
                raise ProtocolError(f"a frame of {length} bytes")
            if len(buffer) - at < size + length:
                break
            payload = bytes(memoryview(buffer)[at + size : at + size + length])
            at += size + length
            self._take(stream, kind, channel, flags, payload)
        del buffer[:at]

    def _take(self, stream: int, kind: int, channel: int, flags: int, payload: bytes) -> None:
        if (kind == HELLO) != (stream == 0):
            raise ProtocolError("only a hello has the stream 0")
        if not self._hello.done() and kind != HELLO:
            raise ProtocolError("no hello at the start")
        if kind == DATA:
            if flags & ~END:
                raise ProtocolError("unknown flags")
            if call := self._calls.get(stream):
                call.take(Data(channel, payload, bool(flags & END)))
        elif kind == CREDIT:
            if len(payload) != U32.size:
                raise ProtocolError("a credit of another length")
            if call := self._calls.get(stream):
                call.take_credit(channel, U32.unpack(payload)[0])
        elif kind in (HELLO, EVENT):
            self._take_message(stream, kind, flags, payload)
        else:
            raise ProtocolError(f"a frame of the kind {kind}")

    def _take_message(self, stream: int, kind: int, flags: int, payload: bytes) -> None:
        allowed = MORE if kind == HELLO else MORE | END
        if flags & ~allowed:
            raise ProtocolError("unknown flags")
        key = (stream, kind)
        started = self._incomplete.pop(key, None)
        if started is not None:
            started += payload
        if len(payload if started is None else started) > MESSAGE_BYTES_MAX:
            raise ProtocolError("a message is too long")
        if flags & MORE:
            self._incomplete[key] = bytearray(payload) if started is None else started
            if len(self._incomplete) > INCOMPLETE_MAX:
                raise ProtocolError("too many incomplete messages")
            return
        value: Any = json.loads(payload if started is None else started)
        if not isinstance(value, dict):
            raise ProtocolError("a message is no object")
        fields: Json = value  # pyright: ignore[reportUnknownVariableType]
        if kind == HELLO:
            self._take_hello(fields)
        elif call := self._calls.get(stream):
            last = bool(flags & END)
            if last:
                del self._calls[stream]
            call.take(Event(fields, last))

    def _take_hello(self, hello: Json) -> None:
        if self._hello.done():
            raise ProtocolError("a second hello")
        if not int(hello["version_min"]) <= VERSION <= int(hello["version_max"]):
            raise ProtocolError("no common version")
        self.program = str(hello.get("program", ""))
        self.operations = frozenset(str(name) for name in hello.get("operations", []))
        self._hello.set_result(None)

    def _end(self, error: MicrosandboxError) -> None:
        if self._lost is not None:
            return
        self._lost = error
        if self._transport is not None:
            self._transport.abort()
        if not self._hello.done():
            self._hello.set_exception(error)
            self._hello.exception()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.finish()


async def _connect(path: str) -> socket.socket:
    """Connects to a Unix socket. A path that is too long goes through its open directory."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        peer.setblocking(False)
        if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
            await _connect_to(peer, path)
        else:
            directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                await _connect_to(peer, f"/proc/self/fd/{directory}/{os.path.basename(path)}")
            finally:
                os.close(directory)
        _check_peer(peer)
    except BaseException:
        peer.close()
        raise
    return peer


async def _connect_to(peer: socket.socket, address: str) -> None:
    while True:
        try:
            peer.connect(address)
            return
        except BlockingIOError:
            # The queue of the listener is full.
            await asyncio.sleep(0.005)


def _check_peer(peer: socket.socket) -> None:
    """Refuses a supervisor of another user, as the programs do."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    if uid not in (0, os.getuid()):
        raise PermissionError(f"the socket belongs to the user {uid}")


