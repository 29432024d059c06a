"""Sandboxes."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

from . import handle, types
from .client import Client
from .command import ExecHandle, run
from .config import (
    ImageSource,
    InitLike,
    MemoryLike,
    MountConfig,
    PatchConfig,
    SandboxConfig,
)
from .creation import CreateOptions, create, remove_made, start
from .errors import (
    SandboxNotFoundError,
    SandboxNotRunningError,
)
from .exec_options import ExecArgs, ExecOptions, StdinSource, given_options
from .exec_output import ExecOutput
from .files import SandboxFs
from .handle import STOP_SECONDS, SandboxHandle, SandboxStopResult
from .job import Job, JobInfo
from .lifetime import Bond
from .logs import LogEntry, LogSources, LogStream, read_logs
from .metrics import MetricsStream, SandboxMetrics, read_metrics
from .network import Network, PortsLike
from .pull import PullSession
from .secret import SecretEntry, Violation
from .ssh import SandboxSsh
from .terminal import attach
from .tool import Host, Json, shielded
from .types import (
    AwaitableBool,
    AwaitableStr,
    ExitStatus,
    LogLevel,
    PullPolicy,
    RegistryAuth,
    Rlimit,
    SecurityProfile,
    StrPath,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

CONNECT_PAUSE_SECONDS = 0.05
"""Time between two attempts to connect."""


class Sandbox:
    """A running sandbox.

    `create`, `start` and `connect` return one. A sandbox that `create` or `start` returned ends
    when this process ends, unless it is detached. `async with` kills it at the end of the block,
    and removes it if `create` made it.
    """

    def __init__(self, host: Host, name: str, bond: Bond | None, made: Any = None) -> None:
        self._host = host
        self._name = AwaitableStr(name)
        self._bond = bond
        self._made: tuple[float, float] | None = made
        self._used_up = False
        self._client = Client(name, lambda: host.socket(name))
        self._fs = SandboxFs(self._client, host, name)

    # ---- making and finding

    @classmethod
    async def create(
        cls,
        name: str,
        *,
        image: Union[str, os.PathLike[str], ImageSource, None] = None,
        snapshot: str | None = None,
        cpus: int = 1,
        memory: MemoryLike = 512,
        workdir: str | None = None,
        shell: str | None = None,
        security: Union[SecurityProfile, str, None] = None,
        hostname: str | None = None,
        libkrunfw_path: StrPath | None = None,
        user: str | None = None,
        entrypoint: Sequence[str] | None = None,
        init: InitLike | None = None,
        replace: bool = False,
        replace_with_timeout: float | None = None,
        max_duration: float | None = None,
        idle_timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        scripts: Mapping[str, str] | None = None,
        pull_policy: Union[PullPolicy, str, None] = None,
        log_level: Union[LogLevel, str, None] = None,
        registry_auth: RegistryAuth | None = None,
        volumes: Mapping[str, MountConfig] | None = None,
        patches: Iterable[PatchConfig] | None = None,
        ports: PortsLike | None = None,
        network: Union[Network, str, None] = None,
        secrets: Iterable[SecretEntry] | None = None,
        on_secret_violation: Violation | None = None,
        rlimits: Iterable[Rlimit] | None = None,
        metrics_interval: float | None = None,
        detached: bool = False,
    ) -> Sandbox:
        """Creates a sandbox and starts it. Returns when its guest accepts commands.

        `memory` is in MiB, times are in seconds. What the installed programs do not support raises
        UnsupportedOperationError with the names of the fields, and nothing is created.
        """
        options = {key: value for key, value in locals().items() if key not in ("cls", "name")}
        return await cls._create(SandboxConfig(name, **options))

    @classmethod
    def create_with_progress(cls, name: str, **options: Unpack[CreateOptions]) -> PullSession:
        """Returns a pull of the image, with its progress, and the creation after it."""
        return PullSession(SandboxConfig(name, **options), cls._create)

    @classmethod
    async def _create(cls, config: SandboxConfig) -> Sandbox:
        return cls(*await create(config))

    @classmethod
    async def start(cls, name: str, *, detached: bool = False) -> Sandbox:
        """Starts a sandbox that is not running."""
        return cls(*await start(types.text("name", name), detached))

    @classmethod
    async def connect(cls, name: str, *, timeout: float = 10.0) -> Sandbox:
        """Returns a running sandbox, without owning it. Waits while it starts."""
        deadline = time.monotonic() + types.seconds("timeout", timeout)
        sandbox = cls(Host.current(), types.text("name", name), None)
        while True:
            try:
                await sandbox._client.connection()
                return sandbox
            except SandboxNotRunningError:
                state = await SandboxHandle.find(name)
                if state.status.value not in ("starting", "running"):
                    raise
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(CONNECT_PAUSE_SECONDS)

    @staticmethod
    async def get(name: str) -> SandboxHandle:
        """Returns the handle of a sandbox, running or not. Raises SandboxNotFoundError."""
        return await SandboxHandle.find(name)

    @staticmethod
    async def list() -> builtins.list[SandboxHandle]:
        """Returns the handles of all sandboxes, sorted by name."""
        return await SandboxHandle.all()

    @staticmethod
    async def list_with(*, labels: Mapping[str, str] | None = None) -> builtins.list[SandboxHandle]:
        """Returns the handles of the sandboxes that have all these labels."""
        return await SandboxHandle.all(labels)

    @staticmethod
    async def remove(name: str) -> None:
        """Removes a sandbox. Raises SandboxStillRunningError."""
        await Host.current().run("rm", "--", types.text("name", name))

    # ---- properties

    @property
    def name(self) -> AwaitableStr:
        """Name."""
        return self._name

    @property
    def owns_lifecycle(self) -> AwaitableBool:
        """True if the sandbox ends when this process ends."""
        return AwaitableBool(self._bond is not None and self._bond.is_held)

    @property
    def fs(self) -> SandboxFs:
        """Files of the guest."""
        return self._fs

    def ssh(self) -> SandboxSsh:
        """Returns sessions as over SSH."""
        return SandboxSsh(self._ready(), self._host, self._name)

    # ---- commands

    async def exec(
        self,
        cmd: str,
        args: ExecArgs = None,
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: StdinSource | None = None,
        tty: bool = False,
        rlimits: Sequence[Rlimit] | None = None,
        log: bool | None = None,
        max_output_bytes: int | None = None,
    ) -> ExecOutput:
        """Runs a command to its end and returns its output.

        `timeout` is in seconds; then the command is killed and ExecTimeoutError has its output. A
        cancellation kills the command too. `max_output_bytes` bounds what is kept of each stream.
        """
        given = given_options(cwd, user, env, timeout, stdin, tty, rlimits, log, max_output_bytes)
        return await run(self._ready(), ExecOptions.of(cmd, args, given), self._name)

    async def exec_stream(
        self,
        cmd: str,
        args: ExecArgs = None,
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: StdinSource | None = None,
        tty: bool = False,
        rlimits: Sequence[Rlimit] | None = None,
        log: bool | None = None,
        max_output_bytes: int | None = None,
    ) -> ExecHandle:
        """Starts a command and streams its events. A slow reader slows the command down."""
        given = given_options(cwd, user, env, timeout, stdin, tty, rlimits, log, max_output_bytes)
        return await ExecHandle.start(self._ready(), ExecOptions.of(cmd, args, given), self._name)

    async def shell(
        self,
        script: str,
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: StdinSource | None = None,
        tty: bool = False,
        rlimits: Sequence[Rlimit] | None = None,
        log: bool | None = None,
        max_output_bytes: int | None = None,
    ) -> ExecOutput:
        """Runs a script by the shell of the sandbox."""
        given = given_options(cwd, user, env, timeout, stdin, tty, rlimits, log, max_output_bytes)
        words = ["-c", types.text("script", script)]
        options = ExecOptions.of(await self._shell(), words, given)
        return await run(self._ready(), options, self._name)

    async def shell_stream(
        self,
        script: str,
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: StdinSource | None = None,
        tty: bool = False,
        rlimits: Sequence[Rlimit] | None = None,
        log: bool | None = None,
        max_output_bytes: int | None = None,
    ) -> ExecHandle:
        """Starts a script by the shell of the sandbox and streams its events."""
        given = given_options(cwd, user, env, timeout, stdin, tty, rlimits, log, max_output_bytes)
        words = ["-c", types.text("script", script)]
        options = ExecOptions.of(await self._shell(), words, given)
        return await ExecHandle.start(self._ready(), options, self._name)

    async def attach(
        self,
        cmd: str,
        args: Sequence[str] | None = None,
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        detach_keys: str | None = None,
    ) -> int:
        """Runs a command on the terminal of this process. Returns its exit code."""
        words = [types.text("cmd", cmd), *(args or ())]
        self._ready()
        return await attach(
            self._host,
            self._name,
            words,
            cwd=cwd,
            user=user,
            env=env,
            detach_keys=detach_keys,
        )

    async def attach_shell(self) -> int:
        """Runs the shell of the sandbox on the terminal of this process."""
        return await self.attach(await self._shell())

    async def start_job(
        self,
        cmd: str,
        args: ExecArgs = None,
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: StdinSource | None = None,
        tty: bool = False,
        rlimits: Sequence[Rlimit] | None = None,
    ) -> Job:
        """Starts a command that continues without this process. Its output is in the log."""
        given = given_options(cwd, user, env, timeout, stdin, tty, rlimits, None, None)
        options = ExecOptions.of(cmd, args, given)
        return await Job.start(self._ready(), self._host, self._name, options)

    async def job(self, id: str) -> Job:
        """Returns a job by its identifier."""
        found = Job(self._ready(), self._host, self._name, types.text("id", id))
        await found.info()
        return found

    async def jobs(self) -> builtins.list[JobInfo]:
        """Returns the running jobs and the last ones that have ended."""
        rows: list[Json] = await self._host.json("jobs", "--format=json", "--", self._name)
        return [JobInfo.of(row) for row in rows]

    async def ping(self) -> float:
        """Asks the guest for a sign of life. Returns the time that it took, in milliseconds."""
        began = time.perf_counter()
        await self._ready().ask({"op": "ping"})
        return (time.perf_counter() - began) * 1000

    # ---- logs and metrics

    async def metrics(self) -> SandboxMetrics:
        """Returns the last sample of the resource usage."""
        return await read_metrics(self._host, self._name)

    async def metrics_stream(self, interval: float = 1.0) -> MetricsStream:
        """Opens a stream of samples, every `interval` seconds."""
        return await MetricsStream.open(self._host, self._name, interval)

    async def logs(
        self,
        *,
        tail: int | None = None,
        since_ms: float | None = None,
        until_ms: float | None = None,
        sources: LogSources | None = None,
    ) -> builtins.list[LogEntry]:
        """Returns the log: output of the main command, of jobs and of logged commands."""
        return await read_logs(
            self._host,
            self._name,
            tail=tail,
            since_ms=since_ms,
            until_ms=until_ms,
            sources=sources,
        )

    async def log_stream(
        self,
        *,
        sources: LogSources | None = None,
        since_ms: float | None = None,
        from_cursor: str | None = None,
        until_ms: float | None = None,
        follow: bool = False,
    ) -> LogStream:
        """Opens a stream of the log, from the start, a time or a cursor."""
        return await LogStream.open(
            self._host,
            self._name,
            sources=sources,
            since_ms=since_ms,
            from_cursor=from_cursor,
            until_ms=until_ms,
            follow=follow,
        )

    # ---- the end

    async def stop(self, *, timeout: float = STOP_SECONDS) -> None:
        """Stops the sandbox and waits for its end. Kills it when the time is up."""
        await handle.stop(self._host, self._name, timeout)

    async def request_stop(self, *, timeout: float = STOP_SECONDS) -> None:
        """Asks the sandbox to stop, and does not wait."""
        ms = round(types.seconds("timeout", timeout) * 1000)
        await self._ready().tell({"op": "stop", "timeout_ms": ms})

    async def stop_and_wait(self) -> ExitStatus:
        """Stops the sandbox and returns the exit status of its main command."""
        await self.stop()
        return await self.wait()

    async def wait(self) -> ExitStatus:
        """Waits for the end. Returns the exit status of the main command; 0 if it had none."""
        result = await self.wait_until_stopped()
        return ExitStatus(result.exit_code or 0, (result.exit_code or 0) == 0)

    async def wait_until_stopped(self, *, timeout: float | None = None) -> SandboxStopResult:
        """Waits for the end of the sandbox."""
        return await handle.wait_until_stopped(self._host, self._name, timeout)

    async def kill(self) -> None:
        """Kills the sandbox and waits for its end."""
        await handle.stop(self._host, self._name, 0)

    async def request_kill(self) -> None:
        """Kills the sandbox, and does not wait."""
        await self.request_stop(timeout=0)

    async def drain(self) -> None:
        """Asks the sandbox to refuse new commands, and to stop when those that run have ended."""
        await self._ready().tell({"op": "drain"})

    async def request_drain(self) -> None:
        """Asks the sandbox to refuse new commands, and to stop when those that run have ended."""
        await self.drain()

    async def detach(self) -> None:
        """Lets the sandbox go on without this process. The object is used up."""
        self._ready()
        if self._bond is not None:
            self._bond.release()
        self._used_up = True
        await self.close()

    async def remove_persisted(self) -> None:
        """Removes the stopped sandbox. The object is used up."""
        await self._host.run("rm", "--", self._name)
        self._used_up = True
        await self.close()

    async def close(self) -> None:
        """Closes the connections. The sandbox goes on; the next call opens another one."""
        self._fs.close()
        self._client.close()

    async def __aenter__(self) -> Sandbox:
        return self

    async def __aexit__(self, *_: object) -> None:
        await shielded(self._leave())

    async def _leave(self) -> None:
        await self.close()
        if self._used_up:
            return
        try:
            if self._made is not None:
                await remove_made(self._host, self._name, *self._made)
            elif self._bond is not None:
                with contextlib.suppress(SandboxNotFoundError):
                    await self.kill()
        finally:
            if self._bond is not None:
                self._bond.close()

    def _ready(self) -> Client:
        if self._used_up:
            raise RuntimeError(f"the object of the sandbox '{self._name}' is used up")
        return self._client

    _shell_program: str | None = None

    async def _shell(self) -> str:
        if self._shell_program is None:
            config = (await SandboxHandle.find(self._name)).config()
            self._shell_program = str(config.get("shell") or "/bin/sh")
        return self._shell_program

    def __repr__(self) -> str:
        return f"<Sandbox {str(self._name)!r}>"


__all__ = ["CreateOptions", "Sandbox", "SandboxHandle"]
