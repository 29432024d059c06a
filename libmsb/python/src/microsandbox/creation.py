"""Creation and start of sandboxes by the programs, and removal of what a process has created."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict, Union

from .config import (
    ImageSource,
    InitLike,
    MemoryLike,
    MountConfig,
    PatchConfig,
    SandboxConfig,
)
from .errors import ImageNotFoundError, ImagePullFailedError, SandboxNotFoundError
from .lifetime import Bond
from .network import Network, PortsLike
from .secret import SecretEntry, Violation
from .times import milliseconds
from .tool import Host, Json, shielded
from .types import (
    LogLevel,
    PullPolicy,
    RegistryAuth,
    Rlimit,
    SecurityProfile,
    StrPath,
)


class CreateOptions(TypedDict, total=False):
    """Keyword arguments of `Sandbox.create`."""

    image: Union[str, os.PathLike[str], ImageSource, None]
    snapshot: str | None
    cpus: int
    memory: MemoryLike
    workdir: str | None
    shell: str | None
    security: Union[SecurityProfile, str, None]
    hostname: str | None
    libkrunfw_path: StrPath | None
    user: str | None
    entrypoint: Sequence[str] | None
    init: InitLike | None
    replace: bool
    replace_with_timeout: float | None
    max_duration: float | None
    idle_timeout: float | None
    env: Mapping[str, str] | None
    labels: Mapping[str, str] | None
    scripts: Mapping[str, str] | None
    pull_policy: Union[PullPolicy, str, None]
    log_level: Union[LogLevel, str, None]
    registry_auth: RegistryAuth | None
    volumes: Mapping[str, MountConfig] | None
    patches: Iterable[PatchConfig] | None
    ports: PortsLike | None
    network: Union[Network, str, None]
    secrets: Iterable[SecretEntry] | None
    on_secret_violation: Violation | None
    rlimits: Iterable[Rlimit] | None
    metrics_interval: float | None
    detached: bool


async def create(
    config: SandboxConfig,
) -> tuple[Host, str, Bond | None, tuple[float, float]]:
    """Creates and starts a sandbox. Returns its host, its name, what it depends on, and the times
    between which it was created.
    """
    host = Host.current()
    document = json.dumps(config.to_json()).encode()
    more: dict[str, str] = {}
    if config.libkrunfw_path is not None:
        more["MSB_KRUNFW"] = os.fspath(config.libkrunfw_path)
    bond = None if config.detached else Bond()
    began = time.time() * 1000
    args = ["create", *config.options()]
    if bond is not None:
        args.append(f"--bond-fd={bond.reader}")
    descriptors = () if bond is None else (bond.reader,)
    try:
        await host.run(*args, stdin=document, descriptors=descriptors, more=more)
    except BaseException as error:
        if bond is not None:
            bond.close()
        if isinstance(error, asyncio.CancelledError):
            await shielded(remove_made(host, config.name, began))
        if isinstance(error, ImageNotFoundError) and config.pull is not PullPolicy.NEVER:
            raise ImagePullFailedError(error.message, hint=error.hint) from None
        raise
    if bond is not None:
        bond.passed_on()
    return host, config.name, bond, (began, time.time() * 1000)


async def start(name: str, detached: bool) -> tuple[Host, str, Bond | None]:
    """Starts a sandbox that is not running."""
    host = Host.current()
    if detached:
        await host.run("start", "--quiet", "--", name)
        return host, name, None
    bond = Bond()
    try:
        option = f"--bond-fd={bond.reader}"
        await host.run("start", "--quiet", option, "--", name, descriptors=(bond.reader,))
    except BaseException:
        bond.close()
        raise
    bond.passed_on()
    return host, name, bond


async def remove_made(
    host: Host, name: str, began: float, ended: float | None = None
) -> None:
    """Kills and removes a sandbox, if it was created between two times: ours, and no later one."""
    with contextlib.suppress(SandboxNotFoundError):
        document: Json = await host.json("inspect", "--format=json", "--", name)
        created = milliseconds(document.get("created_at")) or 0.0
        if created >= began - 1 and (ended is None or created <= ended):
            await host.run("rm", "--force", "--", name)
