"""Progress of the pull of an image, and the creation of a sandbox after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .config import ImageSource, SandboxConfig
from .errors import ImagePullFailedError, MicrosandboxError
from .image import Image
from .tool import Host, Json, LineReader
from .types import PullPolicy

if TYPE_CHECKING:
    from .sandbox import Sandbox


@dataclass(frozen=True)
class PullEvent:
    """An event of a pull. The subclasses name its kind; so does `event_type`."""

    event_type: ClassVar[str] = ""
    reference: str | None = None
    manifest_digest: str | None = None
    layer_count: int | None = None
    total_download_bytes: int | None = None
    layer_index: int | None = None
    digest: str | None = None
    diff_id: str | None = None
    downloaded_bytes: int | None = None
    total_bytes: int | None = None
    bytes_read: int | None = None


@dataclass(frozen=True)
class Resolving(PullEvent):
    """The registry is asked for the manifest."""

    event_type: ClassVar[str] = "resolving"


@dataclass(frozen=True)
class Resolved(PullEvent):
    """The manifest is known."""

    event_type: ClassVar[str] = "resolved"


@dataclass(frozen=True)
class LayerDownloadProgress(PullEvent):
    """More of a layer has arrived."""

    event_type: ClassVar[str] = "layer_download_progress"


@dataclass(frozen=True)
class LayerDownloadComplete(PullEvent):
    """All of a layer has arrived."""

    event_type: ClassVar[str] = "layer_download_complete"


@dataclass(frozen=True)
class LayerExtractStarted(PullEvent):
    """A layer is being converted."""

    event_type: ClassVar[str] = "layer_materialize_started"


@dataclass(frozen=True)
class LayerExtractProgress(PullEvent):
    """A layer is being converted. msb converts while it downloads and reports no bytes."""

    event_type: ClassVar[str] = "layer_materialize_progress"


@dataclass(frozen=True)
class LayerExtractComplete(PullEvent):
    """A layer is in the store."""

    event_type: ClassVar[str] = "layer_materialize_complete"


@dataclass(frozen=True)
class LayerIndexStarted(PullEvent):
    """The index of a layer is written. msb writes it with the layer."""

    event_type: ClassVar[str] = "layer_index_started"


@dataclass(frozen=True)
class LayerIndexComplete(PullEvent):
    """The index of a layer is complete. msb writes it with the layer."""

    event_type: ClassVar[str] = "layer_index_complete"


@dataclass(frozen=True)
class PullComplete(PullEvent):
    """The image is in the store."""

    event_type: ClassVar[str] = "complete"


class PullProgressIter:
    """Events of a pull. Any number of iterators see each event once, in order."""

    def __init__(self) -> None:
        self._events: list[PullEvent] = []
        self._ended = False
        self._changed = asyncio.Event()
        self._at = 0

    def add(self, event: PullEvent) -> None:
        """Adds an event."""
        self._events.append(event)
        self._changed.set()

    def end(self) -> None:
        """Ends the events."""
        self._ended = True
        self._changed.set()

    def __aiter__(self) -> AsyncIterator[PullEvent]:
        return self

    async def __anext__(self) -> PullEvent:
        while self._at >= len(self._events):
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        self._at += 1
        return self._events[self._at - 1]


class PullSession:
    """A pull and the creation of a sandbox after it. It starts when it is used first."""

    def __init__(
        self, config: SandboxConfig, create: Callable[[SandboxConfig], Awaitable[Sandbox]]
    ) -> None:
        self._config = config
        self._create = create
        self._progress: PullProgressIter | None = None
        self._task: asyncio.Task[Sandbox] | None = None
        self._taken = False

    @property
    def progress(self) -> PullProgressIter:
        """Events of the pull."""
        self._start()
        assert self._progress is not None
        return self._progress

    async def result(self) -> Sandbox:
        """Waits for the sandbox. It can be taken once."""
        if self._taken:
            raise RuntimeError("the sandbox was taken already")
        self._taken = True
        self._start()
        assert self._task is not None
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        """Cancels what is under way."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def __aenter__(self) -> PullSession:
        self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._taken:
            await self.close()

    def _start(self) -> None:
        if self._task is None:
            self._progress = PullProgressIter()
            self._task = asyncio.ensure_future(self._run(self._progress))

    async def _run(self, progress: PullProgressIter) -> Sandbox:
        try:
            config = self._config
            image = None if config.image is None else ImageSource.of(config.image)
            if image is not None and image.kind == "oci" and await self._is_wanted(image.value):
                await pull(Host.current(), image.value, config, progress.add)
                config.pull_policy = PullPolicy.NEVER
            progress.end()
            return await self._create(config)
        finally:
            progress.end()

    async def _is_wanted(self, reference: str) -> bool:
        policy = self._config.pull
        if policy is PullPolicy.IF_MISSING:
            return not await Image.exists(reference)
        return policy is PullPolicy.ALWAYS


async def pull(
    host: Host, reference: str, config: SandboxConfig, add: Callable[[PullEvent], None]
) -> None:
    """Pulls an image and reports its events."""
    add(Resolving(reference=reference))
    args = ["image", "pull", "--format=json"]
    auth = config.registry_auth
    if auth is not None:
        args += [f"--username={auth.username}", "--password-stdin"]
    process = await host.start(*args, "--", reference, stdin=auth is not None)
    if auth is not None and process.stdin is not None:
        process.stdin.write(auth.password.encode())
        process.stdin.close()
    reader = LineReader(process, tuple(args))
    states = _LayerStates(add)
    try:
        async for line in reader.lines():
            states.take(line)
    except MicrosandboxError as error:
        if type(error) is MicrosandboxError:
            raise ImagePullFailedError(error.message, hint=error.hint) from None
        raise
    finally:
        await reader.close()


class _LayerStates:
    """Translation of the states of layers to events."""

    def __init__(self, add: Callable[[PullEvent], None]) -> None:
        self._add = add
        self._layers: dict[str, int] = {}
        self._states: dict[str, str] = {}

    def take(self, line: Json) -> None:
        kind = line.get("type")
        if kind == "resolved":
            self._add(
                Resolved(
                    reference=line.get("reference"),
                    manifest_digest=line.get("digest"),
                    layer_count=line.get("layers"),
                    total_download_bytes=line.get("size_bytes"),
                )
            )
        elif kind == "pulled":
            self._add(
                PullComplete(
                    reference=line.get("reference"),
                    manifest_digest=line.get("digest"),
                    layer_count=line.get("layers"),
                )
            )
        elif kind == "layer_progress":
            self._take_layer(line)

    def _take_layer(self, line: Json) -> None:
        digest, state = str(line.get("digest")), str(line.get("state"))
        index = self._layers.setdefault(digest, len(self._layers))
        before, self._states[digest] = self._states.get(digest), state
        done, total = line.get("done_bytes"), line.get("size_bytes")
        if state == "downloading":
            self._add(
                LayerDownloadProgress(
                    layer_index=index, digest=digest, downloaded_bytes=done, total_bytes=total
                )
            )
        if before != state and state in ("unpacking", "done", "present"):
            if before not in ("unpacking", "present"):
                self._add(
                    LayerDownloadComplete(
                        layer_index=index, digest=digest, downloaded_bytes=total, total_bytes=total
                    )
                )
            kind = LayerExtractStarted if state == "unpacking" else LayerExtractComplete
            self._add(kind(layer_index=index, digest=digest))


__all__ = [
    "LayerDownloadComplete",
    "LayerDownloadProgress",
    "LayerExtractComplete",
    "LayerExtractProgress",
    "LayerExtractStarted",
    "LayerIndexComplete",
    "LayerIndexStarted",
    "PullComplete",
    "PullEvent",
    "PullProgressIter",
    "PullSession",
    "Resolved",
    "Resolving",
    "pull",
]
