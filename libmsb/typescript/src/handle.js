/** Handles of sandboxes: state, configuration, and what needs no connection. */

import { start } from "./creation.js";
import { MicrosandboxError, SandboxNotRunningError } from "./errors.js";
import { LogStream, readLogs } from "./logs.js";
import { MetricsStream, readMetrics } from "./metrics.js";
import { Sandbox } from "./sandbox.js";
import { Snapshot } from "./snapshot.js";
import { date } from "./times.js";
import { Host, LineReader } from "./tool.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./types.js").CallOptions} CallOptions */
/** @typedef {import("./types.js").SandboxStatus} SandboxStatus */
/** @typedef {import("./logs.js").LogOptions} LogOptions */
/** @typedef {import("./logs.js").LogStreamOptions} LogStreamOptions */
/**
 * The end of a sandbox. `exitCode` and `signal` are those of the main command, if it ended; `clean`
 * is true if the guest's file systems were flushed.
 *
 * @typedef {{
 *   name: string, status: SandboxStatus, exitCode: number | null, signal: number | null,
 *   reason: string, clean: boolean,
 * }} SandboxStopResult
 */

/** Time for a sandbox to stop before it is killed, in milliseconds. */
export const STOP_MS = 10_000;
/** Names in the arguments of one program. */
const NAMES_AT_ONCE = 500;

/** Returns the status of a word of the programs. Broken files count as a crash. @param {unknown} word */
export function statusOf(word) {
  const lower = String(word).toLowerCase();
  return types.SandboxStatuses.find((status) => status === lower) ?? "crashed";
}

/**
 * Stops a sandbox, and kills it when the time is up. 0 kills it at once.
 *
 * @param {Host} host
 * @param {string} name
 * @param {number} ms
 * @param {CallOptions} [options]
 */
export async function stop(host, name, ms, options) {
  const limit = types.time("timeout", ms) === 0
    ? "--force"
    : `--timeout=${types.duration("timeout", ms)}`;
  try {
    await host.run(["stop", "--quiet", limit, "--", name], options);
  } catch (error) {
    // It has ended already, which is what was asked for.
    if (!(error instanceof SandboxNotRunningError)) throw error;
  }
}

/**
 * Waits for the end of a sandbox.
 *
 * @param {Host} host
 * @param {string} name
 * @param {CallOptions} [options]
 * @returns {Promise<SandboxStopResult>}
 */
export async function waitUntilStopped(host, name, options) {
  const line = await host.json(["wait", "--format=json", "--", name], options);
  const code = typeof line.exit_code === "number" ? line.exit_code : null;
  return {
    name,
    status: statusOf(line.status),
    exitCode: code,
    signal: code !== null && code > 128 && code < 193 ? code - 128 : null,
    reason: String(line.reason ?? ""),
    clean: Boolean(line.clean),
  };
}

/** A sandbox by its name, with its state at one moment. `refresh` reads it again. */
export class SandboxHandle {
  /**
   * @param {Host} host
   * @param {Json} document
   */
  constructor(host, document) {
    this.host = host;
    this.document = document;
  }

  /** Returns the handle of a sandbox. @param {string} name @param {CallOptions} [options] */
  static async find(name, options) {
    const host = Host.current();
    const args = ["inspect", "--format=json", "--as=microsandbox", "--", types.text("name", name)];
    return new SandboxHandle(host, await host.json(args, options));
  }

  /**
   * Returns the handles of all sandboxes with these labels, sorted by name.
   *
   * @param {Record<string, string>} [labels]
   * @param {CallOptions} [options]
   */
  static async all(labels = {}, options = {}) {
    const host = Host.current();
    const filters = Object.entries(labels).map(([key, value]) => `--label=${key}=${value}`);
    /** @type {Json[]} */
    const rows = await host.json(["ls", "--format=json", ...filters], options);
    const names = rows.filter((row) => !row.error).map((row) => String(row.name));
    /** @type {Map<string, Json>} */
    const found = new Map();
    for (let at = 0; at < names.length; at += NAMES_AT_ONCE) {
      for (const document of await inspect(host, names.slice(at, at + NAMES_AT_ONCE), options)) {
        found.set(String(document.name), document);
      }
    }
    // A sandbox that was removed meanwhile is missing; one that cannot be read has no config.
    return rows
      .map((row) => (row.error ? row : found.get(String(row.name))))
      .filter((document) => document !== undefined)
      .map((document) => new SandboxHandle(host, document));
  }

  /** Name. */
  get name() {
    return String(this.document.name);
  }

  /** State, when the handle was made. */
  get status() {
    return statusOf(this.document.status);
  }

  /** Configuration as JSON, in the form that `msb create --from-microsandbox` reads. */
  get configJson() {
    return JSON.stringify(this.document.config ?? {});
  }

  /** Time of the creation. */
  get createdAt() {
    return date(this.document.created_at);
  }

  /** Time at which the state was entered. */
  get updatedAt() {
    return date(this.document.updated_at);
  }

  /** Returns the configuration. @returns {Json} */
  config() {
    return structuredClone(this.document.config ?? {});
  }

  /** Returns a new handle with the state of now. @param {CallOptions} [options] */
  async refresh(options) {
    return SandboxHandle.find(this.name, options);
  }

  /** Returns the last sample of the resource usage. @param {CallOptions} [options] */
  async metrics(options) {
    return readMetrics(this.host, this.name, options);
  }

  /**
   * Opens a stream of samples.
   *
   * @param {number} [intervalMs]
   * @param {CallOptions} [options]
   */
  async metricsStream(intervalMs = 1000, options = {}) {
    return MetricsStream.open(this.host, this.name, intervalMs, options);
  }

  /** Returns the log. The sandbox need not run. @param {LogOptions} [options] */
  async logs(options) {
    return readLogs(this.host, this.name, options);
  }

  /** Opens a stream of the log. @param {LogStreamOptions} [options] */
  async logStream(options) {
    return LogStream.open(this.host, this.name, options);
  }

  /** Starts the sandbox. @param {CallOptions} [options] @returns {Promise<Sandbox>} */
  async start(options) {
    return start(this.name, false, options?.signal);
  }

  /**
   * Starts the sandbox, which goes on without this process.
   *
   * @param {CallOptions} [options]
   * @returns {Promise<Sandbox>}
   */
  async startDetached(options) {
    return start(this.name, true, options?.signal);
  }

  /** Returns the running sandbox, without owning it. @param {CallOptions} [options] */
  async connect(options) {
    return this.connectWithTimeout(STOP_MS, options);
  }

  /**
   * Returns the running sandbox, without owning it. Waits while it starts.
   *
   * @param {number} ms
   * @param {CallOptions} [options]
   * @returns {Promise<Sandbox>}
   */
  async connectWithTimeout(ms, options) {
    return Sandbox.connect(this.name, { timeout: ms, ...options });
  }

  /** Stops the sandbox, and kills it when the time is up. @param {CallOptions} [options] */
  async stop(options) {
    await stop(this.host, this.name, STOP_MS, options);
  }

  /**
   * Stops the sandbox, and kills it when the time is up; 0 kills it at once.
   *
   * @param {number} ms
   * @param {CallOptions} [options]
   */
  async stopWithTimeout(ms, options) {
    await stop(this.host, this.name, ms, options);
  }

  /** Kills the sandbox. @param {CallOptions} [options] */
  async kill(options) {
    await stop(this.host, this.name, 0, options);
  }

  /** Removes the sandbox. Throws SandboxStillRunningError. @param {CallOptions} [options] */
  async remove(options) {
    await this.host.run(["rm", "--", this.name], options);
  }

  /** Waits for the end of the sandbox. @param {CallOptions} [options] */
  async waitUntilStopped(options) {
    return waitUntilStopped(this.host, this.name, options);
  }

  /** Creates a snapshot of the sandbox. @param {string} name */
  async snapshot(name) {
    return Snapshot.builder(this.name).name(name).create();
  }

  /** Creates a snapshot of the sandbox in a new directory. @param {string} path */
  async snapshotTo(path) {
    return Snapshot.builder(this.name).path(path).create();
  }
}

/**
 * Returns the documents of sandboxes. One that was removed meanwhile is missing.
 *
 * @param {Host} host
 * @param {string[]} names
 * @param {CallOptions} options
 * @returns {Promise<Json[]>}
 */
async function inspect(host, names, options) {
  const args = ["inspect", "--format=json", "--as=microsandbox", "--", ...names];
  const found = [];
  try {
    if (names.length === 1) return [await host.json(args, options)];
    const reader = new LineReader(host, args, options);
    for (let line; (line = await reader.next());) found.push(line);
  } catch (error) {
    if (!(error instanceof MicrosandboxError)) throw error;
    if (found.length === 0 && names.length > 1) throw error;
  }
  return found;
}
