"""Installation of the programs. The package brings none and downloads none."""

from __future__ import annotations

from .errors import ProgramNotFoundError
from .tool import Host, find_program, set_program

SDK_VERSION = "0.1.0"
"""Version of this package."""


async def install() -> None:
    """Checks that the programs are installed. msb comes from its package, not from here."""
    find_program()


def is_installed() -> bool:
    """Returns whether the programs are installed."""
    try:
        find_program()
    except ProgramNotFoundError:
        return False
    return True


def version() -> str:
    """Returns the version of this package."""
    return SDK_VERSION


async def runtime_version() -> str:
    """Returns the version of the programs."""
    return (await Host.current().run("--version")).decode().split()[-1]


__all__ = ["SDK_VERSION", "install", "is_installed", "runtime_version", "set_program", "version"]
