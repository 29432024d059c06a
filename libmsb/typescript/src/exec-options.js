/** Options of a command, and its input. */

import { unix } from "./frames.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./types.js").Rlimit} Rlimit */
/** @typedef {import("./types.js").Bytes} Bytes */
/**
 * Input of a command: bytes, text (UTF-8), anything that iterates over them such as a stream, or
 * `Stdin`.
 *
 * @typedef {Stdin | Bytes | AsyncIterable<Bytes> | Iterable<Bytes>} StdinSource
 */
/**
 * Options of a command. `timeout` is in milliseconds.
 *
 * @typedef {{
 *   args?: readonly string[] | undefined,
 *   cwd?: string | undefined,
 *   user?: string | undefined,
 *   env?: Readonly<Record<string, string>> | undefined,
 *   timeout?: number | undefined,
 *   stdin?: StdinSource | undefined,
 *   tty?: boolean | { rows: number, cols: number } | undefined,
 *   rlimits?: readonly Rlimit[] | undefined,
 *   log?: boolean | undefined,
 *   maxOutputBytes?: number | undefined,
 *   signal?: AbortSignal | undefined,
 * }} ExecOptions
 */

const NAMES = [
  "args", "cwd", "user", "env", "timeout", "stdin", "tty", "rlimits", "log", "maxOutputBytes",
  "signal",
];

/** Standard input of a command. */
export class Stdin {
  /**
   * @param {"null" | "pipe" | "bytes"} kind
   * @param {Buffer} [data]
   */
  constructor(kind, data) {
    this.kind = kind;
    this.data = data;
    Object.freeze(this);
  }

  /** Returns no input, as from `/dev/null`. */
  static null() {
    return new Stdin("null");
  }

  /** Returns a pipe: `ExecHandle.takeStdin` writes to it. */
  static pipe() {
    return new Stdin("pipe");
  }

  /** Returns text or bytes as the input. @param {Bytes} data */
  static bytes(data) {
    return new Stdin("bytes", types.buffer(data));
  }
}

/** A checked command with its options. */
export class Command {
  /**
   * @param {string} cmd
   * @param {ExecOptions} [options]
   * @param {boolean} [login] True to run a command line as at a login.
   */
  constructor(cmd, options = {}, login = false) {
    this.cmd = types.text("cmd", cmd);
    const unknown = Object.keys(options).filter((name) => !NAMES.includes(name));
    if (unknown.length > 0) throw new TypeError(`unknown options: ${unknown.join(", ")}`);
    this.login = login;
    this.args = types.texts("args", options.args ?? []);
    this.options = options;
    this.log = options.log ?? true;
    this.signal = options.signal;
    this.timeout = options.timeout;
    this.maxOutputBytes = options.maxOutputBytes ?? Infinity;
    if (options.timeout !== undefined) types.time("timeout", options.timeout);
    if (options.maxOutputBytes !== undefined) {
      types.whole("maxOutputBytes", options.maxOutputBytes);
    }
    for (const [name, value] of Object.entries(options.env ?? {})) {
      if (name === "" || name.includes("=")) {
        throw new RangeError(`${JSON.stringify(name)} cannot be the name of a variable`);
      }
      types.text(`env.${name}`, value);
    }
  }

  /** True if the command gets an input. */
  get wantsStdin() {
    const { stdin } = this.options;
    return stdin !== undefined && !(stdin instanceof Stdin && stdin.kind === "null");
  }

  /** Returns the request of the wire protocol. @returns {Json} */
  request() {
    const { cwd, user, env, tty, rlimits } = this.options;
    return {
      op: "exec",
      argv: [this.cmd, ...this.args].map(unix),
      stdin: this.wantsStdin,
      ...(env && { env: Object.entries(env).map(([name, value]) => unix(`${name}=${value}`)) }),
      ...(cwd !== undefined && { cwd: unix(cwd) }),
      ...(user !== undefined && { user: unix(user) }),
      ...(tty && { tty: tty === true ? { rows: 24, cols: 80 } : tty }),
      ...(rlimits?.length && { rlimits }),
      ...(this.log && { log: true }),
      ...(this.login && { login: true }),
    };
  }

  /** Returns the operations that the fields of the request need. */
  needs() {
    const given = {
      "exec.log": this.log,
      "exec.rlimit": (this.options.rlimits?.length ?? 0) > 0,
      "exec.login": this.login,
    };
    return Object.entries(given).filter(([, isGiven]) => isGiven).map(([name]) => name);
  }
}

/** Builder of the options of a command on the terminal of this process. */
export class AttachOptionsBuilder {
  constructor() {
    /** @type {ExecOptions & { detachKeys?: string }} */
    this.options = {};
  }

  /** Adds an argument. @param {string} arg */
  arg(arg) {
    return this.set({ args: [...(this.options.args ?? []), types.text("arg", arg)] });
  }

  /** Adds arguments. @param {Iterable<string>} args */
  args(args) {
    return this.set({ args: [...(this.options.args ?? []), ...types.texts("args", args)] });
  }

  /** Sets the working directory. @param {string} cwd */
  cwd(cwd) {
    return this.set({ cwd });
  }

  /** Sets the user. @param {string} user */
  user(user) {
    return this.set({ user });
  }

  /**
   * Sets a variable.
   *
   * @param {string} name
   * @param {string} value
   */
  env(name, value) {
    return this.set({ env: { ...this.options.env, [name]: value } });
  }

  /** Sets variables. @param {Record<string, string>} env */
  envs(env) {
    return this.set({ env: { ...this.options.env, ...env } });
  }

  /** Sets the keys after which the command goes on without the terminal. @param {string} keys */
  detachKeys(keys) {
    return this.set({ detachKeys: types.text("detachKeys", keys) });
  }

  /**
   * Limits a resource.
   *
   * @param {string} resource
   * @param {number} limit
   */
  rlimit(resource, limit) {
    return this.rlimitRange(resource, limit, limit);
  }

  /**
   * Limits a resource by a soft and a hard limit.
   *
   * @param {string} resource
   * @param {number | null} soft
   * @param {number | null} hard
   */
  rlimitRange(resource, soft, hard) {
    const limit = types.rlimit(resource, soft, hard);
    return this.set({ rlimits: [...(this.options.rlimits ?? []), limit] });
  }

  /** Returns the options. */
  build() {
    return { ...this.options };
  }

  /** @protected @param {ExecOptions & { detachKeys?: string }} options @returns {this} */
  set(options) {
    Object.assign(this.options, options);
    return this;
  }
}

/** Builder of the options of a command. */
export class ExecOptionsBuilder extends AttachOptionsBuilder {
  /** Sets the time in milliseconds after which the command is killed. @param {number} ms */
  timeout(ms) {
    return this.set({ timeout: types.time("timeout", ms) });
  }

  /** Gives no input. */
  stdinNull() {
    return this.set({ stdin: Stdin.null() });
  }

  /** Gives an input that `ExecHandle.takeStdin` writes. */
  stdinPipe() {
    return this.set({ stdin: Stdin.pipe() });
  }

  /** Gives text or bytes as the input. @param {Bytes} data */
  stdinBytes(data) {
    return this.set({ stdin: Stdin.bytes(data) });
  }

  /** Gives an input. @param {StdinSource} source */
  stdin(source) {
    return this.set({ stdin: source });
  }

  /** Gives a terminal. @param {boolean} [tty] */
  tty(tty = true) {
    return this.set({ tty });
  }

  /** Logs the output, which is the default. @param {boolean} log */
  log(log) {
    return this.set({ log });
  }

  /** Bounds what is kept of each stream. @param {number} bytes */
  maxOutputBytes(bytes) {
    return this.set({ maxOutputBytes: types.whole("maxOutputBytes", bytes) });
  }

  /** Kills the command when the signal aborts. @param {AbortSignal} signal */
  signal(signal) {
    return this.set({ signal });
  }

  /** Returns the options. @override @returns {ExecOptions} */
  build() {
    const { detachKeys, ...options } = this.options;
    if (detachKeys !== undefined) throw new TypeError("detachKeys is an option of attach");
    return options;
  }
}
