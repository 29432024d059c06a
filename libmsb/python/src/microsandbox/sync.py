"""The classes of `microsandbox` without `await`.

```python
from microsandbox.sync import Sandbox

with Sandbox.create("hello", image="python:3.12-slim") as sandbox:
    print(sandbox.exec("python3", ["-c", "print(6 * 7)"]).stdout_text)
```

They work in any thread, in a notebook whose event loop runs, and after a fork. KeyboardInterrupt
cancels a call. The file is written by make-sync, from the signatures of the other modules.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import builtins
import os
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Union
from typing import TYPE_CHECKING

from . import (  # noqa: F401
    Action as Action,
    BootStartError as BootStartError,
    CreateOptions as CreateOptions,
    DestGroup as DestGroup,
    Destination as Destination,
    Direction as Direction,
    DiskImageFormat as DiskImageFormat,
    DnsConfig as DnsConfig,
    ExecEvent as ExecEvent,
    ExecFailedError as ExecFailedError,
    ExecOutput as ExecOutput,
    ExecTimeoutError as ExecTimeoutError,
    ExitStatus as ExitStatus,
    ExitedEvent as ExitedEvent,
    FLAG_SESSION_START as FLAG_SESSION_START,
    FLAG_SHUTDOWN as FLAG_SHUTDOWN,
    FLAG_TERMINAL as FLAG_TERMINAL,
    FilesystemError as FilesystemError,
    FsEntry as FsEntry,
    FsEntryKind as FsEntryKind,
    FsMetadata as FsMetadata,
    GiB as GiB,
    HostPermissions as HostPermissions,
    ImageConfigDetail as ImageConfigDetail,
    ImageInUseError as ImageInUseError,
    ImageLayerDetail as ImageLayerDetail,
    ImageNotFoundError as ImageNotFoundError,
    ImagePruneReport as ImagePruneReport,
    ImagePullFailedError as ImagePullFailedError,
    ImageSource as ImageSource,
    InitConfig as InitConfig,
    InvalidConfigError as InvalidConfigError,
    IoError as IoError,
    JobInfo as JobInfo,
    LayerDownloadComplete as LayerDownloadComplete,
    LayerDownloadProgress as LayerDownloadProgress,
    LayerExtractComplete as LayerExtractComplete,
    LayerExtractProgress as LayerExtractProgress,
    LayerExtractStarted as LayerExtractStarted,
    LayerIndexComplete as LayerIndexComplete,
    LayerIndexStarted as LayerIndexStarted,
    LoadedImage as LoadedImage,
    LogEntry as LogEntry,
    LogLevel as LogLevel,
    LogReadSource as LogReadSource,
    LogSource as LogSource,
    MetricsDisabledError as MetricsDisabledError,
    MetricsUnavailableError as MetricsUnavailableError,
    MiB as MiB,
    MicrosandboxError as MicrosandboxError,
    MissedLogsError as MissedLogsError,
    MountConfig as MountConfig,
    MountKind as MountKind,
    Network as Network,
    NetworkDestination as NetworkDestination,
    NetworkPolicy as NetworkPolicy,
    NetworkPolicyError as NetworkPolicyError,
    Patch as Patch,
    PatchConfig as PatchConfig,
    PatchFailedError as PatchFailedError,
    PathNotFoundError as PathNotFoundError,
    PortBinding as PortBinding,
    PortProtocol as PortProtocol,
    ProgramNotFoundError as ProgramNotFoundError,
    Protocol as Protocol,
    ProtocolError as ProtocolError,
    PullComplete as PullComplete,
    PullEvent as PullEvent,
    PullPolicy as PullPolicy,
    RegistryAuth as RegistryAuth,
    Resolved as Resolved,
    Resolving as Resolving,
    Rlimit as Rlimit,
    RlimitResource as RlimitResource,
    Rule as Rule,
    SandboxAlreadyExistsError as SandboxAlreadyExistsError,
    SandboxMetrics as SandboxMetrics,
    SandboxNotFoundError as SandboxNotFoundError,
    SandboxNotRunningError as SandboxNotRunningError,
    SandboxStatus as SandboxStatus,
    SandboxStillRunningError as SandboxStillRunningError,
    SandboxStopResult as SandboxStopResult,
    Secret as Secret,
    SecretEntry as SecretEntry,
    SecretInjection as SecretInjection,
    SecretViolationError as SecretViolationError,
    SecurityProfile as SecurityProfile,
    Size as Size,
    SnapshotAlreadyExistsError as SnapshotAlreadyExistsError,
    SnapshotImageMissingError as SnapshotImageMissingError,
    SnapshotIntegrityError as SnapshotIntegrityError,
    SnapshotNotFoundError as SnapshotNotFoundError,
    SnapshotSandboxRunningError as SnapshotSandboxRunningError,
    SshOutput as SshOutput,
    StartedEvent as StartedEvent,
    StatVirtualization as StatVirtualization,
    StderrEvent as StderrEvent,
    Stdin as Stdin,
    StdoutEvent as StdoutEvent,
    TlsConfig as TlsConfig,
    TlsError as TlsError,
    UnsupportedOperationError as UnsupportedOperationError,
    ViolationAction as ViolationAction,
    ViolationPolicy as ViolationPolicy,
    VolumeAlreadyExistsError as VolumeAlreadyExistsError,
    VolumeInUseError as VolumeInUseError,
    VolumeNotFoundError as VolumeNotFoundError,
    is_installed as is_installed,
    set_program as set_program,
    version as version,
)
from . import agent as _agent
from . import command as _command
from . import files as _files
from . import handle as _handle
from . import image as _image
from . import job as _job
from . import logs as _logs
from . import metrics as _metrics
from . import pull as _pull
from . import sandbox as _sandbox
from . import setup as _setup
from . import snapshot as _snapshot
from . import ssh as _ssh
from . import volume as _volume
from .config import ImageSource
from .config import InitLike
from .config import MemoryLike
from .config import MountConfig
from .config import PatchConfig
from .exec_options import ExecArgs
from .exec_options import StdinSource
from .exec_output import ExecEvent
from .exec_output import ExecOutput
from .files import FsEntry
from .files import FsMetadata
from .handle import STOP_SECONDS
from .handle import SandboxStopResult
from .image import ImageConfigDetail
from .image import ImageLayerDetail
from .image import ImagePruneReport
from .image import LoadedImage
from .job import JobInfo
from .logs import LogEntry
from .logs import LogSources
from .metrics import SandboxMetrics
from .network import Network
from .network import PortsLike
from .sandbox import CreateOptions
from .secret import SecretEntry
from .secret import Violation
from .ssh import SshOutput
from .types import AwaitableBool
from .types import AwaitableStr
from .types import DiskImageFormat
from .types import ExitStatus
from .types import HostPermissions
from .types import LogLevel
from .types import PullPolicy
from .types import RegistryAuth
from .types import Rlimit
from .types import SandboxStatus
from .types import SecurityProfile
from .types import StatVirtualization
from .types import StrPath
from .portal import Wrapper, call, run

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ExecSink(Wrapper[_command.ExecSink]):
    """Standard input of a running command."""

    __slots__ = ()

    def write(self, data: Union[bytes, str]) -> None:
        """Writes bytes, or text as UTF-8. Waits while the command does not read."""
        run(self._wrapped.write(data))

    def close(self) -> None:
        """Ends the input."""
        run(self._wrapped.close())

    def __enter__(self) -> ExecSink:
        run(self._wrapped.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self._wrapped.__aexit__(*error))


class ExecHandle(Wrapper[_command.ExecHandle]):
    """A running command.

    Iterate over it, or call `recv`, for its events; `wait` and `collect` wait for its end. With
    `async with`, the command is killed at the end of the block if it still runs.
    """

    __slots__ = ()

    @property
    def id(self) -> str:
        """Identifier of the call on its connection."""
        return self._wrapped.id

    @property
    def pid(self) -> int:
        """Process ID in the guest."""
        return self._wrapped.pid

    def take_stdin(self) -> ExecSink | None:
        """Returns the input of a command with `Stdin.pipe()`, once; then `None`."""
        return None if (found := call(self._wrapped.take_stdin)) is None else ExecSink(found)

    def recv(self) -> ExecEvent | None:
        """Returns the next event; `None` after the last one."""
        return run(self._wrapped.recv())

    def wait(self) -> ExitStatus:
        """Waits for the end. Output is dropped."""
        return run(self._wrapped.wait())

    def collect(self) -> ExecOutput:
        """Waits for the end and returns the output."""
        return run(self._wrapped.collect())

    def signal(self, signal: int) -> None:
        """Sends a signal, by its number on Linux, to the process group of the command."""
        run(self._wrapped.signal(signal))

    def kill(self) -> None:
        """Kills the process group of the command. `wait` waits for its end."""
        run(self._wrapped.kill())

    def resize(self, rows: int, cols: int) -> None:
        """Sets the size of the command's terminal."""
        run(self._wrapped.resize(rows, cols))

    def close(self) -> None:
        """Kills the command if it still runs, and waits until it has ended."""
        run(self._wrapped.close())

    def __iter__(self) -> ExecHandle:
        return self

    def __next__(self) -> ExecEvent:
        try:
            return run(self._wrapped.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> ExecHandle:
        run(self._wrapped.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self._wrapped.__aexit__(*error))


class FsReadStream(Wrapper[_files.FsReadStream]):
    """Contents of a file, in chunks. Iterate over it, or call `recv` or `collect`."""

    __slots__ = ()

    def recv(self) -> bytes | None:
        """Returns the next chunk; `None` at the end."""
        return run(self._wrapped.recv())

    def collect(self) -> bytes:
        """Returns the rest."""
        return run(self._wrapped.collect())

    def close(self) -> None:
        """Closes the file."""
        run(self._wrapped.close())

    def __iter__(self) -> FsReadStream:
        return self

    def __next__(self) -> bytes:
        try:
            return run(self._wrapped.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> FsReadStream:
        run(self._wrapped.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self._wrapped.__aexit__(*error))


class FsWriteSink(Wrapper[_files.FsWriteSink]):
    """A file that is written in chunks. `close` reports errors of writes that were under way."""

    __slots__ = ()

    def write(self, data: Union[bytes, bytearray, memoryview, str]) -> None:
        """Writes bytes, or text as UTF-8."""
        run(self._wrapped.write(data))

    def close(self) -> None:
        """Waits for the writes and closes the file."""
        run(self._wrapped.close())

    def __enter__(self) -> FsWriteSink:
        run(self._wrapped.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self._wrapped.__aexit__(*error))


class SandboxFs(Wrapper[_files.SandboxFs]):
    """Files in a sandbox, read and changed as the sandbox's user.

    Relative paths start in the user's home directory. Any number of calls can be made at a time.
    """

    __slots__ = ()

    def read(self, path: str) -> bytes:
        """Returns the contents of a file."""
        return run(self._wrapped.read(path))

    def read_text(self, path: str) -> str:
        """Returns the contents of a file as text."""
        return run(self._wrapped.read_text(path))

    def read_stream(self, path: str) -> FsReadStream:
        """Opens a file for reading in chunks."""
        return FsReadStream(run(self._wrapped.read_stream(path)))

    def write(self, path: str, data: Union[bytes, bytearray, memoryview, str], *, mode: int | None=None) -> None:
        """Writes a file, from bytes or text. `mode` sets its permission bits."""
        run(self._wrapped.write(path, data, mode=mode))

    def write_stream(self, path: str, *, mode: int | None=None) -> FsWriteSink:
        """Opens a file for writing in chunks. An existing file is truncated."""
        return FsWriteSink(run(self._wrapped.write_stream(path, mode=mode)))

    def list(self, path: str) -> builtins.list[FsEntry]:
        """Returns the entries of a directory, sorted by name."""
        return run(self._wrapped.list(path))

    def mkdir(self, path: str, *, mode: int | None=None) -> None:
        """Creates a directory and its parents. An existing directory is no error."""
        run(self._wrapped.mkdir(path, mode=mode))

    def remove(self, path: str) -> None:
        """Removes a file or symbolic link."""
        run(self._wrapped.remove(path))

    def remove_dir(self, path: str) -> None:
        """Removes a directory with all that is in it."""
        run(self._wrapped.remove_dir(path))

    def remove_empty_dir(self, path: str) -> None:
        """Removes an empty directory."""
        run(self._wrapped.remove_empty_dir(path))

    def copy(self, source: str, target: str) -> None:
        """Copies a file inside the guest, with its permission bits."""
        run(self._wrapped.copy(source, target))

    def rename(self, source: str, target: str) -> None:
        """Renames a file or directory. An existing file is replaced."""
        run(self._wrapped.rename(source, target))

    def stat(self, path: str, *, follow: bool=True) -> FsMetadata:
        """Returns the metadata of a file. Without `follow`, of a link itself."""
        return run(self._wrapped.stat(path, follow=follow))

    def exists(self, path: str) -> bool:
        """Returns whether a path exists. Other errors than a missing path are raised."""
        return run(self._wrapped.exists(path))

    def read_link(self, path: str) -> str:
        """Returns the target of a symbolic link."""
        return run(self._wrapped.read_link(path))

    def symlink(self, target: str, link: str) -> None:
        """Creates a symbolic link to `target`."""
        run(self._wrapped.symlink(target, link))

    def real_path(self, path: str) -> str:
        """Returns the absolute path without symbolic links."""
        return run(self._wrapped.real_path(path))

    def chmod(self, path: str, mode: int) -> None:
        """Sets the permission bits of a file."""
        run(self._wrapped.chmod(path, mode))

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Sets the owner and group of a file."""
        run(self._wrapped.chown(path, uid, gid))

    def copy_from_host(self, host_path: StrPath, guest_path: str) -> None:
        """Copies a file or directory tree of the host into the guest."""
        run(self._wrapped.copy_from_host(host_path, guest_path))

    def copy_to_host(self, guest_path: str, host_path: StrPath) -> None:
        """Copies a file or directory tree of the guest to the host."""
        run(self._wrapped.copy_to_host(guest_path, host_path))

    def close(self) -> None:
        """Ends the file session. The next call opens another one."""
        call(self._wrapped.close)


class LogStream(Wrapper[_logs.LogStream]):
    """A stream of log entries. Iterate over it, or call `recv`."""

    __slots__ = ()

    def recv(self) -> LogEntry | None:
        """Returns the next entry; `None` at the end."""
        return run(self._wrapped.recv())

    def close(self) -> None:
        """Ends the stream."""
        run(self._wrapped.close())

    def __iter__(self) -> LogStream:
        return self

    def __next__(self) -> LogEntry:
        try:
            return run(self._wrapped.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> LogStream:
        run(self._wrapped.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self._wrapped.__aexit__(*error))


class MetricsStream(Wrapper[_metrics.MetricsStream]):
    """Samples of a sandbox at an interval. Iterate over it, or call `recv`."""

    __slots__ = ()

    def recv(self) -> SandboxMetrics | None:
        """Returns the next sample; `None` at the end of the sandbox."""
        return run(self._wrapped.recv())

    def close(self) -> None:
        """Ends the stream."""
        run(self._wrapped.close())

    def __iter__(self) -> MetricsStream:
        return self

    def __next__(self) -> SandboxMetrics:
        try:
            return run(self._wrapped.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> MetricsStream:
        run(self._wrapped.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self._wrapped.__aexit__(*error))


def all_sandbox_metrics() -> dict[str, SandboxMetrics]:
    """Returns the last sample of each running sandbox, by its name."""
    return run(_metrics.all_sandbox_metrics())


class Job(Wrapper[_job.Job]):
    """A command that continues without a client."""

    __slots__ = ()

    def info(self) -> JobInfo:
        """Returns the state."""
        return run(self._wrapped.info())

    def wait(self) -> ExitStatus:
        """Waits for the end. Raises if the sandbox ended before the job."""
        return run(self._wrapped.wait())

    def signal(self, signal: int) -> None:
        """Sends a signal, by its number on Linux, to the process group of the job."""
        run(self._wrapped.signal(signal))

    def kill(self) -> None:
        """Kills the process group of the job."""
        run(self._wrapped.kill())

    def attach_stdin(self) -> ExecSink:
        """Returns the input of a job that was started with `Stdin.pipe()`. One client may write."""
        return ExecSink(run(self._wrapped.attach_stdin()))

    def logs(self, *, sources: LogSources | None=None) -> list[LogEntry]:
        """Returns what the job has printed."""
        return run(self._wrapped.logs(sources=sources))

    def log_stream(self, *, from_cursor: str | None=None, follow: bool=True) -> LogStream:
        """Opens a stream of what the job prints, from the start or after a cursor."""
        return LogStream(run(self._wrapped.log_stream(from_cursor=from_cursor, follow=follow)))

    @property
    def id(self) -> str:
        return self._wrapped.id


class ImageHandle(Wrapper[_image.ImageHandle]):
    """An image in the store."""

    __slots__ = ()

    @property
    def reference(self) -> str:
        return self._wrapped.reference

    @property
    def size_bytes(self) -> int:
        return self._wrapped.size_bytes

    @property
    def manifest_digest(self) -> str:
        return self._wrapped.manifest_digest

    @property
    def architecture(self) -> str | None:
        return self._wrapped.architecture

    @property
    def os(self) -> str | None:
        return self._wrapped.os

    @property
    def layer_count(self) -> int:
        return self._wrapped.layer_count

    @property
    def created_at(self) -> float | None:
        return self._wrapped.created_at

    @property
    def last_used_at(self) -> float | None:
        return self._wrapped.last_used_at

    def inspect(self) -> ImageDetail:
        """Returns the configuration and the layers."""
        return ImageDetail(run(self._wrapped.inspect()))

    def remove(self, *, force: bool=False) -> None:
        """Removes the image."""
        run(self._wrapped.remove(force=force))


class ImageDetail(Wrapper[_image.ImageDetail]):
    """An image with its configuration and layers."""

    __slots__ = ()

    @property
    def handle(self) -> ImageHandle:
        return ImageHandle(self._wrapped.handle)

    @property
    def config(self) -> ImageConfigDetail | None:
        return self._wrapped.config

    @property
    def layers(self) -> list[ImageLayerDetail]:
        return self._wrapped.layers


class Image(Wrapper[_image.Image]):
    """Images in the store, and makers of roots for `Sandbox.create`."""

    __slots__ = ()

    @staticmethod
    def oci(reference: str, *, upper_size_mib: int | None=None) -> ImageSource:
        """Returns an image as a root, with the size of the writable disk."""
        return call(_image.Image.oci, reference, upper_size_mib=upper_size_mib)

    @staticmethod
    def bind(path: StrPath) -> ImageSource:
        """Returns a directory of the host as a root."""
        return call(_image.Image.bind, path)

    @staticmethod
    def disk(path: StrPath, *, fstype: str | None=None) -> ImageSource:
        """Returns a disk image of the host as a root. The suffix names its format."""
        return call(_image.Image.disk, path, fstype=fstype)

    @staticmethod
    def get(reference: str) -> ImageHandle:
        """Returns an image. Raises ImageNotFoundError."""
        return ImageHandle(run(_image.Image.get(reference)))

    @staticmethod
    def list() -> builtins.list[ImageHandle]:
        """Returns all images, the newest first."""
        return [ImageHandle(found) for found in run(_image.Image.list())]

    @staticmethod
    def inspect(reference: str) -> ImageDetail:
        """Returns an image with its configuration and layers. Raises ImageNotFoundError."""
        return ImageDetail(run(_image.Image.inspect(reference)))

    @staticmethod
    def remove(reference: str, *, force: bool=False) -> None:
        """Removes an image. Raises ImageInUseError; `force` removes it nevertheless."""
        run(_image.Image.remove(reference, force=force))

    @staticmethod
    def prune() -> ImagePruneReport:
        """Removes images that no sandbox uses, and files that no image needs."""
        return run(_image.Image.prune())

    @staticmethod
    def gc_layers() -> int:
        """Removes files that no image needs. Returns the number of removed layers."""
        return run(_image.Image.gc_layers())

    @staticmethod
    def gc() -> int:
        """Removes unused images. Returns the number of removed layers."""
        return run(_image.Image.gc())

    @staticmethod
    def load(path: StrPath, *, tag: str | None=None) -> builtins.list[LoadedImage]:
        """Loads the images of an archive of docker, podman, skopeo or buildah."""
        return run(_image.Image.load(path, tag=tag))

    @staticmethod
    def save(path: StrPath, *references: str) -> None:
        """Saves images as an archive that docker and `load` read."""
        run(_image.Image.save(path, *references))

    @staticmethod
    def exists(reference: str) -> bool:
        """Returns whether the store has an image."""
        return run(_image.Image.exists(reference))


class VolumeFs(Wrapper[_volume.VolumeFs]):
    """Files of a volume of the kind `dir`, from the host.

    A path never leaves the volume: symbolic links in it are not followed.
    """

    __slots__ = ()

    def read(self, path: str) -> bytes:
        """Returns the contents of a file."""
        return run(self._wrapped.read(path))

    def read_text(self, path: str) -> str:
        """Returns the contents of a file as text."""
        return run(self._wrapped.read_text(path))

    def write(self, path: str, data: Union[bytes, bytearray, memoryview, str]) -> None:
        """Writes a file, from bytes or text."""
        run(self._wrapped.write(path, data))

    def list(self, path: str='/') -> builtins.list[FsEntry]:
        """Returns the entries of a directory, sorted by name."""
        return run(self._wrapped.list(path))

    def mkdir(self, path: str) -> None:
        """Creates a directory and its parents."""
        run(self._wrapped.mkdir(path))

    def remove_file(self, path: str) -> None:
        """Removes a file."""
        run(self._wrapped.remove_file(path))

    def remove_dir(self, path: str) -> None:
        """Removes a directory with all that is in it."""
        run(self._wrapped.remove_dir(path))

    def exists(self, path: str) -> bool:
        """Returns whether a path exists."""
        return run(self._wrapped.exists(path))


class VolumeHandle(Wrapper[_volume.VolumeHandle]):
    """A volume."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return self._wrapped.name

    @property
    def quota_mib(self) -> int | None:
        return self._wrapped.quota_mib

    @property
    def used_bytes(self) -> int:
        return self._wrapped.used_bytes

    @property
    def labels(self) -> dict[str, str]:
        return self._wrapped.labels

    @property
    def created_at(self) -> float | None:
        return self._wrapped.created_at

    @property
    def kind(self) -> str:
        return self._wrapped.kind

    @property
    def path(self) -> str:
        return self._wrapped.path

    @property
    def fs(self) -> VolumeFs:
        """Files of the volume, from the host."""
        return VolumeFs(call(lambda: self._wrapped.fs))

    def remove(self) -> None:
        """Removes the volume."""
        run(self._wrapped.remove())


class Volume(Wrapper[_volume.Volume]):
    """A named volume, and makers of mounts for `Sandbox.create`."""

    __slots__ = ()

    @property
    def fs(self) -> VolumeFs:
        """Files of the volume, from the host."""
        return VolumeFs(call(lambda: self._wrapped.fs))

    @staticmethod
    def create(name: str, *, quota_mib: int | None=None, labels: Mapping[str, str] | None=None) -> Volume:
        """Creates a volume: a disk of `quota_mib`, or a directory without a limit."""
        return Volume(run(_volume.Volume.create(name, quota_mib=quota_mib, labels=labels)))

    @staticmethod
    def get(name: str) -> VolumeHandle:
        """Returns a volume. Raises VolumeNotFoundError."""
        return VolumeHandle(run(_volume.Volume.get(name)))

    @staticmethod
    def list() -> builtins.list[VolumeHandle]:
        """Returns all volumes, sorted by name."""
        return [VolumeHandle(found) for found in run(_volume.Volume.list())]

    @staticmethod
    def remove(name: str) -> None:
        """Removes a volume and its contents. Raises VolumeNotFoundError."""
        run(_volume.Volume.remove(name))

    @staticmethod
    def bind(path: StrPath, *, readonly: bool=False, noexec: bool=False, nosuid: bool=False, nodev: bool=False, stat_virtualization: StatVirtualization=StatVirtualization.STRICT, host_permissions: HostPermissions=HostPermissions.PRIVATE) -> MountConfig:
        """Returns a mount of a directory or file of the host."""
        return call(_volume.Volume.bind, path, readonly=readonly, noexec=noexec, nosuid=nosuid, nodev=nodev, stat_virtualization=stat_virtualization, host_permissions=host_permissions)

    @staticmethod
    def named(name: str, *, readonly: bool=False, noexec: bool=False, nosuid: bool=False, nodev: bool=False, stat_virtualization: StatVirtualization=StatVirtualization.STRICT, host_permissions: HostPermissions=HostPermissions.PRIVATE) -> MountConfig:
        """Returns a mount of a named volume, which is created if it is missing."""
        return call(_volume.Volume.named, name, readonly=readonly, noexec=noexec, nosuid=nosuid, nodev=nodev, stat_virtualization=stat_virtualization, host_permissions=host_permissions)

    @staticmethod
    def tmpfs(*, size_mib: int | None=None, readonly: bool=False, noexec: bool=False, nosuid: bool=False, nodev: bool=False) -> MountConfig:
        """Returns a mount of memory."""
        return call(_volume.Volume.tmpfs, size_mib=size_mib, readonly=readonly, noexec=noexec, nosuid=nosuid, nodev=nodev)

    @staticmethod
    def disk(path: StrPath, *, format: DiskImageFormat | str | None=None, fstype: str | None=None, readonly: bool=False, noexec: bool=False, nosuid: bool=False, nodev: bool=False) -> MountConfig:
        """Returns a mount of a disk image. The suffix names its format if it is not given."""
        return call(_volume.Volume.disk, path, format=format, fstype=fstype, readonly=readonly, noexec=noexec, nosuid=nosuid, nodev=nodev)

    @property
    def name(self) -> str:
        return self._wrapped.name

    @property
    def path(self) -> str:
        return self._wrapped.path

    @property
    def kind(self) -> str:
        return self._wrapped.kind


class SnapshotHandle(Wrapper[_snapshot.SnapshotHandle]):
    """An entry of the index of snapshots."""

    __slots__ = ()

    @property
    def digest(self) -> str:
        return self._wrapped.digest

    @property
    def name(self) -> str | None:
        return self._wrapped.name

    @property
    def parent_digest(self) -> str | None:
        return self._wrapped.parent_digest

    @property
    def image_ref(self) -> str:
        return self._wrapped.image_ref

    @property
    def format(self) -> str:
        return self._wrapped.format

    @property
    def size_bytes(self) -> int | None:
        return self._wrapped.size_bytes

    @property
    def created_at(self) -> float | None:
        return self._wrapped.created_at

    @property
    def path(self) -> str:
        return self._wrapped.path

    def open(self) -> Snapshot:
        """Opens the snapshot."""
        return Snapshot(run(self._wrapped.open()))

    def remove(self, *, force: bool=False) -> None:
        """Removes the snapshot."""
        run(self._wrapped.remove(force=force))


class Snapshot(Wrapper[_snapshot.Snapshot]):
    """A snapshot of the disk of a sandbox."""

    __slots__ = ()

    @property
    def path(self) -> str:
        return self._wrapped.path

    @property
    def digest(self) -> str:
        return self._wrapped.digest

    @property
    def size_bytes(self) -> int:
        return self._wrapped.size_bytes

    @property
    def image_ref(self) -> str:
        return self._wrapped.image_ref

    @property
    def image_manifest_digest(self) -> str:
        return self._wrapped.image_manifest_digest

    @property
    def format(self) -> str:
        return self._wrapped.format

    @property
    def fstype(self) -> str:
        return self._wrapped.fstype

    @property
    def parent(self) -> str | None:
        return self._wrapped.parent

    @property
    def created_at(self) -> str:
        return self._wrapped.created_at

    @property
    def labels(self) -> Mapping[str, str]:
        return self._wrapped.labels

    @property
    def source_sandbox(self) -> str | None:
        return self._wrapped.source_sandbox

    def verify(self) -> dict[str, Any]:
        """Compares the disk with its recorded digest. Raises SnapshotIntegrityError.

        `verification` of the result is `verified`, `not_recorded` or `unsupported`.
        """
        return run(self._wrapped.verify())

    @staticmethod
    def create(source: str, *, name: str | None=None, path: StrPath | None=None, labels: Mapping[str, str] | None=None, force: bool=False, record_integrity: bool=False) -> Snapshot:
        """Creates a snapshot of a sandbox, with a name or in a directory at `path`.

        The guest of a running sandbox is frozen for the copy. `force` replaces a snapshot of that
        name.
        """
        return Snapshot(run(_snapshot.Snapshot.create(source, name=name, path=path, labels=labels, force=force, record_integrity=record_integrity)))

    @staticmethod
    def open(name_or_path: str) -> Snapshot:
        """Opens a snapshot by its name, its digest, or a path that contains a slash."""
        return Snapshot(run(_snapshot.Snapshot.open(name_or_path)))

    @staticmethod
    def get(name: str) -> SnapshotHandle:
        """Returns an entry of the index. Raises SnapshotNotFoundError."""
        return SnapshotHandle(run(_snapshot.Snapshot.get(name)))

    @staticmethod
    def list() -> builtins.list[SnapshotHandle]:
        """Returns the index, the newest snapshot first."""
        return [SnapshotHandle(found) for found in run(_snapshot.Snapshot.list())]

    @staticmethod
    def list_dir(directory: StrPath) -> builtins.list[Snapshot]:
        """Returns the snapshots in a directory, sorted by name. They need not be in the index."""
        return [Snapshot(found) for found in run(_snapshot.Snapshot.list_dir(directory))]

    @staticmethod
    def remove(name_or_path: str, *, force: bool=False) -> None:
        """Removes a snapshot; with `force` also the parent of others, or a damaged one."""
        run(_snapshot.Snapshot.remove(name_or_path, force=force))

    @staticmethod
    def reindex(directory: StrPath) -> int:
        """Adds the snapshots in a directory to the index. Returns their number."""
        return run(_snapshot.Snapshot.reindex(directory))

    @staticmethod
    def export(name: str, out: StrPath, *, with_parents: bool=False, with_image: bool=False, plain_tar: bool=False) -> None:
        """Writes a snapshot as an archive, which appears when it is complete."""
        run(_snapshot.Snapshot.export(name, out, with_parents=with_parents, with_image=with_image, plain_tar=plain_tar))

    @staticmethod
    def import_(archive: StrPath, *, dest: StrPath | None=None) -> SnapshotHandle:
        """Reads the snapshots of an archive. Returns the last one, which has the others as parents.
                
        """
        return SnapshotHandle(run(_snapshot.Snapshot.import_(archive, dest=dest)))


class AgentStream(Wrapper[_agent.AgentStream]):
    """A stream of frames."""

    __slots__ = ()

    @property
    def id(self) -> int:
        return self._wrapped.id

    def next(self) -> tuple[int, int, bytes] | None:
        """Returns the next frame."""
        return run(self._wrapped.next())

    def close(self) -> None:
        """Closes the stream."""
        run(self._wrapped.close())

    def __iter__(self) -> AgentStream:
        return self

    def __enter__(self) -> AgentStream:
        run(self._wrapped.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self._wrapped.__aexit__(*error))


class AgentClient(Wrapper[_agent.AgentClient]):
    """A client of the guest's agent."""

    __slots__ = ()

    @staticmethod
    def connect_sandbox(name: str, *, timeout: float | None=None) -> AgentClient:
        """Connects to the agent of a sandbox."""
        return AgentClient(run(_agent.AgentClient.connect_sandbox(name, timeout=timeout)))

    @staticmethod
    def connect(path: StrPath, *, timeout: float | None=None) -> AgentClient:
        """Connects to a socket."""
        return AgentClient(run(_agent.AgentClient.connect(path, timeout=timeout)))

    def request(self, flags: int, body: bytes) -> tuple[int, int, bytes]:
        """Sends a frame and returns the answer."""
        return run(self._wrapped.request(flags, body))

    def stream(self, flags: int, body: bytes) -> AgentStream:
        """Sends a frame and returns the stream of answers."""
        return AgentStream(run(self._wrapped.stream(flags, body)))

    def send(self, id: int, flags: int, body: bytes) -> None:
        """Sends a frame of a stream."""
        run(self._wrapped.send(id, flags, body))

    def ready_bytes(self) -> bytes:
        """Returns the greeting of the agent."""
        return call(self._wrapped.ready_bytes)

    def close(self) -> None:
        """Closes the connection."""
        run(self._wrapped.close())


class SftpClient(Wrapper[_ssh.SftpClient]):
    """Files of a sandbox, as a user."""

    __slots__ = ()

    def read(self, path: str) -> bytes:
        """Returns the contents of a file."""
        return run(self._wrapped.read(path))

    def write(self, path: str, data: Union[bytes, str]) -> None:
        """Writes a file."""
        run(self._wrapped.write(path, data))

    def list(self, path: str) -> builtins.list[FsEntry]:
        """Returns the entries of a directory."""
        return run(self._wrapped.list(path))

    def mkdir(self, path: str) -> None:
        """Creates a directory."""
        run(self._wrapped.mkdir(path))

    def remove_file(self, path: str) -> None:
        """Removes a file."""
        run(self._wrapped.remove_file(path))

    def remove_dir(self, path: str) -> None:
        """Removes an empty directory."""
        run(self._wrapped.remove_dir(path))

    def rename(self, source: str, target: str) -> None:
        """Renames a file."""
        run(self._wrapped.rename(source, target))

    def real_path(self, path: str) -> str:
        """Returns the absolute path without symbolic links."""
        return run(self._wrapped.real_path(path))

    def read_link(self, path: str) -> str:
        """Returns the target of a symbolic link."""
        return run(self._wrapped.read_link(path))

    def symlink(self, target: str, link: str) -> None:
        """Creates a symbolic link."""
        run(self._wrapped.symlink(target, link))

    def close(self) -> None:
        """Ends the session."""
        run(self._wrapped.close())


class SshClient(Wrapper[_ssh.SshClient]):
    """A session as a user: commands run as at a login."""

    __slots__ = ()

    def exec(self, command: str, *, tty: bool=False) -> SshOutput:
        """Runs a command line by the user's shell."""
        return run(self._wrapped.exec(command, tty=tty))

    def exec_stream(self, command: str, *, tty: bool=False) -> ExecHandle:
        """Starts a command line by the user's shell."""
        return ExecHandle(run(self._wrapped.exec_stream(command, tty=tty)))

    def attach(self, *, term: str | None=None, detach_keys: str | None=None) -> int:
        """Connects the terminal of this process to a shell. Returns its exit code."""
        return run(self._wrapped.attach(term=term, detach_keys=detach_keys))

    def sftp(self) -> SftpClient:
        """Opens a session for files."""
        return SftpClient(run(self._wrapped.sftp()))

    def close(self) -> None:
        """Ends the sessions for files."""
        run(self._wrapped.close())

    def __enter__(self) -> SshClient:
        run(self._wrapped.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self._wrapped.__aexit__(*error))


class SshServer(Wrapper[_ssh.SshServer]):
    """An SSH server for one connection, on standard input and output of this process."""

    __slots__ = ()

    def serve_stdio(self) -> None:
        """Serves the connection to its end."""
        run(self._wrapped.serve_stdio())

    def close(self) -> None:
        """Ends the server. It holds nothing between connections."""
        call(self._wrapped.close)


class SandboxSsh(Wrapper[_ssh.SandboxSsh]):
    """Sessions as over SSH."""

    __slots__ = ()

    def connect(self, *, user: str='root', term: str | None=None, sftp: bool=True) -> SshClient:
        """Opens a session as a user."""
        return SshClient(run(self._wrapped.connect(user=user, term=term, sftp=sftp)))

    open_client = connect

    def server(self, *, host_key_path: StrPath | None=None, authorized_keys_path: StrPath | None=None, user: str | None=None, sftp: bool=True) -> SshServer:
        """Returns a server with the keys of the state directory, msb-ssh(1)."""
        return SshServer(run(self._wrapped.server(host_key_path=host_key_path, authorized_keys_path=authorized_keys_path, user=user, sftp=sftp)))

    prepare_server = server


class PullProgressIter(Wrapper[_pull.PullProgressIter]):
    """Events of a pull. Any number of iterators see each event once, in order."""

    __slots__ = ()

    def __iter__(self) -> PullProgressIter:
        return self

    def __next__(self) -> PullEvent:
        try:
            return run(self._wrapped.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None


class PullSession(Wrapper[_pull.PullSession]):
    """A pull and the creation of a sandbox after it. It starts when it is used first."""

    __slots__ = ()

    @property
    def progress(self) -> PullProgressIter:
        """Events of the pull."""
        return PullProgressIter(call(lambda: self._wrapped.progress))

    def result(self) -> Sandbox:
        """Waits for the sandbox. It can be taken once."""
        return Sandbox(run(self._wrapped.result()))

    def close(self) -> None:
        """Cancels what is under way."""
        run(self._wrapped.close())

    def __enter__(self) -> PullSession:
        run(self._wrapped.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self._wrapped.__aexit__(*error))


class SandboxHandle(Wrapper[_handle.SandboxHandle]):
    """A sandbox by its name, with its state at one moment. `refresh` reads it again."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Name."""
        return self._wrapped.name

    @property
    def status(self) -> SandboxStatus:
        """State, when the handle was made."""
        return self._wrapped.status

    @property
    def config_json(self) -> str:
        """Configuration as JSON, in the form that `msb create --from-microsandbox` reads."""
        return self._wrapped.config_json

    @property
    def created_at(self) -> float | None:
        """Time of the creation, in milliseconds since 1970."""
        return self._wrapped.created_at

    @property
    def updated_at(self) -> float | None:
        """Time at which the state was entered, in milliseconds since 1970."""
        return self._wrapped.updated_at

    def config(self) -> dict[str, Any]:
        """Returns the configuration."""
        return call(self._wrapped.config)

    def refresh(self) -> SandboxHandle:
        """Returns a new handle with the state of now."""
        return SandboxHandle(run(self._wrapped.refresh()))

    def metrics(self) -> SandboxMetrics:
        """Returns the last sample of the resource usage."""
        return run(self._wrapped.metrics())

    def metrics_stream(self, interval: float=1.0) -> MetricsStream:
        """Opens a stream of samples, every `interval` seconds."""
        return MetricsStream(run(self._wrapped.metrics_stream(interval)))

    def logs(self, *, tail: int | None=None, since_ms: float | None=None, until_ms: float | None=None, sources: LogSources | None=None) -> list[LogEntry]:
        """Returns the log. The sandbox need not run."""
        return run(self._wrapped.logs(tail=tail, since_ms=since_ms, until_ms=until_ms, sources=sources))

    def log_stream(self, *, sources: LogSources | None=None, since_ms: float | None=None, from_cursor: str | None=None, until_ms: float | None=None, follow: bool=False) -> LogStream:
        """Opens a stream of the log, from the start, a time or a cursor."""
        return LogStream(run(self._wrapped.log_stream(sources=sources, since_ms=since_ms, from_cursor=from_cursor, until_ms=until_ms, follow=follow)))

    def start(self, *, detached: bool=False) -> Sandbox:
        """Starts the sandbox."""
        return Sandbox(run(self._wrapped.start(detached=detached)))

    def connect(self, *, timeout: float=10.0) -> Sandbox:
        """Returns the running sandbox, without owning it."""
        return Sandbox(run(self._wrapped.connect(timeout=timeout)))

    def connect_with_timeout(self, timeout: float) -> Sandbox:
        """Returns the running sandbox, without owning it."""
        return Sandbox(run(self._wrapped.connect_with_timeout(timeout)))

    def stop(self, *, timeout: float=STOP_SECONDS) -> None:
        """Stops the sandbox, and kills it when the time is up."""
        run(self._wrapped.stop(timeout=timeout))

    def stop_with_timeout(self, timeout: float) -> None:
        """Stops the sandbox, and kills it when the time is up; 0 kills it at once."""
        run(self._wrapped.stop_with_timeout(timeout))

    def kill(self) -> None:
        """Kills the sandbox."""
        run(self._wrapped.kill())

    def remove(self) -> None:
        """Removes the sandbox. Raises SandboxStillRunningError."""
        run(self._wrapped.remove())

    def wait_until_stopped(self, *, timeout: float | None=None) -> SandboxStopResult:
        """Waits for the end of the sandbox."""
        return run(self._wrapped.wait_until_stopped(timeout=timeout))

    def snapshot(self, name: str) -> Snapshot:
        """Creates a snapshot of the sandbox."""
        return Snapshot(run(self._wrapped.snapshot(name)))

    def snapshot_to(self, path: StrPath) -> Snapshot:
        """Creates a snapshot of the sandbox in a new directory."""
        return Snapshot(run(self._wrapped.snapshot_to(path)))


class Sandbox(Wrapper[_sandbox.Sandbox]):
    """A running sandbox.

    `create`, `start` and `connect` return one. A sandbox that `create` or `start` returned ends
    when this process ends, unless it is detached. `async with` kills it at the end of the block,
    and removes it if `create` made it.
    """

    __slots__ = ()

    @classmethod
    def create(cls, name: str, *, image: Union[str, os.PathLike[str], ImageSource, None]=None, snapshot: str | None=None, cpus: int=1, memory: MemoryLike=512, workdir: str | None=None, shell: str | None=None, security: Union[SecurityProfile, str, None]=None, hostname: str | None=None, libkrunfw_path: StrPath | None=None, user: str | None=None, entrypoint: Sequence[str] | None=None, init: InitLike | None=None, replace: bool=False, replace_with_timeout: float | None=None, max_duration: float | None=None, idle_timeout: float | None=None, env: Mapping[str, str] | None=None, labels: Mapping[str, str] | None=None, scripts: Mapping[str, str] | None=None, pull_policy: Union[PullPolicy, str, None]=None, log_level: Union[LogLevel, str, None]=None, registry_auth: RegistryAuth | None=None, volumes: Mapping[str, MountConfig] | None=None, patches: Iterable[PatchConfig] | None=None, ports: PortsLike | None=None, network: Union[Network, str, None]=None, secrets: Iterable[SecretEntry] | None=None, on_secret_violation: Violation | None=None, rlimits: Iterable[Rlimit] | None=None, metrics_interval: float | None=None, detached: bool=False) -> Sandbox:
        """Creates a sandbox and starts it. Returns when its guest accepts commands.

        `memory` is in MiB, times are in seconds. What the installed programs do not support raises
        UnsupportedOperationError with the names of the fields, and nothing is created.
        """
        return Sandbox(run(_sandbox.Sandbox.create(name, image=image, snapshot=snapshot, cpus=cpus, memory=memory, workdir=workdir, shell=shell, security=security, hostname=hostname, libkrunfw_path=libkrunfw_path, user=user, entrypoint=entrypoint, init=init, replace=replace, replace_with_timeout=replace_with_timeout, max_duration=max_duration, idle_timeout=idle_timeout, env=env, labels=labels, scripts=scripts, pull_policy=pull_policy, log_level=log_level, registry_auth=registry_auth, volumes=volumes, patches=patches, ports=ports, network=network, secrets=secrets, on_secret_violation=on_secret_violation, rlimits=rlimits, metrics_interval=metrics_interval, detached=detached)))

    @classmethod
    def create_with_progress(cls, name: str, **options: Unpack[CreateOptions]) -> PullSession:
        """Returns a pull of the image, with its progress, and the creation after it."""
        return PullSession(call(_sandbox.Sandbox.create_with_progress, name, **options))

    @classmethod
    def start(cls, name: str, *, detached: bool=False) -> Sandbox:
        """Starts a sandbox that is not running."""
        return Sandbox(run(_sandbox.Sandbox.start(name, detached=detached)))

    @classmethod
    def connect(cls, name: str, *, timeout: float=10.0) -> Sandbox:
        """Returns a running sandbox, without owning it. Waits while it starts."""
        return Sandbox(run(_sandbox.Sandbox.connect(name, timeout=timeout)))

    @staticmethod
    def get(name: str) -> SandboxHandle:
        """Returns the handle of a sandbox, running or not. Raises SandboxNotFoundError."""
        return SandboxHandle(run(_sandbox.Sandbox.get(name)))

    @staticmethod
    def list() -> builtins.list[SandboxHandle]:
        """Returns the handles of all sandboxes, sorted by name."""
        return [SandboxHandle(found) for found in run(_sandbox.Sandbox.list())]

    @staticmethod
    def list_with(*, labels: Mapping[str, str] | None=None) -> builtins.list[SandboxHandle]:
        """Returns the handles of the sandboxes that have all these labels."""
        return [SandboxHandle(found) for found in run(_sandbox.Sandbox.list_with(labels=labels))]

    @staticmethod
    def remove(name: str) -> None:
        """Removes a sandbox. Raises SandboxStillRunningError."""
        run(_sandbox.Sandbox.remove(name))

    @property
    def name(self) -> AwaitableStr:
        """Name."""
        return self._wrapped.name

    @property
    def owns_lifecycle(self) -> AwaitableBool:
        """True if the sandbox ends when this process ends."""
        return self._wrapped.owns_lifecycle

    @property
    def fs(self) -> SandboxFs:
        """Files of the guest."""
        return SandboxFs(call(lambda: self._wrapped.fs))

    def ssh(self) -> SandboxSsh:
        """Returns sessions as over SSH."""
        return SandboxSsh(call(self._wrapped.ssh))

    def exec(self, cmd: str, args: ExecArgs=None, *, cwd: str | None=None, user: str | None=None, env: Mapping[str, str] | None=None, timeout: float | None=None, stdin: StdinSource | None=None, tty: bool=False, rlimits: Sequence[Rlimit] | None=None, log: bool | None=None, max_output_bytes: int | None=None) -> ExecOutput:
        """Runs a command to its end and returns its output.

        `timeout` is in seconds; then the command is killed and ExecTimeoutError has its output. A
        cancellation kills the command too. `max_output_bytes` bounds what is kept of each stream.
        """
        return run(self._wrapped.exec(cmd, args, cwd=cwd, user=user, env=env, timeout=timeout, stdin=stdin, tty=tty, rlimits=rlimits, log=log, max_output_bytes=max_output_bytes))

    def exec_stream(self, cmd: str, args: ExecArgs=None, *, cwd: str | None=None, user: str | None=None, env: Mapping[str, str] | None=None, timeout: float | None=None, stdin: StdinSource | None=None, tty: bool=False, rlimits: Sequence[Rlimit] | None=None, log: bool | None=None, max_output_bytes: int | None=None) -> ExecHandle:
        """Starts a command and streams its events. A slow reader slows the command down."""
        return ExecHandle(run(self._wrapped.exec_stream(cmd, args, cwd=cwd, user=user, env=env, timeout=timeout, stdin=stdin, tty=tty, rlimits=rlimits, log=log, max_output_bytes=max_output_bytes)))

    def shell(self, script: str, *, cwd: str | None=None, user: str | None=None, env: Mapping[str, str] | None=None, timeout: float | None=None, stdin: StdinSource | None=None, tty: bool=False, rlimits: Sequence[Rlimit] | None=None, log: bool | None=None, max_output_bytes: int | None=None) -> ExecOutput:
        """Runs a script by the shell of the sandbox."""
        return run(self._wrapped.shell(script, cwd=cwd, user=user, env=env, timeout=timeout, stdin=stdin, tty=tty, rlimits=rlimits, log=log, max_output_bytes=max_output_bytes))

    def shell_stream(self, script: str, *, cwd: str | None=None, user: str | None=None, env: Mapping[str, str] | None=None, timeout: float | None=None, stdin: StdinSource | None=None, tty: bool=False, rlimits: Sequence[Rlimit] | None=None, log: bool | None=None, max_output_bytes: int | None=None) -> ExecHandle:
        """Starts a script by the shell of the sandbox and streams its events."""
        return ExecHandle(run(self._wrapped.shell_stream(script, cwd=cwd, user=user, env=env, timeout=timeout, stdin=stdin, tty=tty, rlimits=rlimits, log=log, max_output_bytes=max_output_bytes)))

    def attach(self, cmd: str, args: Sequence[str] | None=None, *, cwd: str | None=None, user: str | None=None, env: Mapping[str, str] | None=None, detach_keys: str | None=None) -> int:
        """Runs a command on the terminal of this process. Returns its exit code."""
        return run(self._wrapped.attach(cmd, args, cwd=cwd, user=user, env=env, detach_keys=detach_keys))

    def attach_shell(self) -> int:
        """Runs the shell of the sandbox on the terminal of this process."""
        return run(self._wrapped.attach_shell())

    def start_job(self, cmd: str, args: ExecArgs=None, *, cwd: str | None=None, user: str | None=None, env: Mapping[str, str] | None=None, timeout: float | None=None, stdin: StdinSource | None=None, tty: bool=False, rlimits: Sequence[Rlimit] | None=None) -> Job:
        """Starts a command that continues without this process. Its output is in the log."""
        return Job(run(self._wrapped.start_job(cmd, args, cwd=cwd, user=user, env=env, timeout=timeout, stdin=stdin, tty=tty, rlimits=rlimits)))

    def job(self, id: str) -> Job:
        """Returns a job by its identifier."""
        return Job(run(self._wrapped.job(id)))

    def jobs(self) -> builtins.list[JobInfo]:
        """Returns the running jobs and the last ones that have ended."""
        return run(self._wrapped.jobs())

    def ping(self) -> float:
        """Asks the guest for a sign of life. Returns the time that it took, in milliseconds."""
        return run(self._wrapped.ping())

    def metrics(self) -> SandboxMetrics:
        """Returns the last sample of the resource usage."""
        return run(self._wrapped.metrics())

    def metrics_stream(self, interval: float=1.0) -> MetricsStream:
        """Opens a stream of samples, every `interval` seconds."""
        return MetricsStream(run(self._wrapped.metrics_stream(interval)))

    def logs(self, *, tail: int | None=None, since_ms: float | None=None, until_ms: float | None=None, sources: LogSources | None=None) -> builtins.list[LogEntry]:
        """Returns the log: output of the main command, of jobs and of logged commands."""
        return run(self._wrapped.logs(tail=tail, since_ms=since_ms, until_ms=until_ms, sources=sources))

    def log_stream(self, *, sources: LogSources | None=None, since_ms: float | None=None, from_cursor: str | None=None, until_ms: float | None=None, follow: bool=False) -> LogStream:
        """Opens a stream of the log, from the start, a time or a cursor."""
        return LogStream(run(self._wrapped.log_stream(sources=sources, since_ms=since_ms, from_cursor=from_cursor, until_ms=until_ms, follow=follow)))

    def stop(self, *, timeout: float=STOP_SECONDS) -> None:
        """Stops the sandbox and waits for its end. Kills it when the time is up."""
        run(self._wrapped.stop(timeout=timeout))

    def request_stop(self, *, timeout: float=STOP_SECONDS) -> None:
        """Asks the sandbox to stop, and does not wait."""
        run(self._wrapped.request_stop(timeout=timeout))

    def stop_and_wait(self) -> ExitStatus:
        """Stops the sandbox and returns the exit status of its main command."""
        return run(self._wrapped.stop_and_wait())

    def wait(self) -> ExitStatus:
        """Waits for the end. Returns the exit status of the main command; 0 if it had none."""
        return run(self._wrapped.wait())

    def wait_until_stopped(self, *, timeout: float | None=None) -> SandboxStopResult:
        """Waits for the end of the sandbox."""
        return run(self._wrapped.wait_until_stopped(timeout=timeout))

    def kill(self) -> None:
        """Kills the sandbox and waits for its end."""
        run(self._wrapped.kill())

    def request_kill(self) -> None:
        """Kills the sandbox, and does not wait."""
        run(self._wrapped.request_kill())

    def drain(self) -> None:
        """Asks the sandbox to refuse new commands, and to stop when those that run have ended."""
        run(self._wrapped.drain())

    def request_drain(self) -> None:
        """Asks the sandbox to refuse new commands, and to stop when those that run have ended."""
        run(self._wrapped.request_drain())

    def detach(self) -> None:
        """Lets the sandbox go on without this process. The object is used up."""
        run(self._wrapped.detach())

    def remove_persisted(self) -> None:
        """Removes the stopped sandbox. The object is used up."""
        run(self._wrapped.remove_persisted())

    def close(self) -> None:
        """Closes the connections. The sandbox goes on; the next call opens another one."""
        run(self._wrapped.close())

    def __enter__(self) -> Sandbox:
        run(self._wrapped.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self._wrapped.__aexit__(*error))


def install() -> None:
    """Checks that the programs are installed. msb comes from its package, not from here."""
    run(_setup.install())


def runtime_version() -> str:
    """Returns the version of the programs."""
    return run(_setup.runtime_version())


SandboxFsOps = SandboxFs
SandboxSshOps = SandboxSsh
