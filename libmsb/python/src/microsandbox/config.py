"""Configuration of a new sandbox, in the form that `msb create --from-microsandbox` reads.

The programs translate and check it, and refuse what they do not support by the field's name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from . import types
from .errors import InvalidConfigError
from .network import Network, PortsLike, bindings
from .secret import SecretEntry, Violation, violation
from .tool import Json
from .types import (
    DiskImageFormat,
    HostPermissions,
    InitConfig,
    LogLevel,
    MountKind,
    PullPolicy,
    RegistryAuth,
    Rlimit,
    SecurityProfile,
    Size,
    StatVirtualization,
    StrPath,
)

RLIM_INFINITY = (1 << 64) - 1
NAME_BYTES_MAX = 128

_PULL = {"always": "Always", "if-missing": "IfMissing", "never": "Never"}
_FORMAT = {"qcow2": "Qcow2", "raw": "Raw", "vmdk": "Vmdk"}


@dataclass(frozen=True)
class ImageSource:
    """Root of a sandbox: an image, a directory or a disk image of the host."""

    kind: str
    value: str
    upper_size_mib: int | None = None
    fstype: str | None = None

    def to_json(self) -> Json:
        """Returns the form of a stored configuration."""
        if self.kind == "oci":
            return {"Oci": {"reference": self.value, "upper_size_mib": self.upper_size_mib}}
        if self.kind == "bind":
            return {"Bind": os.path.abspath(self.value)}
        suffix = os.path.splitext(self.value)[1].lstrip(".").lower()
        form = "Qcow2" if suffix == "qcow2" else "Vmdk" if suffix == "vmdk" else "Raw"
        path = os.path.abspath(self.value)
        return {"DiskImage": {"path": path, "format": form, "fstype": self.fstype}}

    @classmethod
    def of(cls, value: Union[str, os.PathLike[str], ImageSource]) -> ImageSource:
        """Returns the source of a value. A text that starts like a path is one."""
        if isinstance(value, ImageSource):
            return value
        text = os.fspath(value)
        if not isinstance(value, str) or text.startswith(("/", "./", "../")) or text in (".", ".."):
            return cls("bind" if os.path.isdir(text) else "disk", text)
        return cls("oci", text)


@dataclass(frozen=True)
class MountConfig:
    """A mount of a sandbox. The makers are in `Volume`."""

    kind: MountKind
    bind: str | None = None
    named: str | None = None
    size_mib: int | None = None
    disk: str | None = None
    format: DiskImageFormat | None = None
    fstype: str | None = None
    readonly: bool = False
    noexec: bool = False
    nosuid: bool = False
    nodev: bool = False
    stat_virtualization: StatVirtualization = StatVirtualization.STRICT
    host_permissions: HostPermissions = HostPermissions.PRIVATE

    def __post_init__(self) -> None:
        strict = self.stat_virtualization == StatVirtualization.STRICT
        private = self.host_permissions == HostPermissions.PRIVATE
        if self.kind in (MountKind.TMPFS, MountKind.DISK) and not (strict and private):
            raise ValueError(f"a {self.kind} mount has no stat_virtualization or host_permissions")

    def to_json(self, target: str) -> Json:
        """Returns the form of a stored configuration."""
        fields: Json = {
            "guest": types.text("volumes", target),
            "options": {
                "readonly": self.readonly,
                "noexec": self.noexec,
                "nosuid": self.nosuid,
                "nodev": self.nodev,
            },
        }
        if self.kind is MountKind.TMPFS:
            return {**fields, "type": "Tmpfs", "size_mib": self.size_mib}
        if self.kind is MountKind.DISK:
            form = self.format or (
                DiskImageFormat.QCOW2
                if str(self.disk).lower().endswith(".qcow2")
                else DiskImageFormat.RAW
            )
            disk = os.path.abspath(str(self.disk))
            return {
                **fields,
                "type": "DiskImage",
                "host": disk,
                "format": _FORMAT[types.word(DiskImageFormat, "format", form).value],
                "fstype": self.fstype,
            }
        fields["stat_virtualization"] = types.word(
            StatVirtualization, "stat_virtualization", self.stat_virtualization
        ).value
        fields["host_permissions"] = types.word(
            HostPermissions, "host_permissions", self.host_permissions
        ).value
        if self.kind is MountKind.BIND:
            return {**fields, "type": "Bind", "host": os.path.abspath(str(self.bind))}
        return {**fields, "type": "Named", "name": self.named}


@dataclass(frozen=True)
class PatchConfig:
    """A change of files before the first boot. The makers are in `Patch`."""

    kind: str
    fields: tuple[tuple[str, Any], ...]

    def to_json(self) -> Json:
        """Returns the form of a stored configuration."""
        return {self.kind: dict(self.fields)}


class Patch:
    """Makers of changes of files before the first boot."""

    @staticmethod
    def _of(kind: str, **fields: Any) -> PatchConfig:
        return PatchConfig(kind, tuple(fields.items()))

    @staticmethod
    def text(
        path: str, content: str, *, mode: int | None = None, replace: bool = False
    ) -> PatchConfig:
        """Writes a text file."""
        return Patch._of("Text", path=path, content=content, mode=mode, replace=replace)

    @staticmethod
    def file(
        path: str, content: bytes, *, mode: int | None = None, replace: bool = False
    ) -> PatchConfig:
        """Writes a file."""
        return Patch._of("File", path=path, content=list(content), mode=mode, replace=replace)

    @staticmethod
    def mkdir(path: str, *, mode: int | None = None) -> PatchConfig:
        """Creates a directory and its parents."""
        return Patch._of("Mkdir", path=path, mode=mode)

    @staticmethod
    def append(path: str, content: str) -> PatchConfig:
        """Appends to a file."""
        return Patch._of("Append", path=path, content=content)

    @staticmethod
    def copy_file(
        src: StrPath, dst: str, *, mode: int | None = None, replace: bool = False
    ) -> PatchConfig:
        """Copies a file of the host."""
        source = os.path.abspath(src)
        return Patch._of("CopyFile", src=source, dst=dst, mode=mode, replace=replace)

    @staticmethod
    def copy_dir(src: StrPath, dst: str, *, replace: bool = False) -> PatchConfig:
        """Copies a directory of the host."""
        return Patch._of("CopyDir", src=os.path.abspath(src), dst=dst, replace=replace)

    @staticmethod
    def symlink(target: str, link: str, *, replace: bool = False) -> PatchConfig:
        """Creates a symbolic link."""
        return Patch._of("Symlink", target=target, link=link, replace=replace)

    @staticmethod
    def remove(path: str) -> PatchConfig:
        """Removes a file or directory, if it exists."""
        return Patch._of("Remove", path=path)


InitLike = Union[str, Mapping[str, Any], InitConfig]
MemoryLike = Union[int, Size]


@dataclass
class SandboxConfig:
    """Arguments of `Sandbox.create`, checked and converted by `to_json` and `options`."""

    name: str
    image: Union[str, os.PathLike[str], ImageSource, None] = None
    snapshot: str | None = None
    cpus: int = 1
    memory: MemoryLike = 512
    workdir: str | None = None
    shell: str | None = None
    security: Union[SecurityProfile, str, None] = None
    hostname: str | None = None
    libkrunfw_path: StrPath | None = None
    user: str | None = None
    entrypoint: Sequence[str] | None = None
    init: InitLike | None = None
    replace: bool = False
    replace_with_timeout: float | None = None
    max_duration: float | None = None
    idle_timeout: float | None = None
    env: Mapping[str, str] | None = None
    labels: Mapping[str, str] | None = None
    scripts: Mapping[str, str] | None = None
    pull_policy: Union[PullPolicy, str, None] = None
    log_level: Union[LogLevel, str, None] = None
    registry_auth: RegistryAuth | None = None
    volumes: Mapping[str, MountConfig] | None = None
    patches: Iterable[PatchConfig] | None = None
    ports: PortsLike | None = None
    network: Union[Network, str, None] = None
    secrets: Iterable[SecretEntry] | None = None
    on_secret_violation: Violation | None = None
    rlimits: Iterable[Rlimit] | None = None
    metrics_interval: float | None = None
    detached: bool = False

    def __post_init__(self) -> None:
        types.text("name", self.name)
        if len(os.fsencode(self.name)) > NAME_BYTES_MAX or not self.name:
            raise InvalidConfigError(f"a name has 1 to {NAME_BYTES_MAX} bytes")
        if (self.image is None) == (self.snapshot is None):
            raise ValueError("give exactly one of image and snapshot")
        if self.snapshot is not None:
            types.text("snapshot", self.snapshot)
        if isinstance(self.entrypoint, str):
            raise TypeError("entrypoint must be a list of str, not one text")
        if self.log_level is not None:
            types.word(LogLevel, "log_level", self.log_level)

    @property
    def pull(self) -> PullPolicy:
        """Pull policy of the image."""
        policy = self.pull_policy
        if policy is None:
            return PullPolicy.IF_MISSING
        return types.word(PullPolicy, "pull_policy", policy)

    def options(self) -> list[str]:
        """Returns the options of `msb create` that have no field in the configuration."""
        options = [f"--name={self.name}", "--from-microsandbox=-"]
        if self.snapshot is not None:
            options.append(f"--snapshot={self.snapshot}")
        if not self.entrypoint:
            # As upstream: a sandbox boots and waits for commands.
            options.append("--entrypoint=")
        if self.replace_with_timeout is not None:
            timeout = types.duration("replace_with_timeout", self.replace_with_timeout)
            options.append(f"--replace-with-timeout={timeout}")
        elif self.replace:
            options.append("--replace")
        for name in ("max_duration", "idle_timeout", "metrics_interval"):
            value: float | None = getattr(self, name)
            if value is None:
                continue
            option = "metrics-sample-interval" if name == "metrics_interval" else name
            options.append(f"--{option.replace('_', '-')}={types.duration(name, value)}")
        return options

    def to_json(self) -> Json:
        """Returns the form of a stored configuration."""
        memory = self.memory.mib_count if isinstance(self.memory, Size) else self.memory
        fields: Json = {
            "name": self.name,
            "cpus": types.whole("cpus", self.cpus, 1),
            "memory_mib": types.whole("memory", memory, 1),
            "workdir": self.workdir,
            "shell": self.shell,
            "hostname": self.hostname,
            "user": self.user,
            "env": [list(pair) for pair in _texts("env", self.env).items()],
            "labels": _texts("labels", self.labels),
            "scripts": _texts("scripts", self.scripts),
            "pull_policy": _PULL[self.pull.value],
            "mounts": [mount.to_json(at) for at, mount in (self.volumes or {}).items()],
            "patches": [patch.to_json() for patch in self.patches or ()],
            "rlimits": [_rlimit(limit) for limit in self.rlimits or ()],
        }
        if self.image is not None:
            fields["image"] = ImageSource.of(self.image).to_json()
        if self.security is not None:
            profile = types.word(SecurityProfile, "security", self.security)
            fields["security_profile"] = profile.value
        if self.entrypoint:
            fields["entrypoint"] = [types.text("entrypoint", word) for word in self.entrypoint]
        if self.init is not None:
            fields["init"] = _init(self.init)
        if self.registry_auth is not None:
            auth = self.registry_auth
            fields["registry_auth"] = {
                "Basic": {"username": auth.username, "password": auth.password}
            }
        network = self._network()
        if network is not None:
            fields["network"] = network
        return fields

    def _network(self) -> Json | None:
        network = self.network
        if isinstance(network, str):
            network = Network(policy=network)
        ports = [binding.to_json() for binding in bindings(self.ports or ())]
        secrets = [entry.to_json() for entry in self.secrets or ()]
        if network is None and not ports and not secrets and self.on_secret_violation is None:
            return None
        fields = (network or Network()).to_json()
        fields["ports"] += ports
        if secrets:
            action = self.on_secret_violation or (network or Network()).on_secret_violation
            fields["secrets"] = {"secrets": secrets, "on_violation": violation(action).to_json()}
        return fields


def _texts(name: str, values: Mapping[str, str] | None) -> dict[str, str]:
    for key, value in (values or {}).items():
        types.text(name, key)
        types.text(f"{name}[{key!r}]", value)
    return dict(values or {})


def _rlimit(limit: Rlimit) -> Json:
    return {
        "resource": str(limit.resource),
        "soft": RLIM_INFINITY if limit.soft is None else limit.soft,
        "hard": RLIM_INFINITY if limit.hard is None else limit.hard,
    }


def _init(init: InitLike) -> Json:
    if isinstance(init, str):
        return {"cmd": init, "args": [], "env": []}
    if isinstance(init, InitConfig):
        return {"cmd": init.cmd, "args": list(init.args), "env": [list(pair) for pair in init.env]}
    unknown = sorted(set(init) - {"cmd", "args", "env"})
    if unknown or "cmd" not in init:
        raise ValueError(f"init needs 'cmd' and may have 'args' and 'env', not {unknown}")
    env: Any = init.get("env") or ()
    pairs: Any = dict(env).items()
    return {
        "cmd": init["cmd"],
        "args": list(init.get("args") or ()),
        "env": [list(pair) for pair in pairs],
    }
