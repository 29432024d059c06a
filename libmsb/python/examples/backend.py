"""A backend for agent frameworks: execute commands, upload and download files.

usage: python backend.py [IMAGE]

Frameworks differ in names and agree on the calls: a command with its cut output and exit code, and
files by path and bytes. Adapt the names of `Backend` to those of the framework.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from microsandbox import ExecTimeoutError, MicrosandboxError
from microsandbox.sync import Sandbox


@dataclass(frozen=True)
class ExecuteResponse:
    """Result of a command."""

    output: str
    exit_code: int | None
    truncated: bool


class Backend:
    """A sandbox as a framework sees it."""

    def __init__(
        self, sandbox: Sandbox, *, timeout: float = 120, output_bytes: int = 100_000
    ) -> None:
        self._sandbox = sandbox
        self._timeout = timeout
        self._output_bytes = output_bytes

    @property
    def id(self) -> str:
        """Identifier of the sandbox."""
        return str(self._sandbox.name)

    def execute(self, command: str) -> ExecuteResponse:
        """Runs a command line. Never raises: a model reads the reason."""
        try:
            output = self._sandbox.shell(
                command, timeout=self._timeout, max_output_bytes=self._output_bytes
            )
        except ExecTimeoutError as error:
            text = error.stdout.decode(errors="replace")
            return ExecuteResponse(f"{text}\n[timed out after {error.timeout:g} s]", None, False)
        except MicrosandboxError as error:
            return ExecuteResponse(f"[{error.code}: {error}]", None, False)
        text = output.stdout("replace") + output.stderr("replace")
        return ExecuteResponse(text, output.exit_code, output.truncated)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[str | None]:
        """Writes files. Returns an error for each, or `None`."""
        return [self._upload(path, data) for path, data in files]

    def download_files(self, paths: list[str]) -> list[bytes | None]:
        """Reads files. A file that cannot be read is `None`."""
        return [self._download(path) for path in paths]

    def _upload(self, path: str, data: bytes) -> str | None:
        try:
            parent = path.rpartition("/")[0]
            if parent:
                self._sandbox.fs.mkdir(parent)
            self._sandbox.fs.write(path, data)
        except MicrosandboxError as error:
            return str(error)
        return None

    def _download(self, path: str) -> bytes | None:
        try:
            return self._sandbox.fs.read(path)
        except MicrosandboxError:
            return None


def main(image: str) -> ExecuteResponse:
    """Uses the backend as a framework does. Returns the result of its command."""
    with Sandbox.create("example-backend", image=image, replace=True) as sandbox:
        backend = Backend(sandbox, timeout=30)
        print(backend.upload_files([("/root/in/a", b"a"), ("/proc/no", b"")]))
        print(backend.download_files(["/root/in/a", "/none"]))
        response = backend.execute("cat /root/in/a; exit 5")
        print(response)
        return response


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "alpine:3.20")
