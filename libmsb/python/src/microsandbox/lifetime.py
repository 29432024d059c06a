"""Keepalive pipes: a sandbox that is not detached ends when this process ends.

The supervisor of a sandbox holds the reading end. The kernel closes the writing end when this
process ends for any reason, SIGKILL included. A child after a fork closes its copies at once.
"""

from __future__ import annotations

import contextlib
import os
import weakref

_bonds: weakref.WeakSet[Bond] = weakref.WeakSet()


class Bond:
    """The writing end of a keepalive pipe."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        _bonds.add(self)

    @property
    def is_held(self) -> bool:
        """True while the sandbox depends on this process."""
        return self._writer >= 0

    def passed_on(self) -> None:
        """Closes the reading end, of which the supervisor has a copy."""
        reader, self.reader = self.reader, -1
        if reader >= 0:
            os.close(reader)

    def release(self) -> None:
        """Lets the sandbox go on without this process."""
        if self._writer >= 0:
            with contextlib.suppress(OSError):
                os.write(self._writer, b"d")
        self.close()

    def close(self) -> None:
        """Closes the pipe: the sandbox is stopped, unless it was released."""
        self.passed_on()
        writer, self._writer = self._writer, -1
        if writer >= 0:
            os.close(writer)

    def __del__(self) -> None:
        self.close()


def _close_in_child() -> None:
    for bond in list(_bonds):
        bond.close()


os.register_at_fork(after_in_child=_close_in_child)
