"""Resource usage of sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from . import types
from .errors import MetricsUnavailableError
from .times import milliseconds
from .tool import Host, Json, LineReader

_COUNTS = (
    "memory_bytes",
    "memory_limit_bytes",
    "disk_read_bytes",
    "disk_write_bytes",
    "net_rx_bytes",
    "net_tx_bytes",
)


@dataclass(frozen=True)
class SandboxMetrics:
    """A sample of the resource usage of a sandbox. Unknown values are 0, and in `unknown`."""

    cpu_percent: float
    memory_bytes: int
    memory_limit_bytes: int
    disk_read_bytes: int
    disk_write_bytes: int
    net_rx_bytes: int
    net_tx_bytes: int
    uptime_ms: float
    timestamp_ms: float
    unknown: frozenset[str] = frozenset()
    """Names of values that are not known yet."""

    @classmethod
    def of(cls, sample: Json) -> SandboxMetrics:
        """Returns the sample of a JSON object."""
        counts = {name: int(sample.get(name) or 0) for name in _COUNTS}
        unknown = {name for name in ("cpu_percent", *_COUNTS) if sample.get(name) is None}
        return cls(
            cpu_percent=float(sample.get("cpu_percent") or 0.0),
            uptime_ms=float(sample.get("uptime_secs") or 0.0) * 1000,
            timestamp_ms=milliseconds(sample.get("timestamp")) or 0.0,
            unknown=frozenset(unknown),
            **counts,
        )


async def read_metrics(host: Host, name: str) -> SandboxMetrics:
    """Returns the last sample of a sandbox."""
    return SandboxMetrics.of(await host.json("metrics", "show", "--format=json", "--", name))


async def all_sandbox_metrics() -> dict[str, SandboxMetrics]:
    """Returns the last sample of each running sandbox, by its name."""
    host = Host.current()
    args = ("metrics", "jsonl", "--count=1")
    reader = LineReader(await host.start(*args), args)
    try:
        lines = [line async for line in reader.lines()]
    finally:
        await reader.close()
    samples = [line for line in lines if line.get("type") == "sample"]
    return {str(sample["name"]): SandboxMetrics.of(sample) for sample in samples}


class MetricsStream:
    """Samples of a sandbox at an interval. Iterate over it, or call `recv`."""

    def __init__(self, reader: LineReader) -> None:
        self._reader = reader
        self._ended = False

    @classmethod
    async def open(cls, host: Host, name: str, interval: float = 1.0) -> MetricsStream:
        """Opens a stream."""
        # The first call reports a sandbox without samples by its error.
        await read_metrics(host, name)
        every = f"--interval={types.duration('interval', interval)}"
        args = ("metrics", "show", "--watch", every, "--format=json", "--", name)
        return cls(LineReader(await host.start(*args), args))

    async def recv(self) -> SandboxMetrics | None:
        """Returns the next sample; `None` at the end of the sandbox."""
        while not self._ended:
            line = await self._reader.next()
            if line is None or line.get("type") == "exit":
                self._ended = True
            elif line.get("type", "sample") == "sample":
                return SandboxMetrics.of(line)
        return None

    async def close(self) -> None:
        """Ends the stream."""
        self._ended = True
        await self._reader.close()

    def __aiter__(self) -> AsyncIterator[SandboxMetrics]:
        return self

    async def __anext__(self) -> SandboxMetrics:
        sample = await self.recv()
        if sample is None:
            await self.close()
            raise StopAsyncIteration
        return sample

    async def __aenter__(self) -> MetricsStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


__all__ = [
    "MetricsStream",
    "MetricsUnavailableError",
    "SandboxMetrics",
    "all_sandbox_metrics",
    "read_metrics",
]
