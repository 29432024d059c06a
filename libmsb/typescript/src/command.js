/** Running commands in a sandbox: streams, input, time limits. */

import {
  ExecFailedError,
  ExecTimeoutError,
  MicrosandboxError,
  ProtocolError,
  SandboxNotRunningError,
  unsupported,
} from "./errors.js";
import { Stdin } from "./exec-options.js";
import { STDERR } from "./frames.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./types.js").Bytes} Bytes */
/** @typedef {import("./types.js").ExitStatus} ExitStatus */
/** @typedef {import("./client.js").Client} Client */
/** @typedef {import("./wire.js").Call} Call */
/** @typedef {import("./exec-options.js").Command} Command */
/** @typedef {{ kind: string, errno: number | undefined, message: string }} ExecFailure */
/**
 * An event of a command.
 *
 * @typedef {{ kind: "started", pid: number }
 *   | { kind: "stdout", data: Buffer }
 *   | { kind: "stderr", data: Buffer }
 *   | { kind: "exited", code: number }
 *   | { kind: "failed", failure: ExecFailure }
 *   | { kind: "stdin_error", error: Error }} ExecEvent
 */

/** Time for a killed command to end, before its call is given up, in milliseconds. */
const KILL_MS = 2000;
const SIGKILL = 9;
/** @type {Record<string, number>} */
const ERRNO = { not_found: 2, permission_denied: 13, not_executable: 8, resource_limit: 11 };
/** @type {Record<string, string>} */
const STAGES = { bad_cwd: "cwd", user_not_found: "user", bad_args: "args" };

/** Result of a command that has ended. */
export class ExecOutput {
  /**
   * @param {number} code
   * @param {Buffer} stdout
   * @param {Buffer} stderr
   * @param {boolean} truncated
   * @param {boolean} oomKilled
   */
  constructor(code, stdout, stderr, truncated = false, oomKilled = false) {
    /** Exit code; 128 + n if signal n killed the command. */
    this.code = code;
    this.out = stdout;
    this.err = stderr;
    /** True if a stream was longer than `maxOutputBytes`. */
    this.truncated = truncated;
    /** True if the guest's kernel killed the command for lack of memory. */
    this.oomKilled = oomKilled;
  }

  /** True if the exit code is 0. */
  get success() {
    return this.code === 0;
  }

  /** Exit status. @returns {ExitStatus} */
  get status() {
    return { code: this.code, success: this.success };
  }

  /** Returns standard output as text; bytes that are not UTF-8 are replaced. */
  stdout() {
    return this.out.toString();
  }

  /** Returns standard error as text; bytes that are not UTF-8 are replaced. */
  stderr() {
    return this.err.toString();
  }

  /** Returns standard output. */
  stdoutBytes() {
    return this.out;
  }

  /** Returns standard error. */
  stderrBytes() {
    return this.err;
  }
}

/** Standard input of a running command. */
export class ExecSink {
  /** @param {Call} call */
  constructor(call) {
    this.call = call;
    this.closed = false;
  }

  /** Writes bytes, or text as UTF-8. Waits while the command does not read. @param {Bytes} data */
  async write(data) {
    if (this.closed) throw new TypeError("the input is closed");
    await this.call.write(types.buffer(data));
  }

  /** Ends the input. */
  async close() {
    if (this.closed) return;
    this.closed = true;
    this.call.closeStdin();
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }
}

/** Output up to a number of bytes. */
class Capture {
  /** @param {number} most */
  constructor(most) {
    this.left = most;
    /** @type {Buffer[]} */
    this.pieces = [];
    this.truncated = false;
  }

  /** @param {Buffer} data */
  add(data) {
    if (data.length > this.left) this.truncated = true;
    const kept = data.length > this.left ? data.subarray(0, this.left) : data;
    if (kept.length > 0) this.pieces.push(kept);
    this.left -= kept.length;
  }

  value() {
    return Buffer.concat(this.pieces);
  }
}

/**
 * A running command.
 *
 * Iterate over it, or call `recv`, for its events; `wait` and `collect` wait for its end. With
 * `await using`, the command is killed at the end of the block if it still runs.
 */
export class ExecHandle {
  /**
   * @param {Call} call
   * @param {Command} command
   */
  constructor(call, command) {
    this.call = call;
    this.command = command;
    /** Process ID in the guest. */
    this.pid = 0;
    /** @type {ExecEvent[]} */
    this.events = [];
    /** @type {ExitStatus | null} */
    this.status = null;
    /** @type {Error | null} */
    this.failed = null;
    this.oomKilled = false;
    this.timedOut = false;
    /** @type {ExecSink | null} */
    this.sink = null;
    /** @type {NodeJS.Timeout | undefined} */
    this.timer = undefined;
    this.abort = () => this.abandon();
  }

  /**
   * Starts a command and waits until it runs.
   *
   * @param {Client} client
   * @param {Command} command
   */
  static async start(client, command) {
    command.signal?.throwIfAborted();
    const call = await client.call(command.request(), command.needs());
    const handle = new ExecHandle(call, command);
    command.signal?.addEventListener("abort", handle.abort);
    if (command.signal?.aborted) handle.abandon();
    await handle.begin();
    return handle;
  }

  /** @private */
  async begin() {
    const { timeout, options } = this.command;
    if (timeout !== undefined) this.timer = setTimeout(() => this.timeOut(), timeout);
    const item = await this.next();
    if (item.bytes !== undefined) throw new ProtocolError("output before the command's start");
    if (item.message.type === "failed") {
      this.finish();
      throw notStarted(item.message, this.command.cmd);
    }
    this.pid = Number(item.message.pid ?? 0);
    this.events.push({ kind: "started", pid: this.pid });
    if (item.last) this.end(item.message);
    else if (options.stdin instanceof Stdin && options.stdin.kind === "pipe") {
      this.sink = new ExecSink(this.call);
    } else if (this.command.wantsStdin) {
      this.pump(options.stdin).catch((error) => {
        this.events.push({ kind: "stdin_error", error });
        this.call.readers.wake();
      });
    }
  }

  /** Identifier of the call on its connection. */
  get id() {
    return String(this.call.stream);
  }

  /** Returns the input of a command with `Stdin.pipe()`, once; then `null`. */
  takeStdin() {
    const { sink } = this;
    this.sink = null;
    return sink;
  }

  /** Returns the next event; `null` after the last one. @returns {Promise<ExecEvent | null>} */
  async recv() {
    for (;;) {
      const event = this.events.shift();
      if (event) return event;
      if (this.status) return null;
      const item = await this.next();
      if (item.bytes !== undefined) {
        const { channel, bytes: data } = item;
        if (data.length > 0) return { kind: channel === STDERR ? "stderr" : "stdout", data };
      } else if (item.last) {
        this.end(item.message);
      }
    }
  }

  /** Waits for the end. Output is dropped. */
  async wait() {
    while (!this.status) {
      const item = await this.next();
      if (item.bytes === undefined && item.last) this.end(item.message);
    }
    if (this.failed) throw this.failed;
    return this.status;
  }

  /** Waits for the end and returns the output. */
  async collect() {
    const stdout = new Capture(this.command.maxOutputBytes);
    const stderr = new Capture(this.command.maxOutputBytes);
    try {
      while (!this.status) {
        const item = await this.next();
        if (item.bytes !== undefined) {
          (item.channel === STDERR ? stderr : stdout).add(item.bytes);
        } else if (item.last) {
          this.end(item.message);
        }
      }
    } catch (error) {
      if (error instanceof ExecTimeoutError || error instanceof SandboxNotRunningError) {
        error.stdout = stdout.value();
        error.stderr = stderr.value();
      }
      throw error;
    }
    if (this.failed) throw this.failed;
    const isCut = stdout.truncated || stderr.truncated;
    return new ExecOutput(
      this.status.code, stdout.value(), stderr.value(), isCut, this.oomKilled,
    );
  }

  /**
   * Sends a signal, by its number on Linux, to the process group of the command.
   *
   * @param {number} number
   */
  async signal(number) {
    this.call.control({ type: "signal", signal: types.whole("signal", number, 1) });
  }

  /** Kills the process group of the command. `wait` waits for its end. */
  async kill() {
    await this.signal(SIGKILL);
  }

  /**
   * Sets the size of the command's terminal.
   *
   * @param {number} rows
   * @param {number} cols
   */
  async resize(rows, cols) {
    const size = { rows: types.whole("rows", rows, 1), cols: types.whole("cols", cols, 1) };
    this.call.control({ type: "resize", ...size });
  }

  /** Kills the command if it still runs, and waits until it has ended. */
  async close() {
    this.finish();
    if (this.call.ended) return;
    this.call.abandon();
    await this.call.waitEnded(KILL_MS);
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (let event; (event = await this.recv());) yield event;
    } finally {
      await this.close();
    }
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }

  /** @private */
  async next() {
    try {
      const item = this.call.receiveNow() ?? (await this.call.receive());
      if (this.timedOut && item.bytes === undefined && item.last) {
        this.end(item.message);
        throw this.timeoutError();
      }
      return item;
    } catch (error) {
      this.finish();
      if (this.command.signal?.aborted) throw this.command.signal.reason;
      throw this.timedOut ? this.timeoutError() : error;
    }
  }

  /** @private @param {Json} message */
  end(message) {
    if (message.type === "failed") {
      const { kind, message: text } = message;
      this.failed = notStarted(message, this.command.cmd);
      this.events.push({ kind: "failed", failure: { kind, errno: ERRNO[kind], message: text } });
    }
    const code = message.type === "failed" ? 127 : exitCode(message);
    this.status = { code, success: code === 0 };
    this.oomKilled = Boolean(message.oom_killed);
    if (!this.failed) this.events.push({ kind: "exited", code });
    this.finish();
  }

  /** @private */
  finish() {
    clearTimeout(this.timer);
    this.command.signal?.removeEventListener("abort", this.abort);
  }

  /** Kills the command. Its last event, or the end of the call, throws the error. @private */
  timeOut() {
    this.timedOut = true;
    if (this.call.ended) return;
    this.call.control({ type: "signal", signal: SIGKILL });
    // A command that does not end holds no caller.
    this.timer = setTimeout(() => this.call.finish(), KILL_MS);
  }

  /** @private */
  timeoutError() {
    const timeoutMs = this.command.timeout ?? 0;
    return new ExecTimeoutError(`'${this.command.cmd}' was killed after ${timeoutMs} ms`, {
      timeoutMs,
    });
  }

  /** Abandons the call for a cancellation. The caller waits for its end. @private */
  abandon() {
    clearTimeout(this.timer);
    this.call.abandon();
    this.timer = setTimeout(() => this.call.finish(), KILL_MS);
  }

  /** Writes an input to the command and ends it. @private @param {unknown} source */
  async pump(source) {
    try {
      for await (const data of chunks(source)) {
        if (this.call.ended) break;
        await this.call.write(types.buffer(data));
      }
    } finally {
      this.call.closeStdin();
    }
  }
}

/**
 * Iterates over the pieces of an input.
 *
 * @param {any} source
 * @returns {AsyncIterable<Bytes> | Iterable<Bytes>}
 */
function chunks(source) {
  const data = source instanceof Stdin ? source.data : source;
  if (data === undefined) return [];
  if (typeof data === "string" || data instanceof Uint8Array) return [data];
  if (data[Symbol.asyncIterator] || data[Symbol.iterator]) return data;
  throw new TypeError("stdin must be text, bytes, an iterable of them, or Stdin");
}

/**
 * Runs a command to its end. A cancellation kills it in the guest.
 *
 * @param {Client} client
 * @param {Command} command
 */
export async function run(client, command) {
  return (await ExecHandle.start(client, command)).collect();
}

/** Returns the exit code of a last event, as shells have it. @param {Json} message */
export function exitCode(message) {
  return message.signal == null ? Number(message.code ?? 0) : 128 + Number(message.signal);
}

/**
 * Returns the error for a command that was not started.
 *
 * @param {Json} message
 * @param {string} cmd
 * @returns {MicrosandboxError}
 */
export function notStarted(message, cmd) {
  const kind = String(message.kind ?? "other");
  const why = String(message.message ?? "");
  if (kind === "unsupported_operation") return unsupported(why || "exec");
  return new ExecFailedError(`cannot run '${cmd}': ${why}`, {
    kind,
    errno: ERRNO[kind],
    stage: STAGES[kind] ?? "start",
  });
}
