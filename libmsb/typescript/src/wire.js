/**
 * Client of the wire protocol msb-wire(5): one connection, many flow-controlled calls.
 *
 * A receiver grants credit when a caller has consumed bytes. So a slow reader holds at most one
 * window per channel in memory, and stops its own command and no other. Each operation is
 * negotiated: a peer that lacks one refuses that call alone.
 */

import { closeSync, constants, openSync, statSync } from "node:fs";
import { connect } from "node:net";
import { basename, dirname } from "node:path";

import {
  IoError,
  MicrosandboxError,
  ProtocolError,
  SandboxNotRunningError,
  UnsupportedOperationError,
} from "./errors.js";
import * as frames from "./frames.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("node:net").Socket} Socket */

/** Requests whose operation has another name. @type {Record<string, string>} */
const OPERATIONS = { attach: "jobs", signal: "jobs" };

/** Tasks that wait for a change. */
class Waiters {
  constructor() {
    /** @type {(() => void)[]} */
    this.waiting = [];
  }

  /** @returns {Promise<void>} */
  wait() {
    return new Promise((resolve) => this.waiting.push(resolve));
  }

  wake() {
    const waiting = this.waiting;
    this.waiting = [];
    for (const resolve of waiting) resolve();
  }
}

/** One call of a connection. */
export class Call {
  /**
   * @param {Connection} connection
   * @param {number} stream
   */
  constructor(connection, stream) {
    this.stream = stream;
    /** True after the last event, or the end of the connection. */
    this.ended = false;
    this.connection = connection;
    /** @type {frames.Incoming[]} */
    this.inbox = [];
    this.readers = new Waiters();
    this.writers = new Waiters();
    this.ends = new Waiters();
    this.credit = frames.WINDOW;
    this.consumed = [0, 0, 0];
    this.received = [frames.WINDOW, frames.WINDOW, frames.WINDOW];
    this.abandoned = false;
    this.isWriting = false;
  }

  // ---- for the caller

  /** Returns the next bytes or event. Throws when the connection has ended before the call. */
  async receive() {
    for (;;) {
      const item = this.receiveNow();
      if (item) return item;
      if (this.ended) throw this.connection.error();
      await this.readers.wait();
    }
  }

  /** Returns what has arrived; `undefined` if there is nothing. */
  receiveNow() {
    const item = this.inbox.shift();
    if (item?.bytes !== undefined) this.grant(item.channel, item.bytes.length);
    return item;
  }

  /**
   * Writes to channel 0. Waits while the peer does not read. Drops what comes too late.
   *
   * @param {Buffer} data
   */
  async write(data) {
    // Writes of several callers follow each other whole.
    while (this.isWriting && !this.ended) await this.writers.wait();
    this.isWriting = true;
    try {
      for (let at = 0; at < data.length && !this.ended;) {
        if (this.credit === 0 || this.connection.isFull) {
          await this.writers.wait();
          continue;
        }
        const count = Math.min(data.length - at, this.credit, frames.DATA_BYTES);
        this.credit -= count;
        this.send(frames.frame(this.stream, frames.DATA, data.subarray(at, at + count)));
        at += count;
      }
    } finally {
      this.isWriting = false;
      this.writers.wake();
    }
  }

  /** Ends channel 0. */
  closeStdin() {
    this.send(frames.frame(this.stream, frames.DATA, Buffer.alloc(0), 0, frames.END));
  }

  /** Sends a control message. @param {Json} value */
  control(value) {
    this.send(frames.message(this.stream, frames.CONTROL, value));
  }

  /** Abandons the call: the guest kills the command. Bytes that still come are dropped. */
  abandon() {
    if (!this.abandoned) this.send(frames.frame(this.stream, frames.CLOSE, Buffer.alloc(0)));
    this.abandoned = true;
    while (this.receiveNow());
  }

  /** Waits for the end of the call. @param {number} ms */
  async waitEnded(ms) {
    if (this.ended) return;
    /** @type {NodeJS.Timeout | undefined} */
    let timer;
    const late = new Promise((resolve) => {
      timer = setTimeout(resolve, ms);
    });
    await Promise.race([this.ends.wait(), late]);
    clearTimeout(timer);
  }

  // ---- for the connection

  /** Takes what has arrived. @param {frames.Incoming} item */
  take(item) {
    if (item.bytes !== undefined) {
      const { channel, bytes } = item;
      const left = this.received[channel];
      if (channel === frames.STDIN || left === undefined) {
        throw new ProtocolError(`data on channel ${channel}`);
      }
      this.received[channel] = left - bytes.length;
      if (left < bytes.length) throw new ProtocolError("more data than credit");
      if (this.abandoned) {
        this.grant(channel, bytes.length);
        return;
      }
    } else if (item.last) {
      this.finish();
    }
    if (!this.abandoned) {
      this.inbox.push(item);
      this.readers.wake();
    }
  }

  /**
   * Takes additional credit.
   *
   * @param {number} channel
   * @param {number} count
   */
  takeCredit(channel, count) {
    if (channel !== frames.STDIN || this.credit + count > frames.WINDOW) {
      throw new ProtocolError("more credit than a window");
    }
    this.credit += count;
    this.writers.wake();
  }

  /** Ends the call. */
  finish() {
    this.ended = true;
    for (const waiters of [this.ends, this.readers, this.writers]) waiters.wake();
  }

  /**
   * @param {number} channel
   * @param {number} count
   */
  grant(channel, count) {
    const consumed = (this.consumed[channel] ?? 0) + count;
    this.consumed[channel] = consumed;
    if (consumed < frames.CREDIT_BYTES) return;
    this.consumed[channel] = 0;
    this.received[channel] = (this.received[channel] ?? 0) + consumed;
    const payload = Buffer.alloc(4);
    payload.writeUInt32BE(consumed);
    this.send(frames.frame(this.stream, frames.CREDIT, payload, channel));
  }

  /** @param {Buffer} data */
  send(data) {
    if (!this.ended) this.connection.send(data);
  }
}

/** A connection to the supervisor of a sandbox. */
export class Connection {
  /**
   * @param {Socket} socket
   * @param {string} name
   */
  constructor(socket, name) {
    /** Operations that the peer serves. @type {Set<string>} */
    this.operations = new Set();
    /** Program and release of the peer. */
    this.program = "";
    this.socket = socket;
    this.name = name;
    /** @type {Buffer} */
    this.buffer = Buffer.alloc(0);
    /** @type {Map<number, Call>} */
    this.calls = new Map();
    /** @type {Map<string, Buffer[]>} */
    this.incomplete = new Map();
    this.next = 1;
    this.greeted = false;
    /** @type {MicrosandboxError | null} */
    this.lost = null;
    this.hello = new Waiters();
    socket.on("data", (data) => this.receive(/** @type {Buffer} */ (data)));
    socket.on("error", () => this.end(this.hasEnded()));
    socket.on("close", () => this.end(this.hasEnded()));
    socket.on("drain", () => {
      for (const call of this.calls.values()) call.writers.wake();
    });
  }

  /**
   * Connects to a socket and exchanges the handshake.
   *
   * @param {string} path
   * @param {string} name
   */
  static async open(path, name) {
    const connection = new Connection(await dial(path, name), name);
    connection.send(
      frames.message(0, frames.HELLO, {
        version_min: frames.VERSION,
        version_max: frames.VERSION,
        program: "msb-sdk-typescript",
        operations: [],
      }),
    );
    const timer = setTimeout(
      () => connection.end(new ProtocolError(`the sandbox '${name}' sent no hello`)),
      frames.HELLO_MS,
    );
    while (!connection.greeted && !connection.lost) await connection.hello.wait();
    clearTimeout(timer);
    if (connection.lost) throw connection.error();
    // An idle connection does not hold the process.
    connection.socket.unref();
    return connection;
  }

  /** True if calls can be opened. */
  get isOpen() {
    return this.lost === null;
  }

  /** True while the socket takes no more. */
  get isFull() {
    return this.socket.writableNeedDrain;
  }

  /**
   * Opens a call. `needs` are the operations of its fields, besides its own.
   *
   * @param {Json} request
   * @param {readonly string[]} [needs]
   */
  call(request, needs = []) {
    if (this.lost) throw this.error();
    const operation = OPERATIONS[request.op] ?? request.op;
    const missing = [operation, ...needs].filter((need) => !this.operations.has(need));
    if (missing.length > 0) {
      throw new UnsupportedOperationError(
        `${this.program || "the sandbox"} does not serve: ${missing.join(", ")}`,
        { hint: `restart the sandbox: msb restart ${this.name}`, fields: missing },
      );
    }
    const opened = frames.message(this.next, frames.OPEN, request);
    const call = new Call(this, this.next);
    this.next += 1;
    this.calls.set(call.stream, call);
    this.socket.ref();
    this.send(opened);
    return call;
  }

  /** Sends frames. @param {Buffer} data */
  send(data) {
    if (!this.lost) this.socket.write(data);
  }

  /** Returns a new error for the end of this connection. */
  error() {
    return this.lost instanceof ProtocolError
      ? new ProtocolError(this.lost.message)
      : new SandboxNotRunningError((this.lost ?? this.hasEnded()).message);
  }

  hasEnded() {
    return new SandboxNotRunningError(`the sandbox '${this.name}' has ended`);
  }

  /** Closes the connection. The peer ends its calls. */
  close() {
    this.end(new SandboxNotRunningError(`the connection to '${this.name}' was closed`));
  }

  // ---- frames

  /** @param {Buffer} data */
  receive(data) {
    this.buffer = this.buffer.length ? Buffer.concat([this.buffer, data]) : data;
    try {
      this.parse();
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      this.end(new ProtocolError(`the sandbox '${this.name}' broke the protocol: ${why}`));
    }
  }

  parse() {
    const { buffer } = this;
    let at = 0;
    while (buffer.length - at >= frames.HEADER_BYTES && !this.lost) {
      const length = buffer.readUInt32BE(at);
      if (length > frames.FRAME_BYTES_MAX) throw new ProtocolError(`a frame of ${length} bytes`);
      const end = at + frames.HEADER_BYTES + length;
      if (buffer.length < end) break;
      this.takeFrame(
        buffer.readUInt32BE(at + 4),
        buffer.readUInt8(at + 8),
        buffer.readUInt8(at + 9),
        buffer.readUInt16BE(at + 10),
        buffer.subarray(at + frames.HEADER_BYTES, end),
      );
      at = end;
    }
    this.buffer = buffer.subarray(at);
  }

  /**
   * @param {number} stream
   * @param {number} kind
   * @param {number} channel
   * @param {number} flags
   * @param {Buffer} payload
   */
  takeFrame(stream, kind, channel, flags, payload) {
    if ((kind === frames.HELLO) !== (stream === 0)) {
      throw new ProtocolError("only a hello has the stream 0");
    }
    if (!this.greeted && kind !== frames.HELLO) throw new ProtocolError("no hello at the start");
    switch (kind) {
      case frames.DATA:
        if (flags & ~frames.END) throw new ProtocolError("unknown flags");
        this.calls.get(stream)?.take({ channel, bytes: payload, end: (flags & frames.END) !== 0 });
        break;
      case frames.CREDIT:
        if (payload.length !== 4) throw new ProtocolError("a credit of another length");
        this.calls.get(stream)?.takeCredit(channel, payload.readUInt32BE(0));
        break;
      case frames.HELLO:
      case frames.EVENT:
        this.takePiece(stream, kind, flags, payload);
        break;
      default:
        throw new ProtocolError(`a frame of the kind ${kind}`);
    }
  }

  /**
   * @param {number} stream
   * @param {number} kind
   * @param {number} flags
   * @param {Buffer} payload
   */
  takePiece(stream, kind, flags, payload) {
    const allowed = kind === frames.HELLO ? frames.MORE : frames.MORE | frames.END;
    if (flags & ~allowed) throw new ProtocolError("unknown flags");
    const key = `${stream} ${kind}`;
    const pieces = [...(this.incomplete.get(key) ?? []), payload];
    if (pieces.reduce((sum, piece) => sum + piece.length, 0) > frames.MESSAGE_BYTES_MAX) {
      throw new ProtocolError("a message is too long");
    }
    if (flags & frames.MORE) {
      this.incomplete.set(key, pieces);
      if (this.incomplete.size > frames.INCOMPLETE_MAX || pieces.length > 4096) {
        throw new ProtocolError("too many incomplete messages");
      }
      return;
    }
    this.incomplete.delete(key);
    const value = JSON.parse(Buffer.concat(pieces).toString());
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw new ProtocolError("a message is no object");
    }
    if (kind === frames.HELLO) this.takeHello(value);
    else this.takeEvent(stream, value, (flags & frames.END) !== 0);
  }

  /**
   * @param {number} stream
   * @param {Json} message
   * @param {boolean} last
   */
  takeEvent(stream, message, last) {
    const call = this.calls.get(stream);
    if (last) this.calls.delete(stream);
    call?.take({ message, last });
    if (this.calls.size === 0) this.socket.unref();
  }

  /** @param {Json} hello */
  takeHello(hello) {
    if (this.greeted) throw new ProtocolError("a second hello");
    const { version_min: least, version_max: most, operations } = hello;
    if (!(least <= frames.VERSION && frames.VERSION <= most)) {
      throw new ProtocolError("no common version");
    }
    this.program = String(hello.program ?? "");
    this.operations = new Set(Array.isArray(operations) ? operations.map(String) : []);
    this.greeted = true;
    this.hello.wake();
  }

  /** @param {MicrosandboxError} error */
  end(error) {
    if (this.lost) return;
    this.lost = error;
    this.socket.destroy();
    this.hello.wake();
    for (const call of this.calls.values()) call.finish();
    this.calls.clear();
  }
}

/**
 * Connects to a Unix socket. A path that is too long goes through its open directory.
 *
 * @param {string} path
 * @param {string} name
 * @returns {Promise<Socket>}
 */
async function dial(path, name) {
  let directory = -1;
  let address = path;
  try {
    // The socket of another user is refused, as the programs do.
    const { uid } = statSync(path);
    if (uid !== 0 && uid !== process.getuid?.()) {
      throw new IoError(`the socket of the sandbox '${name}' belongs to the user ${uid}`);
    }
    if (Buffer.byteLength(path) > frames.ADDRESS_BYTES_MAX) {
      directory = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
      address = `/proc/self/fd/${directory}/${basename(path)}`;
    }
    return await attempt(address, Date.now() + frames.HELLO_MS);
  } catch (error) {
    if (error instanceof MicrosandboxError) throw error;
    const { code, message } = /** @type {NodeJS.ErrnoException} */ (error);
    if (["ENOENT", "ECONNREFUSED", "ECONNRESET"].includes(code ?? "")) {
      throw new SandboxNotRunningError(`the sandbox '${name}' is not running`);
    }
    if (code === "EAGAIN") {
      throw new SandboxNotRunningError(`the sandbox '${name}' does not accept clients`);
    }
    throw new IoError(`cannot connect to the sandbox '${name}': ${message}`, { cause: error });
  } finally {
    if (directory >= 0) closeSync(directory);
  }
}

/**
 * @param {string} address
 * @param {number} deadline
 * @returns {Promise<Socket>}
 */
async function attempt(address, deadline) {
  for (;;) {
    try {
      return await new Promise((resolve, reject) => {
        const socket = connect({ path: address });
        socket.once("error", reject);
        socket.once("connect", () => {
          socket.removeListener("error", reject);
          resolve(socket);
        });
      });
    } catch (error) {
      const { code } = /** @type {NodeJS.ErrnoException} */ (error);
      if (code !== "EAGAIN" || Date.now() > deadline) throw error;
      // The queue of the listener is full.
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
}
