/**
 * Errors.
 *
 * Every error of a sandbox, an image, a volume or a program is a `MicrosandboxError`. Wrong
 * arguments are `TypeError` or `RangeError` and are thrown before anything runs.
 */

/** @typedef {{ hint?: string | undefined, cause?: unknown }} ErrorDetails */
/** @typedef {ErrorDetails & { stdout?: Buffer, stderr?: Buffer }} OutputDetails */

/** An error of msb. The class and `code` name its kind. */
export class MicrosandboxError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {ErrorDetails} [details]
   */
  constructor(code, message, details = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = new.target.name;
    /** Kind of the error. */
    this.code = code;
    /** The next step, if one is known. */
    this.hint = details.hint;
  }
}

/**
 * Creates the class of a kind of error.
 *
 * @template {string} C
 * @param {C} code
 */
function kind(code) {
  return class extends MicrosandboxError {
    /**
     * @param {string} message
     * @param {ErrorDetails} [details]
     */
    constructor(message, details) {
      super(code, message, details);
    }
  };
}

/** An operation of the host's system failed. */
export class IoError extends kind("io") {}
/** A request by HTTP failed. The programs report it as a failed pull. */
export class HttpError extends kind("http") {}
/** The library libkrunfw is missing. The programs report it as a failed boot. */
export class LibkrunfwNotFoundError extends kind("libkrunfwNotFound") {}
/** A database is broken. msb has none. */
export class DatabaseError extends kind("database") {}
/** A value of a configuration is invalid. */
export class InvalidConfigError extends kind("invalidConfig") {}
/** There is no sandbox of that name. */
export class SandboxNotFoundError extends kind("sandboxNotFound") {}
/** A sandbox of that name exists. */
export class SandboxAlreadyExistsError extends kind("sandboxAlreadyExists") {}
/** The sandbox runs, but must not. */
export class SandboxStillRunningError extends kind("sandboxStillRunning") {}
/** A program failed without a kind. */
export class RuntimeError extends kind("runtime") {}
/** JSON could not be read. The SDK reports it as a protocol error. */
export class JsonError extends kind("json") {}
/** A peer or a program violated its protocol. */
export class ProtocolError extends kind("protocol") {}
/** A system call failed. The SDK reports it as an I/O error. */
export class NixError extends kind("nix") {}
/** The terminal cannot be used. */
export class TerminalError extends kind("terminal") {}
/** An operation on files failed. */
export class SandboxFsError extends kind("sandboxFs") {}
/** A path does not exist. */
export class PathNotFoundError extends SandboxFsError {}
/** There is no such image in the store. */
export class ImageNotFoundError extends kind("imageNotFound") {}
/** Sandboxes use the image. */
export class ImageInUseError extends kind("imageInUse") {}
/** There is no volume of that name. */
export class VolumeNotFoundError extends kind("volumeNotFound") {}
/** A volume of that name exists. */
export class VolumeAlreadyExistsError extends kind("volumeAlreadyExists") {}
/** Sandboxes use the volume. */
export class VolumeInUseError extends kind("volumeInUse") {}
/** An operation on an image failed. */
export class ImageError extends kind("image") {}
/** An image could not be pulled. */
export class ImagePullFailedError extends ImageError {}
/** A change of files before the first boot failed. */
export class PatchFailedError extends kind("patchFailed") {}
/** The sandbox takes no samples of its resource usage. */
export class MetricsDisabledError extends kind("metricsDisabled") {}
/** An error without another kind. */
export class CustomError extends kind("custom") {}
/** The sandbox did not boot. */
export class BootStartError extends kind("bootStart") {}
/** A rule of a network policy is invalid. */
export class NetworkBuilderError extends kind("networkBuilder") {}
/** There is no such snapshot. */
export class SnapshotNotFoundError extends kind("snapshotNotFound") {}
/** A snapshot of that name exists. */
export class SnapshotAlreadyExistsError extends kind("snapshotAlreadyExists") {}
/** The disk of a running sandbox cannot be copied at one moment. */
export class SnapshotSandboxRunningError extends kind("snapshotSandboxRunning") {}
/** The image of the snapshot is missing. */
export class SnapshotImageMissingError extends kind("snapshotImageMissing") {}
/** The snapshot or its archive is damaged. */
export class SnapshotIntegrityError extends kind("snapshotIntegrity") {}
/** The position of a log cursor was rotated away, or is no cursor. */
export class MissedRotationError extends kind("missedRotation") {}
/** The raw agent client failed. */
export class AgentClientError extends kind("agentClient") {}
/** The program `msb` is not on this host. */
export class ProgramNotFoundError extends kind("programNotFound") {}
/** The object was detached, or its sandbox removed. */
export class UsedUpError extends kind("usedUp") {}

/** The sandbox does not run, or ended during the call. */
export class SandboxNotRunningError extends MicrosandboxError {
  /**
   * @param {string} message
   * @param {OutputDetails} [details]
   */
  constructor(message, details = {}) {
    super("sandboxNotRunning", message, details);
    /** Standard output of the command until the error. */
    this.stdout = details.stdout ?? Buffer.alloc(0);
    /** Standard error of the command until the error. */
    this.stderr = details.stderr ?? Buffer.alloc(0);
  }
}

/** The command was killed because its time was up. */
export class ExecTimeoutError extends MicrosandboxError {
  /**
   * @param {string} message
   * @param {OutputDetails & { timeoutMs?: number }} [details]
   */
  constructor(message, details = {}) {
    super("execTimeout", message, details);
    /** The time in milliseconds. */
    this.timeoutMs = details.timeoutMs ?? 0;
    /** Standard output of the command until the error. */
    this.stdout = details.stdout ?? Buffer.alloc(0);
    /** Standard error of the command until the error. */
    this.stderr = details.stderr ?? Buffer.alloc(0);
  }
}

/** The command was not started. */
export class ExecFailedError extends MicrosandboxError {
  /**
   * @param {string} message
   * @param {ErrorDetails & { kind?: string, errno?: number | undefined, stage?: string }} [details]
   */
  constructor(message, details = {}) {
    super("execFailed", message, details);
    /**
     * Kind of the failure: `not_found`, `permission_denied`, `not_executable`, `bad_cwd`,
     * `bad_args`, `user_not_found`, `resource_limit`, `paused` or `other`.
     */
    this.kind = details.kind ?? "other";
    /** Error number of the guest's kernel, if the kind has one. */
    this.errno = details.errno;
    /** Stage of the start that failed. */
    this.stage = details.stage ?? "start";
  }
}

/** The installed programs, or the release in the sandbox, do not serve the call. */
export class UnsupportedOperationError extends MicrosandboxError {
  /**
   * @param {string} message
   * @param {ErrorDetails & { fields?: readonly string[] }} [details]
   */
  constructor(message, details = {}) {
    super("unsupportedOperation", message, details);
    /** Names of the unsupported operations, arguments or fields of the configuration. */
    this.fields = details.fields ?? [];
  }
}

/**
 * Returns the error for arguments or calls that msb does not serve.
 *
 * @param {string[]} fields
 */
export function unsupported(...fields) {
  return new UnsupportedOperationError(`not supported: ${fields.join(", ")}`, { fields });
}
