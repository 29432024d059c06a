"""Exceptions.

Every error of a sandbox, an image, a volume or a program is a `MicrosandboxError`. Wrong arguments
are `TypeError` or `ValueError` and are raised before anything runs.
"""

from __future__ import annotations

from typing import ClassVar


class MicrosandboxError(Exception):
    """An error of msb. The subclass and `code` name its kind."""

    code: ClassVar[str] = "microsandbox-error"

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        """The error, for people."""
        self.hint = hint
        """The next step, if one is known."""

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class _PartialOutput(MicrosandboxError):
    """An error of a command that may have written output before."""

    def __init__(
        self,
        message: str = "",
        *,
        hint: str | None = None,
        stdout: bytes = b"",
        stderr: bytes = b"",
    ) -> None:
        super().__init__(message, hint=hint)
        self.stdout = stdout
        """Standard output of the command until the error."""
        self.stderr = stderr
        """Standard error of the command until the error."""


class InvalidConfigError(MicrosandboxError):
    """A value of a configuration is invalid."""

    code = "invalid-config"


class SandboxNotFoundError(MicrosandboxError):
    """There is no sandbox of that name."""

    code = "sandbox-not-found"


class SandboxAlreadyExistsError(MicrosandboxError):
    """A sandbox of that name exists."""

    code = "sandbox-already-exists"


class SandboxStillRunningError(MicrosandboxError):
    """The sandbox runs, but must not."""

    code = "sandbox-still-running"


class SandboxNotRunningError(_PartialOutput):
    """The sandbox does not run, or ended during the call."""

    code = "sandbox-not-running"


class BootStartError(MicrosandboxError):
    """The sandbox did not boot."""

    code = "boot-start"


class ExecTimeoutError(_PartialOutput):
    """The command was killed because its time was up."""

    code = "exec-timeout"

    def __init__(
        self,
        message: str = "",
        *,
        hint: str | None = None,
        stdout: bytes = b"",
        stderr: bytes = b"",
        timeout: float = 0.0,
    ) -> None:
        super().__init__(message, hint=hint, stdout=stdout, stderr=stderr)
        self.timeout = timeout
        """The time in seconds."""


class ExecFailedError(MicrosandboxError):
    """The command was not started."""

    code = "exec-failed"

    def __init__(
        self,
        message: str = "",
        *,
        hint: str | None = None,
        kind: str = "other",
        errno: int | None = None,
        stage: str = "start",
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        """Kind of the failure: `not_found`, `permission_denied`, `not_executable`, `bad_cwd`,
        `bad_args`, `user_not_found`, `resource_limit`, `paused` or `other`."""
        self.errno = errno
        """Error number of the guest's kernel, if the kind has one."""
        self.stage = stage
        """Stage of the start that failed."""


class FilesystemError(MicrosandboxError):
    """An operation on files failed."""

    code = "filesystem-error"


class PathNotFoundError(FilesystemError):
    """A path does not exist."""

    code = "path-not-found"


class VolumeNotFoundError(MicrosandboxError):
    """There is no volume of that name."""

    code = "volume-not-found"


class VolumeAlreadyExistsError(MicrosandboxError):
    """A volume of that name exists."""

    code = "volume-already-exists"


class ImageNotFoundError(MicrosandboxError):
    """There is no such image in the store."""

    code = "image-not-found"


class ImageInUseError(MicrosandboxError):
    """Sandboxes use the image."""

    code = "image-in-use"


class ImagePullFailedError(MicrosandboxError):
    """An image could not be pulled."""

    code = "image-pull-failed"


class SnapshotNotFoundError(MicrosandboxError):
    """There is no such snapshot."""

    code = "snapshot-not-found"


class SnapshotAlreadyExistsError(MicrosandboxError):
    """A snapshot of that name exists."""

    code = "snapshot-already-exists"


class SnapshotSandboxRunningError(MicrosandboxError):
    """The disk of a running sandbox cannot be copied at one moment."""

    code = "snapshot-sandbox-running"


class SnapshotImageMissingError(MicrosandboxError):
    """The image of the snapshot is missing."""

    code = "snapshot-image-missing"


class SnapshotIntegrityError(MicrosandboxError):
    """The snapshot or its archive is damaged."""

    code = "snapshot-integrity"


class VolumeInUseError(MicrosandboxError):
    """Sandboxes use the volume."""

    code = "volume-in-use"


class PatchFailedError(MicrosandboxError):
    """A change of files before the first boot failed."""

    code = "patch-failed"


class NetworkPolicyError(InvalidConfigError):
    """A rule of a network policy is invalid."""

    code = "network-policy-error"


class SecretViolationError(MicrosandboxError):
    """A secret was about to reach a host that may not have it."""

    code = "secret-violation"


class TlsError(MicrosandboxError):
    """TLS interception failed."""

    code = "tls-error"


class IoError(MicrosandboxError):
    """An operation of the host's system failed."""

    code = "io-error"


class ProtocolError(MicrosandboxError):
    """A peer violated the wire protocol, msb-wire(5)."""

    code = "protocol-error"


class ProgramNotFoundError(MicrosandboxError):
    """The program `msb` is not on this host."""

    code = "program-not-found"


class MetricsDisabledError(MicrosandboxError):
    """The sandbox takes no samples of its resource usage."""

    code = "metrics-disabled"


class MetricsUnavailableError(MicrosandboxError):
    """There is no sample yet."""

    code = "metrics-unavailable"


class MissedLogsError(MicrosandboxError):
    """The position of a log cursor was rotated away."""

    code = "missed-logs"


class UnsupportedOperationError(MicrosandboxError):
    """The installed programs, or the release in the sandbox, do not serve the call."""

    code = "unsupported-operation"

    def __init__(
        self,
        message: str = "",
        *,
        hint: str | None = None,
        fields: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.fields = fields
        """Names of the unsupported operations, arguments or fields of the configuration."""
