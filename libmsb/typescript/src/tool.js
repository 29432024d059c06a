/**
 * Programs of msb: where they are, how they are run, and their errors.
 *
 * A program prints data on standard output and one JSON object per line on standard error. A
 * configuration goes through standard input, never through arguments.
 */

import { spawn } from "node:child_process";
import { accessSync, constants, statSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join, resolve } from "node:path";

import * as errors from "./errors.js";

/** Time for a program to end after SIGTERM, when its call is cancelled, in milliseconds. */
const STOP_MS = 2000;
/** Longest JSON line that is read. */
const LINE_BYTES_MAX = 64 << 20;

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("node:child_process").ChildProcess} ChildProcess */
/**
 * @typedef {{
 *   stdin?: Buffer | undefined,
 *   bond?: boolean | undefined,
 *   more?: Record<string, string> | undefined,
 *   signal?: AbortSignal | undefined,
 * }} RunOptions
 */

/** @type {Record<string, new (message: string, details?: errors.ErrorDetails) => Error>} */
const ERRORS = {
  SandboxNotFound: errors.SandboxNotFoundError,
  SandboxAlreadyExists: errors.SandboxAlreadyExistsError,
  SandboxStillRunning: errors.SandboxStillRunningError,
  SandboxNotRunning: errors.SandboxNotRunningError,
  ImageNotFound: errors.ImageNotFoundError,
  ImageInUse: errors.ImageInUseError,
  BootFailed: errors.BootStartError,
  MetricsDisabled: errors.MetricsDisabledError,
  Usage: errors.InvalidConfigError,
  InvalidConfig: errors.InvalidConfigError,
  VolumeNotFound: errors.VolumeNotFoundError,
  VolumeAlreadyExists: errors.VolumeAlreadyExistsError,
  VolumeInUse: errors.VolumeInUseError,
  SnapshotNotFound: errors.SnapshotNotFoundError,
  SnapshotAlreadyExists: errors.SnapshotAlreadyExistsError,
  SnapshotSandboxRunning: errors.SnapshotSandboxRunningError,
  SnapshotImageMissing: errors.SnapshotImageMissingError,
  SnapshotIntegrity: errors.SnapshotIntegrityError,
  PullFailed: errors.ImagePullFailedError,
};

/** @type {string | null} */
let chosen = null;

/** Sets the path of the program `msb`; `null` searches it again. @param {string | null} path */
export function setProgram(path) {
  chosen = path;
}

/** Returns the path of the program `msb`: the one that was set, `MSB_PATH`, or of `PATH`. */
export function findProgram() {
  const named = chosen ?? (process.env.MSB_PATH || null);
  const places = named?.includes("/")
    ? [named]
    : (process.env.PATH ?? "").split(delimiter).map((place) => join(place, named ?? "msb"));
  for (const place of places) {
    try {
      accessSync(place, constants.X_OK);
      if (statSync(place).isFile()) return resolve(place);
    } catch {
      continue;
    }
  }
  const where = named === null ? "PATH" : `'${named}'`;
  throw new errors.ProgramNotFoundError(`cannot find the program 'msb' in ${where}`, {
    hint: "install msb, or set MSB_PATH to its path",
  });
}

/** The programs and the state directory that a call uses. */
export class Host {
  /**
   * @param {string} program
   * @param {string | null} home
   * @param {string | null} runtime
   */
  constructor(program, home, runtime) {
    this.program = program;
    this.home = home;
    this.runtime = runtime;
  }

  /** Returns what the environment names now. */
  static current() {
    const { MSB_HOME, XDG_RUNTIME_DIR } = process.env;
    return new Host(findProgram(), MSB_HOME || null, XDG_RUNTIME_DIR || null);
  }

  /** Returns the environment of a program. @param {Record<string, string>} [more] */
  environment(more = {}) {
    /** @type {Record<string, string | undefined>} */
    const environment = { ...process.env, MSB_ERRORS: "json", ...more };
    delete environment.MSB_HOME;
    delete environment.XDG_RUNTIME_DIR;
    if (this.home !== null) environment.MSB_HOME = this.home;
    if (this.runtime !== null) environment.XDG_RUNTIME_DIR = this.runtime;
    return environment;
  }

  /** Returns the path of a sandbox's socket, as in msb-state(5). @param {string} name */
  socket(name) {
    if (this.home === null && this.runtime !== null) {
      try {
        if (statSync(this.runtime).uid === process.getuid?.()) {
          return join(this.runtime, "msb", name, "agent.sock");
        }
      } catch {
        // Without a run-time directory, the state directory has the sockets.
      }
    }
    return join(this.home ?? join(homedir(), ".msb"), "run", name, "agent.sock");
  }

  /**
   * Runs `msb` with these arguments to its end. Returns its standard output.
   *
   * @param {string[]} args
   * @param {RunOptions} [options]
   */
  async run(args, options = {}) {
    return (await this.runBonded(args, options)).output;
  }

  /**
   * Runs `msb` to its end. Returns its standard output, and the socket at its descriptor 3.
   *
   * @param {string[]} args
   * @param {RunOptions} [options]
   */
  async runBonded(args, options = {}) {
    const child = this.start(args, options);
    const socket = /** @type {import("node:net").Socket | undefined} */ (child.stdio[3]);
    const output = collect(child.stdout);
    const notes = collect(child.stderr);
    if (options.stdin !== undefined && child.stdin) {
      // A program that ends early says why on its standard error.
      child.stdin.on("error", () => {});
      child.stdin.end(options.stdin);
    }
    try {
      await ended(child, options.signal);
      const code = child.exitCode ?? `signal ${child.signalCode}`;
      const said = await notes;
      report(said);
      if (code !== 0) throw failure(args, said, code);
      return { output: await output, socket };
    } catch (error) {
      socket?.destroy();
      throw error;
    }
  }

  /**
   * Runs `msb` and returns the JSON document that it prints.
   *
   * @param {string[]} args
   * @param {RunOptions} [options]
   * @returns {Promise<Json>}
   */
  async json(args, options = {}) {
    return parse(args, await this.run(args, options));
  }

  /**
   * Starts `msb` with these arguments.
   *
   * @param {string[]} args
   * @param {RunOptions} [options]
   */
  start(args, options = {}) {
    options.signal?.throwIfAborted();
    return spawn(this.program, args, {
      stdio: [
        options.stdin === undefined ? "ignore" : "pipe",
        "pipe",
        "pipe",
        ...(options.bond ? /** @type {const} */ (["pipe"]) : []),
      ],
      env: this.environment(options.more),
      // A key such as Ctrl-C reaches the caller, which ends the program itself.
      detached: true,
    });
  }
}

/**
 * Collects what a stream has.
 *
 * @param {import("node:stream").Readable | null} stream
 * @returns {Promise<Buffer>}
 */
function collect(stream) {
  return new Promise((resolve) => {
    /** @type {Buffer[]} */
    const pieces = [];
    if (!stream) return resolve(Buffer.alloc(0));
    stream.on("data", (data) => pieces.push(data));
    stream.on("error", () => {});
    stream.on("close", () => resolve(Buffer.concat(pieces)));
  });
}

/**
 * Waits for the end of a program. A cancellation ends it: by SIGTERM, then by SIGKILL.
 *
 * @param {ChildProcess} child
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
function ended(child, signal) {
  return new Promise((resolve, reject) => {
    /** @type {NodeJS.Timeout | undefined} */
    let timer;
    const abort = () => {
      child.kill("SIGTERM");
      timer = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
    };
    const leave = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
    };
    signal?.addEventListener("abort", abort);
    child.once("error", (error) => {
      leave();
      reject(notStarted(child.spawnfile, error));
    });
    child.once("exit", () => {
      leave();
      if (signal?.aborted) reject(signal.reason);
      else resolve();
    });
  });
}

/**
 * Returns the error for a program that cannot be started.
 *
 * @param {string} program
 * @param {NodeJS.ErrnoException} error
 */
function notStarted(program, error) {
  return error.code === "ENOENT"
    ? new errors.ProgramNotFoundError(`cannot find the program '${program}'`)
    : new errors.IoError(`cannot start '${program}': ${error.message}`, { cause: error });
}

/** JSON lines of a running program. */
export class LineReader {
  /**
   * @param {Host} host
   * @param {string[]} args
   * @param {RunOptions} [options]
   */
  constructor(host, args, options = {}) {
    this.args = args;
    this.child = host.start(args, options);
    this.signal = options.signal;
    this.notes = collect(this.child.stderr);
    this.closed = false;
    if (options.stdin !== undefined && this.child.stdin) {
      this.child.stdin.on("error", () => {});
      this.child.stdin.end(options.stdin);
    }
    this.ended = ended(this.child, options.signal);
    this.ended.catch(() => {});
    this.lines = this.read();
  }

  /** Returns the next object; `null` at the end of a program that succeeded. */
  async next() {
    const { value, done } = await this.lines.next();
    return done ? null : /** @type {Json} */ (value);
  }

  /** @returns {AsyncGenerator<Json, void, undefined>} */
  async *read() {
    let rest = Buffer.alloc(0);
    for await (const data of this.child.stdout ?? []) {
      rest = rest.length ? Buffer.concat([rest, data]) : data;
      let at = 0;
      for (let end; (end = rest.indexOf(10, at)) >= 0; at = end + 1) {
        if (end > at) yield this.object(rest.subarray(at, end));
      }
      rest = rest.subarray(at);
      if (rest.length > LINE_BYTES_MAX) {
        throw new errors.ProtocolError("a line of the program is too long");
      }
    }
    if (rest.length) yield this.object(rest);
    await this.ended;
    const notes = await this.notes;
    report(notes);
    const code = this.child.exitCode ?? `signal ${this.child.signalCode}`;
    if (code !== 0 && !this.closed) throw failure(this.args, notes, code);
  }

  /** @param {Buffer} line */
  object(line) {
    const value = parse(this.args, line);
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw new errors.ProtocolError("the program printed no JSON object");
    }
    return value;
  }

  /** Ends the program. */
  async close() {
    this.closed = true;
    if (this.child.exitCode === null && this.child.signalCode === null) {
      this.child.kill("SIGTERM");
      const timer = setTimeout(() => this.child.kill("SIGKILL"), STOP_MS);
      await this.ended.catch(() => {});
      clearTimeout(timer);
    }
    this.child.stdout?.destroy();
  }
}

/**
 * Parses a JSON document of a program.
 *
 * @param {string[]} args
 * @param {Buffer} output
 * @returns {Json}
 */
export function parse(args, output) {
  try {
    return JSON.parse(output.toString());
  } catch (error) {
    const name = ["msb", ...args.slice(0, 2)].join(" ");
    throw new errors.ProtocolError(`'${name}' printed no JSON`, { cause: error });
  }
}

/**
 * Parses JSON documents that follow each other.
 *
 * @param {string[]} args
 * @param {Buffer} output
 * @returns {Json[]}
 */
export function documents(args, output) {
  const found = [];
  let start = 0;
  let depth = 0;
  // A byte of UTF-8 is a character of Latin-1, so that positions are those of the bytes.
  const tokens = /"(?:\\.|[^"\\])*"|[{}[\]]/g;
  for (const { 0: token, index } of output.toString("latin1").matchAll(tokens)) {
    if (token === "{" || token === "[") depth += 1;
    else if (token === "}" || token === "]") depth -= 1;
    else continue;
    if (depth === 0) {
      found.push(parse(args, output.subarray(start, index + 1)));
      start = index + 1;
    }
  }
  if (depth !== 0 || output.subarray(start).toString().trim()) parse(args, output.subarray(start));
  return found.flat();
}

/** Reports the warnings of a program. @param {Buffer} notes */
function report(notes) {
  for (const line of objects(notes)) {
    if (line.warning !== undefined) {
      process.emitWarning(`${line.tool ?? "msb"}: ${line.warning}`, "MicrosandboxWarning");
    }
  }
}

/**
 * Returns the error for a program that failed: its last error line.
 *
 * @param {string[]} args
 * @param {Buffer} notes
 * @param {number | string} code
 */
export function failure(args, notes, code) {
  const lines = objects(notes);
  const last = lines.filter((line) => line.error !== undefined).at(-1);
  if (!last) {
    const said = notes.toString().trim().slice(-2000);
    const how = typeof code === "number" ? `failed with exit code ${code}` : `was ended by ${code}`;
    return new errors.RuntimeError(`'msb ${args[0] ?? ""}' ${how}${said ? `: ${said}` : ""}`);
  }
  const message = String(last.error);
  const hint = lines.map((line) => line.hint).filter(Boolean).at(-1);
  if (last.code === "UnsupportedOperation") {
    return new errors.UnsupportedOperationError(message, { hint, fields: fieldsOf(message) });
  }
  const isPull = last.tool === "msb-image" && args[0] !== "image";
  const kind = ERRORS[String(last.code)];
  if (kind) return new kind(message, { hint });
  return isPull
    ? new errors.ImagePullFailedError(message, { hint })
    : new errors.RuntimeError(message, { hint });
}

/**
 * Returns the names in `… unsupported fields: NAME (reason), NAME (reason)`.
 *
 * @param {string} message
 */
export function fieldsOf(message) {
  const listed = message.split("unsupported fields: ")[1];
  if (listed === undefined) return [];
  let depth = 0;
  let outside = "";
  for (const letter of listed) {
    if (letter === "(") depth += 1;
    if (depth === 0) outside += letter;
    if (letter === ")") depth -= 1;
  }
  return outside.split(",").map((name) => name.trim().split(/\s/)[0] ?? "").filter(Boolean);
}

/** @param {Buffer} notes @returns {Json[]} */
function objects(notes) {
  return notes.toString().split("\n").flatMap((line) => {
    try {
      const value = JSON.parse(line);
      return typeof value === "object" && value !== null ? [value] : [];
    } catch {
      return [];
    }
  });
}
