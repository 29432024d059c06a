"""Sandboxes in microVMs.

```python
import asyncio
from microsandbox import Sandbox

async def main() -> None:
    async with await Sandbox.create("hello", image="python:3.12-slim") as sandbox:
        output = await sandbox.exec("python3", ["-c", "print(6 * 7)"])
        print(output.stdout_text)

asyncio.run(main())
```

The same classes without `await` are in `microsandbox.sync`. The package needs the programs of msb
on `PATH`, or `MSB_PATH`, and nothing else. Times are in seconds, stamps in milliseconds since 1970.
"""

from __future__ import annotations

from .agent import (
    FLAG_SESSION_START as FLAG_SESSION_START,
    FLAG_SHUTDOWN as FLAG_SHUTDOWN,
    FLAG_TERMINAL as FLAG_TERMINAL,
    AgentClient as AgentClient,
    AgentStream as AgentStream,
)
from .command import ExecHandle as ExecHandle, ExecSink as ExecSink
from .config import (
    ImageSource as ImageSource,
    MountConfig as MountConfig,
    Patch as Patch,
    PatchConfig as PatchConfig,
)
from .creation import CreateOptions as CreateOptions
from .errors import (
    BootStartError as BootStartError,
    ExecFailedError as ExecFailedError,
    ExecTimeoutError as ExecTimeoutError,
    FilesystemError as FilesystemError,
    ImageInUseError as ImageInUseError,
    ImageNotFoundError as ImageNotFoundError,
    ImagePullFailedError as ImagePullFailedError,
    InvalidConfigError as InvalidConfigError,
    IoError as IoError,
    MetricsDisabledError as MetricsDisabledError,
    MetricsUnavailableError as MetricsUnavailableError,
    MicrosandboxError as MicrosandboxError,
    MissedLogsError as MissedLogsError,
    NetworkPolicyError as NetworkPolicyError,
    PatchFailedError as PatchFailedError,
    PathNotFoundError as PathNotFoundError,
    ProgramNotFoundError as ProgramNotFoundError,
    ProtocolError as ProtocolError,
    SandboxAlreadyExistsError as SandboxAlreadyExistsError,
    SandboxNotFoundError as SandboxNotFoundError,
    SandboxNotRunningError as SandboxNotRunningError,
    SandboxStillRunningError as SandboxStillRunningError,
    SecretViolationError as SecretViolationError,
    SnapshotAlreadyExistsError as SnapshotAlreadyExistsError,
    SnapshotImageMissingError as SnapshotImageMissingError,
    SnapshotIntegrityError as SnapshotIntegrityError,
    SnapshotNotFoundError as SnapshotNotFoundError,
    SnapshotSandboxRunningError as SnapshotSandboxRunningError,
    TlsError as TlsError,
    UnsupportedOperationError as UnsupportedOperationError,
    VolumeAlreadyExistsError as VolumeAlreadyExistsError,
    VolumeInUseError as VolumeInUseError,
    VolumeNotFoundError as VolumeNotFoundError,
)
from .exec_options import Stdin as Stdin
from .exec_output import (
    ExecEvent as ExecEvent,
    ExecOutput as ExecOutput,
    ExitedEvent as ExitedEvent,
    StartedEvent as StartedEvent,
    StderrEvent as StderrEvent,
    StdoutEvent as StdoutEvent,
)
from .files import (
    FsEntry as FsEntry,
    FsMetadata as FsMetadata,
    FsReadStream as FsReadStream,
    FsWriteSink as FsWriteSink,
    SandboxFs as SandboxFs,
)
from .handle import SandboxHandle as SandboxHandle, SandboxStopResult as SandboxStopResult
from .image import (
    Image as Image,
    ImageConfigDetail as ImageConfigDetail,
    ImageDetail as ImageDetail,
    ImageHandle as ImageHandle,
    ImageLayerDetail as ImageLayerDetail,
    ImagePruneReport as ImagePruneReport,
    LoadedImage as LoadedImage,
)
from .job import Job as Job, JobInfo as JobInfo
from .logs import LogEntry as LogEntry, LogStream as LogStream
from .metrics import (
    MetricsStream as MetricsStream,
    SandboxMetrics as SandboxMetrics,
    all_sandbox_metrics as all_sandbox_metrics,
)
from .network import (
    Destination as Destination,
    DnsConfig as DnsConfig,
    Network as Network,
    NetworkDestination as NetworkDestination,
    NetworkPolicy as NetworkPolicy,
    PortBinding as PortBinding,
    Rule as Rule,
    TlsConfig as TlsConfig,
)
from .pull import (
    LayerDownloadComplete as LayerDownloadComplete,
    LayerDownloadProgress as LayerDownloadProgress,
    LayerExtractComplete as LayerExtractComplete,
    LayerExtractProgress as LayerExtractProgress,
    LayerExtractStarted as LayerExtractStarted,
    LayerIndexComplete as LayerIndexComplete,
    LayerIndexStarted as LayerIndexStarted,
    PullComplete as PullComplete,
    PullEvent as PullEvent,
    PullProgressIter as PullProgressIter,
    PullSession as PullSession,
    Resolved as Resolved,
    Resolving as Resolving,
)
from .sandbox import Sandbox as Sandbox
from .secret import (
    Secret as Secret,
    SecretEntry as SecretEntry,
    SecretInjection as SecretInjection,
    ViolationPolicy as ViolationPolicy,
)
from .setup import (
    install as install,
    is_installed as is_installed,
    runtime_version as runtime_version,
    set_program as set_program,
    version as version,
)
from .snapshot import Snapshot as Snapshot, SnapshotHandle as SnapshotHandle
from .ssh import (
    SandboxSsh as SandboxSsh,
    SftpClient as SftpClient,
    SshClient as SshClient,
    SshOutput as SshOutput,
    SshServer as SshServer,
)
from .types import (
    Action as Action,
    DestGroup as DestGroup,
    Direction as Direction,
    DiskImageFormat as DiskImageFormat,
    ExitStatus as ExitStatus,
    FsEntryKind as FsEntryKind,
    GiB as GiB,
    HostPermissions as HostPermissions,
    InitConfig as InitConfig,
    LogLevel as LogLevel,
    LogReadSource as LogReadSource,
    LogSource as LogSource,
    MiB as MiB,
    MountKind as MountKind,
    PortProtocol as PortProtocol,
    Protocol as Protocol,
    PullPolicy as PullPolicy,
    RegistryAuth as RegistryAuth,
    Rlimit as Rlimit,
    RlimitResource as RlimitResource,
    SandboxStatus as SandboxStatus,
    SecurityProfile as SecurityProfile,
    Size as Size,
    StatVirtualization as StatVirtualization,
    ViolationAction as ViolationAction,
)
from .volume import Volume as Volume, VolumeFs as VolumeFs, VolumeHandle as VolumeHandle

SandboxFsOps = SandboxFs
"""Later name of `SandboxFs`."""
SandboxSshOps = SandboxSsh
"""Later name of `SandboxSsh`."""

__version__ = version()
