/** Word lists, small types, and checks of arguments. */

/**
 * Freezes a list of words.
 *
 * @template {readonly string[]} const T
 * @param {T} words
 * @returns {T}
 */
const words = (words) => Object.freeze(words);

/** When to pull an image from its registry. */
export const PullPolicies = words(/** @type {const} */ (["always", "if-missing", "never"]));
/** Levels of messages. They are accepted for compatibility and have no effect. */
export const LogLevels = words(
  /** @type {const} */ (["trace", "debug", "info", "warn", "error"]),
);
/** Privileges of commands in the guest. */
export const SecurityProfiles = words(/** @type {const} */ (["default", "restricted"]));
/** States of a sandbox. `draining` does not occur. */
export const SandboxStatuses = words(
  /** @type {const} */ ([
    "created", "starting", "running", "paused", "draining", "stopping", "stopped", "crashed",
  ]),
);
/** Verdicts of a rule. */
export const Actions = words(/** @type {const} */ (["allow", "deny"]));
/** Directions of a connection. */
export const Directions = words(/** @type {const} */ (["egress", "ingress", "any"]));
/** Protocols of a rule. */
export const Protocols = words(/** @type {const} */ (["tcp", "udp", "icmpv4", "icmpv6"]));
/** Protocols of a published port. */
export const PortProtocols = words(/** @type {const} */ (["tcp", "udp"]));
/** Groups of addresses; msb-net(1) defines them. */
export const DestinationGroups = words(
  /** @type {const} */ ([
    "public", "loopback", "private", "link-local", "metadata", "multicast", "host",
  ]),
);
/** Actions when a secret is about to reach a host that may not have it. */
export const ViolationActions = words(
  /** @type {const} */ (["block", "block-and-log", "block-and-terminate", "passthrough"]),
);
/** Formats of a disk image. `vmdk` is not supported. */
export const DiskImageFormats = words(/** @type {const} */ (["qcow2", "raw", "vmdk"]));
/** Kinds of a root. */
export const RootfsSourceKinds = words(/** @type {const} */ (["oci", "bind", "disk"]));
/** Kinds of a mount. */
export const VolumeMountKinds = words(/** @type {const} */ (["bind", "named", "tmpfs", "disk"]));
/** Kinds of a change of files. */
export const PatchKinds = words(
  /** @type {const} */ ([
    "text", "file", "mkdir", "append", "copyFile", "copyDir", "symlink", "remove",
  ]),
);
/** Owners and modes of a shared directory. Only `strict` is supported. */
export const StatVirtualizations = words(/** @type {const} */ (["strict", "relaxed", "off"]));
/** Permissions on the host of files that a guest writes. Only `private` is supported. */
export const HostPermissions = words(/** @type {const} */ (["private", "mirror"]));
/** Kinds of credentials of a registry. */
export const RegistryAuthKinds = words(/** @type {const} */ (["anonymous", "basic"]));
/** Kinds of a file. */
export const FsEntryKinds = words(
  /** @type {const} */ (["file", "directory", "symlink", "other"]),
);
/** Resources that setrlimit(2) limits. */
export const RlimitResources = words(
  /** @type {const} */ ([
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile",
    "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
  ]),
);
/** Sources of log entries, and `all` for a reader. */
export const LogSources = words(
  /** @type {const} */ (["stdout", "stderr", "output", "system", "kernel", "all"]),
);

/** @typedef {typeof PullPolicies[number]} PullPolicy */
/** @typedef {typeof LogLevels[number]} LogLevel */
/** @typedef {typeof SecurityProfiles[number]} SecurityProfile */
/** @typedef {typeof SandboxStatuses[number]} SandboxStatus */
/** @typedef {typeof Actions[number]} Action */
/** @typedef {typeof Directions[number]} Direction */
/** @typedef {typeof Protocols[number]} Protocol */
/** @typedef {typeof DestinationGroups[number]} DestinationGroup */
/** @typedef {typeof ViolationActions[number]} ViolationActionWord */
/** @typedef {typeof DiskImageFormats[number]} DiskImageFormat */
/** @typedef {typeof StatVirtualizations[number]} StatVirtualization */
/** @typedef {typeof HostPermissions[number]} HostPermission */
/** @typedef {typeof FsEntryKinds[number]} FsEntryKind */
/** @typedef {typeof RlimitResources[number]} RlimitResource */
/** @typedef {typeof LogSources[number]} LogSource */
/** @typedef {{ code: number, success: boolean }} ExitStatus */
/** @typedef {string | Uint8Array} Bytes Text stands for its bytes in UTF-8. */
/** @typedef {{ signal?: AbortSignal | undefined }} CallOptions */
/** @typedef {any} Json */
/**
 * A resource limit. `null` is no limit.
 *
 * @typedef {{ resource: RlimitResource, soft: number | null, hard: number | null }} Rlimit
 */

/** A size in bytes. */
export class Size {
  /** @param {number} bytes */
  constructor(bytes) {
    this.bytes = bytes;
    Object.freeze(this);
  }

  /** The size in MiB, rounded down. */
  get mib() {
    return Math.floor(this.bytes / 1048576);
  }

  valueOf() {
    return this.bytes;
  }
}

/** Returns a size of that many KiB. @param {number} count */
export const KiB = (count) => new Size(whole("size", count) * 1024);
/** Returns a size of that many MiB. @param {number} count */
export const MiB = (count) => new Size(whole("size", count) * 1048576);
/** Returns a size of that many GiB. @param {number} count */
export const GiB = (count) => new Size(whole("size", count) * 1073741824);
/** Returns a size of that many TiB. @param {number} count */
export const TiB = (count) => new Size(whole("size", count) * 1099511627776);

/**
 * Returns a size in MiB of a number or a size.
 *
 * @param {string} name
 * @param {number | Size} value
 */
export function mebibytes(name, value) {
  return whole(name, value instanceof Size ? value.mib : value, 1);
}

/**
 * Checks a text.
 *
 * @param {string} name
 * @param {string} value
 */
export function text(name, value) {
  if (typeof value !== "string") throw new TypeError(`${name} must be a string`);
  return value;
}

/**
 * Checks a list of texts.
 *
 * @param {string} name
 * @param {Iterable<string>} values
 */
export function texts(name, values) {
  if (typeof values === "string") throw new TypeError(`${name} must be a list, not one text`);
  return [...values].map((value) => text(name, value));
}

/**
 * Checks a whole number.
 *
 * @param {string} name
 * @param {number} value
 * @param {number} [least]
 */
export function whole(name, value, least = 0) {
  if (!Number.isSafeInteger(value)) {
    throw new TypeError(`${name} must be a whole number, not ${String(value)}`);
  }
  if (value < least) throw new RangeError(`${name} must be at least ${least}, not ${value}`);
  return value;
}

/**
 * Checks a time: a finite number, not negative.
 *
 * @param {string} name
 * @param {number} value
 */
export function time(name, value) {
  if (typeof value !== "number") throw new TypeError(`${name} must be a number`);
  if (!Number.isFinite(value) || value < 0) {
    throw new RangeError(`${name} must be finite and not negative, not ${value}`);
  }
  return value;
}

/**
 * Returns a time in milliseconds as the programs take it. Rounds up to whole milliseconds.
 *
 * @param {string} name
 * @param {number} ms
 */
export function duration(name, ms) {
  return `${Math.ceil(time(name, ms))}ms`;
}

/**
 * Checks a word of a list.
 *
 * @template {string} W
 * @param {readonly W[]} list
 * @param {string} name
 * @param {string} value
 * @returns {W}
 */
export function word(list, name, value) {
  const found = list.find((word) => word === value);
  if (found === undefined) {
    throw new RangeError(`${name} must be one of ${list.join(", ")}, not ${String(value)}`);
  }
  return found;
}

/**
 * Returns the bytes of text or bytes.
 *
 * @param {Bytes} data
 * @returns {Buffer}
 */
export function buffer(data) {
  if (typeof data === "string") return Buffer.from(data);
  if (!(data instanceof Uint8Array)) throw new TypeError("data must be text or bytes");
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}

/**
 * Checks a resource limit.
 *
 * @param {string} resource
 * @param {number | null} soft
 * @param {number | null} hard
 * @returns {Rlimit}
 */
export function rlimit(resource, soft, hard) {
  for (const limit of [soft, hard]) if (limit !== null) whole("rlimit", limit);
  if (hard !== null && (soft === null || soft > hard)) {
    throw new RangeError("the soft limit is above the hard limit");
  }
  return { resource: word(RlimitResources, "rlimit", resource), soft, hard };
}
