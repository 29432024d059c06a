/** Sandboxes. */

import { SandboxBuilder } from "./builder.js";
import { Client } from "./client.js";
import { ExecHandle, run } from "./command.js";
import { removeMade, start } from "./creation.js";
import { SandboxNotFoundError, SandboxNotRunningError, unsupported, UsedUpError } from "./errors.js";
import { AttachOptionsBuilder, Command, ExecOptionsBuilder } from "./exec-options.js";
import { SandboxFs } from "./files.js";
import { SandboxHandle, STOP_MS, stop, waitUntilStopped } from "./handle.js";
import { Job, jobInfo } from "./job.js";
import { LogStream, readLogs } from "./logs.js";
import { MetricsStream, readMetrics } from "./metrics.js";
import { SandboxSsh } from "./ssh.js";
import { attach } from "./terminal.js";
import { Host } from "./tool.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./types.js").CallOptions} CallOptions */
/** @typedef {import("./types.js").ExitStatus} ExitStatus */
/** @typedef {import("./exec-options.js").ExecOptions} ExecOptions */
/** @typedef {import("./lifetime.js").Bond} Bond */
/** @typedef {(builder: ExecOptionsBuilder) => ExecOptionsBuilder} BuildExec */

/** Time between two attempts to connect, in milliseconds. */
const CONNECT_PAUSE_MS = 50;

/**
 * A running sandbox.
 *
 * `SandboxBuilder.create`, `start` and `connect` return one. A sandbox that was created or started
 * ends when this process ends, unless it is detached. `await using` stops it at the end of the
 * block, unless it is detached or only connected.
 */
export class Sandbox {
  /**
   * @param {Host} host
   * @param {string} name
   * @param {Bond | null} bond
   * @param {{ began: number, ended: number }} [made]
   */
  constructor(host, name, bond, made) {
    /** Name. */
    this.name = name;
    this.host = host;
    this.bond = bond;
    this.made = made;
    this.usedUp = false;
    this.client = new Client(name, () => host.socket(name));
    this.files = new SandboxFs(this.client, host, name);
    /** @type {Promise<string> | null} */
    this.shellProgram = null;
  }

  // ---- making and finding

  /** Returns a builder. @param {string} name */
  static builder(name) {
    return new SandboxBuilder(name);
  }

  /** Starts a sandbox that is not running. @param {string} name @param {CallOptions} [options] */
  static async start(name, options) {
    return start(types.text("name", name), false, options?.signal);
  }

  /**
   * Starts a sandbox that is not running, and that goes on without this process.
   *
   * @param {string} name
   * @param {CallOptions} [options]
   */
  static async startDetached(name, options) {
    return start(types.text("name", name), true, options?.signal);
  }

  /**
   * Returns a running sandbox, without owning it. Waits while it starts.
   *
   * @param {string} name
   * @param {CallOptions & { timeout?: number }} [options]
   */
  static async connect(name, { timeout = 10_000, signal } = {}) {
    const deadline = Date.now() + types.time("timeout", timeout);
    const sandbox = new Sandbox(Host.current(), types.text("name", name), null);
    for (;;) {
      signal?.throwIfAborted();
      try {
        await sandbox.client.connect();
        return sandbox;
      } catch (error) {
        if (!(error instanceof SandboxNotRunningError)) throw error;
        const { status } = await SandboxHandle.find(name, { signal });
        if (status !== "starting" && status !== "running") throw error;
        if (Date.now() >= deadline) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, CONNECT_PAUSE_MS));
    }
  }

  /**
   * Returns the handle of a sandbox, running or not. Throws SandboxNotFoundError.
   *
   * @param {string} name
   * @param {CallOptions} [options]
   */
  static async get(name, options) {
    return SandboxHandle.find(name, options);
  }

  /** Returns the handles of all sandboxes, sorted by name. @param {CallOptions} [options] */
  static async list(options) {
    return SandboxHandle.all({}, options);
  }

  /**
   * Returns the handles of the sandboxes that have all these labels.
   *
   * @param {CallOptions & { labels?: Record<string, string> }} [options]
   */
  static async listWith(options = {}) {
    return SandboxHandle.all(options.labels, { signal: options.signal });
  }

  /** Removes a sandbox. Throws SandboxStillRunningError. @param {string} name */
  static async remove(name) {
    await Host.current().run(["rm", "--", types.text("name", name)]);
  }

  // ---- properties

  /** True if the sandbox ends when this process ends. */
  get ownsLifecycle() {
    return this.bond?.isHeld ?? false;
  }

  /** Returns the files of the guest. */
  fs() {
    return this.files;
  }

  /** Returns sessions as over SSH. */
  ssh() {
    return new SandboxSsh(this.ready(), this.host, this.name);
  }

  /** Returns the configuration, in camel case. @param {CallOptions} [options] */
  async config(options) {
    return camelCase((await SandboxHandle.find(this.name, options)).config());
  }

  // ---- commands

  /**
   * Runs a command to its end and returns its output.
   *
   * `timeout` is in milliseconds; then the command is killed and ExecTimeoutError has its output. A
   * signal that aborts kills the command too. `maxOutputBytes` bounds what is kept of each stream.
   *
   * @param {string} cmd
   * @param {readonly string[]} [args]
   * @param {ExecOptions} [options]
   */
  async exec(cmd, args = [], options = {}) {
    return run(this.ready(), new Command(cmd, { args, ...options }));
  }

  /**
   * Runs a command with the options of a builder.
   *
   * @param {string} cmd
   * @param {BuildExec} build
   */
  async execWith(cmd, build) {
    return run(this.ready(), new Command(cmd, build(new ExecOptionsBuilder()).build()));
  }

  /**
   * Starts a command and streams its events. A slow reader slows the command down.
   *
   * @param {string} cmd
   * @param {readonly string[]} [args]
   * @param {ExecOptions} [options]
   */
  async execStream(cmd, args = [], options = {}) {
    return ExecHandle.start(this.ready(), new Command(cmd, { args, ...options }));
  }

  /**
   * Starts a command with the options of a builder.
   *
   * @param {string} cmd
   * @param {BuildExec} build
   */
  async execStreamWith(cmd, build) {
    const options = build(new ExecOptionsBuilder()).build();
    return ExecHandle.start(this.ready(), new Command(cmd, options));
  }

  /**
   * Runs a script by the shell of the sandbox.
   *
   * @param {string} script
   * @param {ExecOptions} [options]
   */
  async shell(script, options = {}) {
    return run(this.ready(), await this.scriptCommand(script, options));
  }

  /**
   * Starts a script by the shell of the sandbox and streams its events.
   *
   * @param {string} script
   * @param {ExecOptions} [options]
   */
  async shellStream(script, options = {}) {
    return ExecHandle.start(this.ready(), await this.scriptCommand(script, options));
  }

  /**
   * Runs a command on the terminal of this process. Returns its exit code.
   *
   * @param {string} cmd
   * @param {readonly string[]} [args]
   */
  async attach(cmd, args = []) {
    return this.attachWith(cmd, (b) => b.args(args));
  }

  /**
   * Runs a command on the terminal of this process. Returns its exit code.
   *
   * @param {string} cmd
   * @param {(builder: AttachOptionsBuilder) => AttachOptionsBuilder} build
   */
  async attachWith(cmd, build) {
    this.ready();
    const options = build(new AttachOptionsBuilder()).build();
    return attach(this.host, this.name, [types.text("cmd", cmd), ...(options.args ?? [])], options);
  }

  /** Runs the shell of the sandbox on the terminal of this process. */
  async attachShell() {
    return this.attach(await this.shellOf());
  }

  /**
   * Starts a command that continues without this process. Its output is in the log.
   *
   * @param {string} cmd
   * @param {readonly string[]} [args]
   * @param {ExecOptions} [options]
   */
  async startJob(cmd, args = [], options = {}) {
    const command = new Command(cmd, { args, ...options });
    return Job.start(this.ready(), this.host, this.name, command);
  }

  /** Returns a job by its identifier. @param {string} id */
  async job(id) {
    const found = new Job(this.ready(), this.host, this.name, types.text("id", id));
    await found.info();
    return found;
  }

  /** Returns the running jobs and the last ones that have ended. */
  async jobs() {
    /** @type {Json[]} */
    const rows = await this.host.json(["jobs", "--format=json", "--", this.name]);
    return rows.map(jobInfo);
  }

  /** Asks the guest for a sign of life. Returns the time that it took. @param {CallOptions} [options] */
  async ping(options) {
    const began = performance.now();
    await this.ready().ask({ op: "ping" }, [], options?.signal);
    return performance.now() - began;
  }

  // ---- logs and metrics

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

  /**
   * Returns the log: output of the main command, of jobs and of logged commands.
   *
   * @param {import("./logs.js").LogOptions} [options]
   */
  async logs(options) {
    return readLogs(this.host, this.name, options);
  }

  /**
   * Opens a stream of the log, from the start, a time or a cursor.
   *
   * @param {import("./logs.js").LogStreamOptions} [options]
   */
  async logStream(options) {
    return LogStream.open(this.host, this.name, options);
  }

  // ---- the end

  /**
   * Stops the sandbox and waits for its end. Kills it when the time is up.
   *
   * @param {CallOptions & { timeout?: number }} [options]
   */
  async stop(options = {}) {
    await stop(this.host, this.name, options.timeout ?? STOP_MS, { signal: options.signal });
  }

  /** Asks the sandbox to stop, and does not wait. @param {{ timeout?: number }} [options] */
  async requestStop(options = {}) {
    const timeout = Math.round(types.time("timeout", options.timeout ?? STOP_MS));
    try {
      const call = await this.ready().call({ op: "stop", timeout_ms: timeout });
      call.receive().catch(() => {});
    } catch (error) {
      if (!(error instanceof SandboxNotRunningError)) throw error;
    }
  }

  /** Stops the sandbox and returns the exit status of its main command. */
  async stopAndWait() {
    await this.stop();
    return this.wait();
  }

  /**
   * Waits for the end. Returns the exit status of the main command; 0 if it had none.
   *
   * @param {CallOptions} [options]
   * @returns {Promise<ExitStatus>}
   */
  async wait(options) {
    const code = (await this.waitUntilStopped(options)).exitCode ?? 0;
    return { code, success: code === 0 };
  }

  /** Waits for the end of the sandbox. @param {CallOptions} [options] */
  async waitUntilStopped(options) {
    return waitUntilStopped(this.host, this.name, options);
  }

  /** Kills the sandbox and waits for its end. */
  async kill() {
    await stop(this.host, this.name, 0);
  }

  /** Kills the sandbox, and does not wait. */
  async requestKill() {
    await this.requestStop({ timeout: 0 });
  }

  /** Asks the sandbox to end when its commands have ended. msb does not serve this. */
  async drain() {
    throw unsupported("drain");
  }

  /** Lets the sandbox go on without this process. The object is used up. */
  async detach() {
    this.ready();
    await this.bond?.release();
    this.usedUp = true;
    this.close();
  }

  /** Removes the stopped sandbox. The object is used up. */
  async removePersisted() {
    await this.host.run(["rm", "--", this.name]);
    this.usedUp = true;
    this.close();
  }

  /**
   * Kills the sandbox, and removes it if this object created it and no other one took its place.
   */
  async discard() {
    this.close();
    try {
      if (this.made) await removeMade(this.host, this.name, this.made);
      else await this.kill();
    } catch (error) {
      if (!(error instanceof SandboxNotFoundError)) throw error;
    } finally {
      this.usedUp = true;
      this.bond?.close();
    }
  }

  /** Closes the connections. The sandbox goes on; the next call opens another one. */
  close() {
    this.files.close();
    this.client.close();
  }

  /** Stops the sandbox if it ends with this process. Errors are dropped, as upstream. */
  async [Symbol.asyncDispose]() {
    const owns = this.ownsLifecycle && !this.usedUp;
    this.close();
    if (owns) {
      await this.stop().catch(() => {});
      this.bond?.close();
    }
  }

  /** @private */
  ready() {
    if (this.usedUp) throw new UsedUpError(`the object of the sandbox '${this.name}' is used up`);
    return this.client;
  }

  /** @private @returns {Promise<string>} */
  shellOf() {
    this.shellProgram ??= SandboxHandle.find(this.name).then(
      (handle) => String(handle.config().shell ?? "/bin/sh"),
      (error) => {
        this.shellProgram = null;
        throw error;
      },
    );
    return this.shellProgram;
  }

  /** @private @param {string} script @param {ExecOptions} options */
  async scriptCommand(script, options) {
    const args = ["-c", types.text("script", script)];
    return new Command(await this.shellOf(), { ...options, args });
  }
}

/** Returns a value with the names of its fields in camel case. @param {Json} value @returns {Json} */
function camelCase(value) {
  if (Array.isArray(value)) return value.map(camelCase);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([name, field]) => [
      name.replace(/_([a-z0-9])/g, (_, letter) => letter.toUpperCase()),
      // The keys of these are the caller's.
      ["labels", "scripts"].includes(name) ? field : camelCase(field),
    ]),
  );
}
