"""Sessions as over SSH, without SSH: login shells and files of a sandbox."""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from typing import Any, Union

from . import types
from .client import Client
from .command import ExecHandle, run
from .errors import FilesystemError, MicrosandboxError
from .exec_options import ExecOptions
from .files import FsEntry, SandboxFs
from .terminal import attach
from .tool import Host
from .types import StrPath


@dataclass(frozen=True)
class SshOutput:
    """Result of a command."""

    status: int
    stdout_bytes: bytes
    stderr_bytes: bytes

    @property
    def success(self) -> bool:
        """True if the status is 0."""
        return self.status == 0

    @property
    def stdout_text(self) -> str:
        """Standard output as text. Raises UnicodeDecodeError if it is not UTF-8."""
        return self.stdout_bytes.decode()

    @property
    def stderr_text(self) -> str:
        """Standard error as text. Raises UnicodeDecodeError if it is not UTF-8."""
        return self.stderr_bytes.decode()


class SftpClient:
    """Files of a sandbox, as a user."""

    def __init__(self, fs: SandboxFs) -> None:
        self._fs = fs

    async def read(self, path: str) -> bytes:
        """Returns the contents of a file."""
        return await self._fs.read(path)

    async def write(self, path: str, data: Union[bytes, str]) -> None:
        """Writes a file."""
        await self._fs.write(path, data)

    async def list(self, path: str) -> builtins.list[FsEntry]:
        """Returns the entries of a directory."""
        return await self._fs.list(path)

    async def mkdir(self, path: str) -> None:
        """Creates a directory."""
        await self._fs.mkdir(path)

    async def remove_file(self, path: str) -> None:
        """Removes a file."""
        await self._fs.remove(path)

    async def remove_dir(self, path: str) -> None:
        """Removes an empty directory."""
        await self._fs.remove_empty_dir(path)

    async def rename(self, source: str, target: str) -> None:
        """Renames a file."""
        await self._fs.rename(source, target)

    async def real_path(self, path: str) -> str:
        """Returns the absolute path without symbolic links."""
        return await self._fs.real_path(path)

    async def read_link(self, path: str) -> str:
        """Returns the target of a symbolic link."""
        return await self._fs.read_link(path)

    async def symlink(self, target: str, link: str) -> None:
        """Creates a symbolic link."""
        await self._fs.symlink(target, link)

    async def close(self) -> None:
        """Ends the session."""
        self._fs.close()


class SshClient:
    """A session as a user: commands run as at a login."""

    def __init__(
        self, client: Client, host: Host, name: str, user: str, term: str | None, sftp: bool
    ) -> None:
        self._client = client
        self._host = host
        self._name = name
        self._user = user
        self._term = term
        self._sftp = sftp
        self._files: list[SftpClient] = []

    async def exec(self, command: str, *, tty: bool = False) -> SshOutput:
        """Runs a command line by the user's shell."""
        env = {"TERM": self._term} if self._term else {}
        options = _LoginOptions(types.text("command", command), [], user=self._user, env=env)
        options.tty = tty
        output = await run(self._client, options, self._name)
        return SshOutput(output.exit_code, output.stdout_bytes, output.stderr_bytes)

    async def exec_stream(self, command: str, *, tty: bool = False) -> ExecHandle:
        """Starts a command line by the user's shell."""
        options = _LoginOptions(types.text("command", command), [], user=self._user)
        options.tty = tty
        return await ExecHandle.start(self._client, options, self._name)

    async def attach(self, *, term: str | None = None, detach_keys: str | None = None) -> int:
        """Connects the terminal of this process to a shell. Returns its exit code."""
        env = {"TERM": term or self._term or ""}
        words = ["/bin/sh", "-l"]
        return await attach(
            self._host, self._name, words, user=self._user, env=env, detach_keys=detach_keys
        )

    async def sftp(self) -> SftpClient:
        """Opens a session for files."""
        if not self._sftp:
            raise FilesystemError("the session was opened without files")
        files = SftpClient(SandboxFs(self._client, self._host, self._name, user=self._user))
        self._files.append(files)
        return files

    async def close(self) -> None:
        """Ends the sessions for files."""
        for files in self._files:
            await files.close()

    async def __aenter__(self) -> SshClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _LoginOptions(ExecOptions):
    """Options of a command line that runs as at a login."""

    def request(self) -> dict[str, Any]:
        return {**super().request(), "login": True}

    def needs(self) -> tuple[str, ...]:
        return (*super().needs(), "exec.login")


class SshServer:
    """An SSH server for one connection, on standard input and output of this process."""

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self._name = name

    async def serve_stdio(self) -> None:
        """Serves the connection to its end."""
        import asyncio

        process = await asyncio.create_subprocess_exec(
            self._host.program,
            "ssh",
            "serve",
            "--stdio",
            self._name,
            env=self._host.environment(),
        )
        try:
            code = await process.wait()
        except BaseException:
            process.terminate()
            await process.wait()
            raise
        if code:
            raise MicrosandboxError(f"'msb ssh serve' failed with exit code {code}")

    def close(self) -> None:
        """Ends the server. It holds nothing between connections."""


class SandboxSsh:
    """Sessions as over SSH."""

    def __init__(self, client: Client, host: Host, name: str) -> None:
        self._client = client
        self._host = host
        self._name = name

    async def connect(
        self, *, user: str = "root", term: str | None = None, sftp: bool = True
    ) -> SshClient:
        """Opens a session as a user."""
        return SshClient(self._client, self._host, self._name, user, term, sftp)

    open_client = connect

    async def server(
        self,
        *,
        host_key_path: StrPath | None = None,
        authorized_keys_path: StrPath | None = None,
        user: str | None = None,
        sftp: bool = True,
    ) -> SshServer:
        """Returns a server with the keys of the state directory, msb-ssh(1)."""
        given = {
            "host_key_path": host_key_path is not None,
            "authorized_keys_path": authorized_keys_path is not None,
            "user": user is not None,
            "sftp": not sftp,
        }
        refused = [name for name, is_given in given.items() if is_given]
        if refused:
            raise types.unsupported(*refused)
        return SshServer(self._host, self._name)

    prepare_server = server
