/**
 * Jobs: commands that continue without a client.
 *
 * A job survives this process. Another one finds it by `Sandbox.jobs`, reads what it printed
 * meanwhile from the log, and waits for it.
 */

import { ExecSink, exitCode, notStarted } from "./command.js";
import { MicrosandboxError, RuntimeError } from "./errors.js";
import { LogStream, readLogs } from "./logs.js";
import { date } from "./times.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./types.js").ExitStatus} ExitStatus */
/** @typedef {import("./client.js").Client} Client */
/** @typedef {import("./tool.js").Host} Host */
/** @typedef {import("./exec-options.js").Command} Command */
/**
 * State of a job. `status` is `running`, `exited`, or `lost` if the sandbox ended before it.
 *
 * @typedef {{
 *   id: string, status: string, command: string[], pid: number | null, exitCode: number | null,
 *   timedOut: boolean, oomKilled: boolean, startedAt: Date | null, endedAt: Date | null,
 * }} JobInfo
 */

/** Returns the state of a JSON object. @param {Json} fields @returns {JobInfo} */
export function jobInfo(fields) {
  return {
    id: String(fields.id),
    status: String(fields.status ?? "").toLowerCase(),
    command: (fields.command ?? []).map(String),
    pid: fields.pid ?? null,
    exitCode: fields.exit_code ?? null,
    timedOut: Boolean(fields.timed_out),
    oomKilled: Boolean(fields.oom_killed),
    startedAt: date(fields.started_at),
    endedAt: date(fields.ended_at),
  };
}

/** A command that continues without a client. */
export class Job {
  /**
   * @param {Client} client
   * @param {Host} host
   * @param {string} name
   * @param {string} id
   */
  constructor(client, host, name, id) {
    this.client = client;
    this.host = host;
    this.name = name;
    /** Identifier. */
    this.id = id;
  }

  /**
   * Starts a job.
   *
   * @param {Client} client
   * @param {Host} host
   * @param {string} name
   * @param {Command} command
   */
  static async start(client, host, name, command) {
    const { log: _, ...request } = command.request();
    if (command.timeout !== undefined) request.timeout_ms = Math.max(1, Math.ceil(command.timeout));
    const needs = ["jobs", ...command.needs()];
    const answer = await client.ask({ ...request, job: true }, needs, command.signal);
    if (answer.type === "failed") throw notStarted(answer, command.cmd);
    return new Job(client, host, name, String(answer.job));
  }

  /** Returns the state. */
  async info() {
    /** @type {Json[]} */
    const rows = await this.host.json(["jobs", "--format=json", this.name, this.id]);
    return jobInfo(rows[0]);
  }

  /** Waits for the end. Throws if the sandbox ended before the job. @returns {Promise<ExitStatus>} */
  async wait() {
    const code = await this.attachToEnd();
    if (code === null) throw new RuntimeError(`the sandbox ended before the job '${this.id}'`);
    return { code, success: code === 0 };
  }

  /** @private */
  async attachToEnd() {
    let call;
    try {
      call = await this.client.call({ op: "attach", job: this.id }, ["jobs"]);
    } catch (error) {
      if (!(error instanceof MicrosandboxError)) throw error;
      // The sandbox does not run: its record of the job stays.
      return (await this.info()).exitCode;
    }
    try {
      for (;;) {
        const item = await call.receive();
        if (item.bytes !== undefined || !item.last) continue;
        const recorded = (await this.info()).exitCode;
        // The record is written after the event.
        return recorded === null && item.message.type === "exited"
          ? exitCode(item.message)
          : recorded;
      }
    } finally {
      call.abandon();
    }
  }

  /** Sends a signal, by its number on Linux, to the process group of the job. @param {number} signal */
  async signal(signal) {
    const number = types.whole("signal", signal, 1);
    const request = { op: "signal", job: this.id, signal: number };
    const answer = await this.client.ask(request, ["jobs"]);
    if (answer.type === "failed") throw notStarted(answer, `job ${this.id}`);
  }

  /** Kills the process group of the job. */
  async kill() {
    await this.signal(9);
  }

  /** Returns the input of a job that was started with `Stdin.pipe()`. One client may write. */
  async attachStdin() {
    const request = { op: "attach", job: this.id, stdin: true };
    return new ExecSink(await this.client.call(request, ["jobs"]));
  }

  /** Returns what the job has printed. @param {import("./logs.js").LogOptions} [options] */
  async logs(options) {
    return readLogs(this.host, this.name, options, this.id);
  }

  /**
   * Opens a stream of what the job prints, from the start or after a cursor.
   *
   * @param {import("./logs.js").LogStreamOptions} [options]
   */
  async logStream(options = {}) {
    return LogStream.open(this.host, this.name, { follow: true, ...options }, this.id);
  }
}
