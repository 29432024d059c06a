"""The thread behind `microsandbox.sync`: one event loop for all calls of a process.

A call works in any thread, inside a running event loop (as in a notebook), and in a child after a
fork, which gets a loop of its own. KeyboardInterrupt cancels the call and waits for its clean-up.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

CLEANUP_SECONDS = 15.0
"""Time for a cancelled call to clean up."""


class Portal:
    """A thread with an event loop."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._serve, name="microsandbox", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop and waits for it."""
        if threading.current_thread() is self.thread:
            work.close()
            raise RuntimeError("a call of microsandbox.sync within its own event loop")
        call = _Call(work)
        self.loop.call_soon_threadsafe(call.start)
        try:
            call.done.wait()
        except BaseException:
            self.loop.call_soon_threadsafe(call.cancel)
            call.done.wait(CLEANUP_SECONDS)
            raise
        return call.result()


class _Call(Generic[T]):
    """A coroutine and its result."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self.done = threading.Event()
        self._work = work
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False

    def start(self) -> None:
        if self._cancelled:
            self._work.close()
            self.done.set()
            return
        self._task = asyncio.ensure_future(self._work)
        self._task.add_done_callback(lambda _: self.done.set())

    def cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def result(self) -> T:
        assert self._task is not None
        return self._task.result()


_portal: Portal | None = None
_lock = threading.Lock()


def _current() -> Portal:
    global _portal
    with _lock:
        if _portal is None or _portal.pid != os.getpid():
            _portal = Portal()
        return _portal


def _forget_lock() -> None:
    """Replaces the lock in a child: another thread may have held it during the fork."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in the loop of this process and waits for it."""
    return _current().run(work)


def call(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """Calls a function in the thread of the loop."""

    async def work() -> T:
        return function(*args, **options)

    return run(work())


class Wrapper(Generic[T]):
    """An object whose calls run in the loop."""

    __slots__ = ("_wrapped",)

    def __init__(self, wrapped: T) -> None:
        self._wrapped = wrapped

    def __repr__(self) -> str:
        return repr(self._wrapped)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Wrapper):
            return NotImplemented
        other_wrapped: object = cast("Wrapper[object]", other)._wrapped
        return self._wrapped == other_wrapped

    def __hash__(self) -> int:
        return hash(self._wrapped)
