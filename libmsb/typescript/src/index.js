/**
 * Sandboxes in microVMs.
 *
 * ```js
 * import { Sandbox } from "msb-sdk";
 *
 * const sandbox = await Sandbox.builder("hello").image("python:3.12-slim").create();
 * const output = await sandbox.exec("python3", ["-c", "print(6 * 7)"]);
 * console.log(output.stdout());
 * await sandbox.discard();
 * ```
 *
 * The package needs the programs of msb on `PATH`, or `MSB_PATH`, and nothing else. Times are in
 * milliseconds, except `maxDuration` and `idleTimeout`, which are in seconds.
 */

export * from "./agent.js";
export { SandboxBuilder } from "./builder.js";
export { ExecHandle, ExecOutput, ExecSink } from "./command.js";
export * from "./errors.js";
export { AttachOptionsBuilder, ExecOptionsBuilder, Stdin } from "./exec-options.js";
export { FsReadStream, FsWriteSink, SandboxFs } from "./files.js";
export { SandboxHandle } from "./handle.js";
export { Image, ImageHandle } from "./image.js";
export { Job } from "./job.js";
export { LogEntry, LogStream } from "./logs.js";
export { allSandboxMetrics, MetricsStream } from "./metrics.js";
export {
  ImageBuilder,
  InitBuilder,
  intoRootfsSource,
  MountBuilder,
  PatchBuilder,
  RegistryBuilder,
} from "./mount.js";
export {
  DnsBuilder,
  InterfaceOverridesBuilder,
  NetworkBuilder,
  TlsBuilder,
} from "./network.js";
export {
  Destination,
  NetworkPolicy,
  NetworkPolicyBuilder,
  PortRange,
  Rule,
  RuleBuilder,
  RuleDestinationBuilder,
} from "./policy.js";
export { PullProgress, PullSession } from "./pull.js";
export { Sandbox } from "./sandbox.js";
export { Secret, SecretBuilder, ViolationActionBuilder } from "./secret.js";
export { install, isInstalled, runtimeVersion, setProgram, Setup, setup, version } from "./setup.js";
export { Snapshot, SnapshotBuilder, SnapshotHandle } from "./snapshot.js";
export { SandboxSsh, SftpClient, SshClient, SshServer } from "./ssh.js";
export {
  Actions,
  DestinationGroups,
  Directions,
  DiskImageFormats,
  FsEntryKinds,
  GiB,
  HostPermissions,
  KiB,
  LogLevels,
  LogSources,
  MiB,
  PatchKinds,
  PortProtocols,
  Protocols,
  PullPolicies,
  RegistryAuthKinds,
  RlimitResources,
  RootfsSourceKinds,
  SandboxStatuses,
  SecurityProfiles,
  Size,
  StatVirtualizations,
  TiB,
  ViolationActions,
  VolumeMountKinds,
} from "./types.js";
export { Volume, VolumeBuilder, VolumeFs, VolumeHandle } from "./volume.js";

/** @typedef {import("./builder.js").SandboxConfig} SandboxConfig */
/** @typedef {import("./command.js").ExecEvent} ExecEvent */
/** @typedef {import("./command.js").ExecFailure} ExecFailure */
/** @typedef {import("./exec-options.js").ExecOptions} ExecOptions */
/** @typedef {import("./exec-options.js").StdinSource} StdinSource */
/** @typedef {import("./files.js").FsEntry} FsEntry */
/** @typedef {import("./files.js").FsMetadata} FsMetadata */
/** @typedef {import("./handle.js").SandboxStopResult} SandboxStopResult */
/** @typedef {import("./image.js").ImageConfigDetail} ImageConfigDetail */
/** @typedef {import("./image.js").ImageDetail} ImageDetail */
/** @typedef {import("./image.js").ImageLayerDetail} ImageLayerDetail */
/** @typedef {import("./image.js").ImagePruneReport} ImagePruneReport */
/** @typedef {import("./image.js").LoadedImage} LoadedImage */
/** @typedef {import("./job.js").JobInfo} JobInfo */
/** @typedef {import("./logs.js").LogOptions} LogOptions */
/** @typedef {import("./logs.js").LogStreamOptions} LogStreamOptions */
/** @typedef {import("./metrics.js").SandboxMetrics} SandboxMetrics */
/** @typedef {import("./policy.js").NetworkDestination} NetworkDestination */
/** @typedef {import("./policy.js").NetworkPolicyFields} NetworkPolicyFields */
/** @typedef {import("./policy.js").RuleFields} RuleFields */
/** @typedef {import("./pull.js").PullEvent} PullEvent */
/** @typedef {import("./snapshot.js").Verification} Verification */
/** @typedef {import("./ssh.js").SshOutput} SshOutput */
/** @typedef {import("./types.js").CallOptions} CallOptions */
/** @typedef {import("./types.js").ExitStatus} ExitStatus */
/** @typedef {import("./types.js").PullPolicy} PullPolicy */
/** @typedef {import("./types.js").Rlimit} Rlimit */
/** @typedef {import("./types.js").SandboxStatus} SandboxStatus */
