"""The raw agent client of microsandbox, which msb does not serve.

Its frames and CBOR bodies are those of another guest protocol. The module `microsandbox.client` is
a client of msb's own protocol, msb-wire(5).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from .errors import UnsupportedOperationError
from .types import StrPath

FLAG_TERMINAL = 1
FLAG_SESSION_START = 2
FLAG_SHUTDOWN = 4


def _refusal() -> UnsupportedOperationError:
    return UnsupportedOperationError(
        "not supported: the raw agent protocol of microsandbox",
        hint="use microsandbox.wire, the client of msb-wire(5)",
        fields=("agent",),
    )


class AgentStream:
    """A stream of frames."""

    id: int = 0

    async def next(self) -> tuple[int, int, bytes] | None:
        """Returns the next frame."""
        raise _refusal()

    async def close(self) -> None:
        """Closes the stream."""
        raise _refusal()

    def __aiter__(self) -> AsyncIterator[tuple[int, int, bytes]]:
        raise _refusal()

    async def __aenter__(self) -> AgentStream:
        raise _refusal()

    async def __aexit__(self, *_: object) -> None:
        raise _refusal()


class AgentClient:
    """A client of the guest's agent."""

    @staticmethod
    async def connect_sandbox(name: str, *, timeout: float | None = None) -> AgentClient:
        """Connects to the agent of a sandbox."""
        raise _refusal()

    @staticmethod
    async def connect(path: StrPath, *, timeout: float | None = None) -> AgentClient:
        """Connects to a socket."""
        raise _refusal()

    async def request(self, flags: int, body: bytes) -> tuple[int, int, bytes]:
        """Sends a frame and returns the answer."""
        raise _refusal()

    async def stream(self, flags: int, body: bytes) -> AgentStream:
        """Sends a frame and returns the stream of answers."""
        raise _refusal()

    async def send(self, id: int, flags: int, body: bytes) -> None:
        """Sends a frame of a stream."""
        raise _refusal()

    def ready_bytes(self) -> bytes:
        """Returns the greeting of the agent."""
        raise _refusal()

    async def close(self) -> None:
        """Closes the connection."""
        raise _refusal()
