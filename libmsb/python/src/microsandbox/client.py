"""Connections to one sandbox, opened when they are needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from .errors import MicrosandboxError, SandboxNotRunningError
from .frames import Event
from .tool import Json
from .wire import Call, Connection


class Client:
    """Connections to one sandbox. Opens another one when all are busy.

    Connections belong to the event loop and the process that opened them. In another loop, and in a
    child after a fork, new ones are opened.
    """

    CONNECTIONS_MAX = 8
    CALLS_MAX = 60

    def __init__(self, name: str, socket_path: Callable[[], str]) -> None:
        self._name = name
        self._path = socket_path
        self._open: list[Connection] = []
        self._opening: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        # The loop itself keeps no task.
        self._told: set[asyncio.Task[None]] = set()

    async def connection(self) -> Connection:
        """Returns a connection with room for a call."""
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid() or self._loop is not loop:
            self._leave()
            self._loop, self._pid, self._opening = loop, os.getpid(), asyncio.Lock()
        assert self._opening is not None
        while True:
            if (free := self._free()) is not None:
                return free
            async with self._opening:
                if (free := self._free()) is not None:
                    return free
                if len(self._open) < self.CONNECTIONS_MAX:
                    connection = await Connection.open(self._path(), self._name)
                    self._open.append(connection)
                    return connection
            # Every connection is full: the next call that ends makes room.
            await asyncio.sleep(0.01)

    async def call(self, request: Json, needs: tuple[str, ...] = ()) -> Call:
        """Opens a call."""
        return (await self.connection()).call(request, needs)

    async def ask(self, request: Json, needs: tuple[str, ...] = ()) -> Json:
        """Opens a call that has one answer, and returns it."""
        call = await self.call(request, needs)
        try:
            while True:
                item = await call.receive()
                if isinstance(item, Event):
                    return item.message
        finally:
            call.abandon()

    async def tell(self, request: Json) -> None:
        """Sends a request that is answered at the end of the sandbox, and does not wait for it."""
        with contextlib.suppress(SandboxNotRunningError):
            task = asyncio.ensure_future(_ignore(await self.call(request)))
            self._told.add(task)
            task.add_done_callback(self._told.discard)
            # The request is on its way when the peer has answered any later one.
            await asyncio.sleep(0)

    def close(self) -> None:
        """Closes all connections. The next call opens a new one."""
        if self._pid != os.getpid():
            self._leave()
        for connection in self._open:
            connection.close()
        self._open.clear()

    def _free(self) -> Connection | None:
        self._open = [connection for connection in self._open if connection.is_open]
        usable = [connection for connection in self._open if connection.calls < self.CALLS_MAX]
        return usable[0] if usable else None

    def _leave(self) -> None:
        left, self._open = self._open, []
        for connection in left:
            if self._pid != os.getpid():
                connection.forget()
            elif not connection.loop.is_closed():
                with contextlib.suppress(RuntimeError):
                    connection.loop.call_soon_threadsafe(connection.close)


async def _ignore(call: Call) -> None:
    with contextlib.suppress(MicrosandboxError):
        while True:
            item = await call.receive()
            if isinstance(item, Event) and item.last:
                return
