"""A peer that plays the supervisor of a sandbox: an older one, a hostile one, one that dies."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from microsandbox import frames
from microsandbox.client import Client

FIXTURES = Path(__file__).resolve().parents[2] / "sdk-fixtures"
HEADER = struct.Struct(">IIBBH")


def fixture(name: str) -> Any:
    """Returns a fixture of all SDKs."""
    return json.loads((FIXTURES / name).read_text())


class Peer:
    """A listening supervisor. `act` plays it, after the hello of the client."""

    def __init__(
        self,
        act: Callable[[Peer], Awaitable[None]],
        hello: Any = None,
    ) -> None:
        self._act = act
        self._hello = hello if hello is not None else fixture("frames.json")["hello"]
        self._directory = tempfile.TemporaryDirectory()
        self.path = os.path.join(self._directory.name, "agent.sock")
        self.errors: list[BaseException] = []

    async def __aenter__(self) -> Peer:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._directory.cleanup()
        if self.errors:
            raise self.errors[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        try:
            await self.receive()
            writer.write(frames.message(0, frames.HELLO, self._hello))
            await self._act(self)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except BaseException as error:
            self.errors.append(error)
        finally:
            writer.close()

    async def receive(self) -> tuple[int, int, int, int, bytes]:
        """Returns a frame: stream, kind, channel, flags and payload."""
        head = await self.reader.readexactly(HEADER.size)
        length, stream, kind, channel, flags = HEADER.unpack(head)
        return stream, kind, channel, flags, await self.reader.readexactly(length)

    async def opened(self) -> tuple[int, Any]:
        """Waits for a request. Returns its stream and fields."""
        stream, kind, _, _, payload = await self.receive()
        assert kind == frames.OPEN, kind
        return stream, json.loads(payload)

    def event(self, stream: int, fields: Any, last: bool = False) -> None:
        """Sends an event."""
        payload = json.dumps(fields).encode()
        flags = frames.END if last else 0
        self.writer.write(frames.frame(stream, frames.EVENT, payload, flags=flags))

    def data(self, stream: int, data: bytes, channel: int = frames.STDOUT) -> None:
        """Sends bytes of a channel."""
        self.writer.write(frames.frame(stream, frames.DATA, data, channel=channel))

    def client(self) -> Client:
        """Returns a client of this peer."""
        return Client("peer", lambda: self.path)
