/**
 * Version 3 of the SSH file transfer protocol, over the operation `sftp` of a sandbox.
 *
 * Requests of several callers share one session. Answers are matched by their number.
 */

import { notStarted } from "./command.js";
import { PathNotFoundError, ProtocolError, SandboxFsError } from "./errors.js";
import { STDOUT, unix } from "./frames.js";

/** @typedef {import("./client.js").Client} Client */
/** @typedef {import("./wire.js").Call} Call */
/**
 * Attributes of a file; unknown ones are missing. Times are in seconds since 1970.
 *
 * @typedef {{
 *   size?: number, uid?: number, gid?: number, mode?: number, accessed?: number, modified?: number,
 * }} Attributes
 */
/** @typedef {{ kind: number, fields: Fields }} Answer */

const PACKET_BYTES_MAX = 1 << 20;
/** Bytes of a read or write. */
export const CHUNK_BYTES = 128 * 1024;

export const READ = 1;
export const WRITE = 2;
export const CREATE = 8;
export const TRUNCATE = 16;

const [OPEN, CLOSE, READ_AT, WRITE_AT, LSTAT] = [3, 4, 5, 6, 7];
const [SETSTAT, FSETSTAT, OPENDIR, READDIR, REMOVE, MKDIR] = [9, 10, 11, 12, 13, 14];
const [RMDIR, REALPATH, STAT, READLINK, SYMLINK, EXTENDED] = [15, 16, 17, 19, 20, 200];
const [STATUS, HANDLE, DATA, NAME, ATTRS] = [101, 102, 103, 104, 105];
const [OK, EOF, NO_SUCH_FILE] = [0, 1, 2];
const [HAS_SIZE, HAS_OWNER, HAS_MODE, HAS_TIMES, HAS_MORE] = [1, 2, 4, 8, 0x80000000];

/** Bits of a mode that are the type. */
const TYPE_BITS = 0o170000;

/** Returns whether the attributes are those of a directory. @param {Attributes} attributes */
export const isDirectory = ({ mode = 0 }) => (mode & TYPE_BITS) === 0o040000;

/** Fields of a packet, in order. */
class Fields {
  /** @param {Buffer} data */
  constructor(data) {
    this.data = data;
    this.at = 0;
  }

  /** @param {number} count */
  take(count) {
    const end = this.at + count;
    if (end > this.data.length) throw new ProtocolError("a packet of files ends early");
    const taken = this.data.subarray(this.at, end);
    this.at = end;
    return taken;
  }

  u32() {
    return this.take(4).readUInt32BE(0);
  }

  u64() {
    return Number(this.take(8).readBigUInt64BE(0));
  }

  string() {
    return this.take(this.u32());
  }

  attributes() {
    const flags = this.u32();
    /** @type {Attributes} */
    const found = {};
    if (flags & HAS_SIZE) found.size = this.u64();
    if (flags & HAS_OWNER) [found.uid, found.gid] = [this.u32(), this.u32()];
    if (flags & HAS_MODE) found.mode = this.u32();
    if (flags & HAS_TIMES) [found.accessed, found.modified] = [this.u32(), this.u32()];
    if (flags & HAS_MORE) {
      for (let count = this.u32(); count > 0; count -= 1) {
        this.string();
        this.string();
      }
    }
    return found;
  }
}

/** @param {...number} values */
function u32(...values) {
  const bytes = Buffer.allocUnsafe(4 * values.length);
  values.forEach((value, index) => bytes.writeUInt32BE(value, 4 * index));
  return bytes;
}

/** @param {...number} values */
function u64(...values) {
  const bytes = Buffer.allocUnsafe(8 * values.length);
  values.forEach((value, index) => bytes.writeBigUInt64BE(BigInt(value), 8 * index));
  return bytes;
}

/** @param {string | Buffer} value */
function string(value) {
  const bytes = typeof value === "string" ? Buffer.from(unix(value)) : value;
  return Buffer.concat([u32(bytes.length), bytes]);
}

/** @param {Attributes} attributes */
function encode({ size, uid, gid, mode, accessed, modified }) {
  let flags = 0;
  const pieces = [];
  if (size !== undefined) {
    flags |= HAS_SIZE;
    pieces.push(u64(size));
  }
  if (uid !== undefined && gid !== undefined) {
    flags |= HAS_OWNER;
    pieces.push(u32(uid, gid));
  }
  if (mode !== undefined) {
    flags |= HAS_MODE;
    pieces.push(u32(mode));
  }
  if (accessed !== undefined && modified !== undefined) {
    flags |= HAS_TIMES;
    pieces.push(u32(accessed, modified));
  }
  return Buffer.concat([u32(flags), ...pieces]);
}

/** The packets of a session. */
class Channel {
  /** @param {Call} call */
  constructor(call) {
    this.call = call;
    /** @type {Buffer[]} */
    this.pieces = [];
    this.length = 0;
    /** @type {Map<number, { resolve: (answer: Answer) => void, reject: (why: Error) => void }>} */
    this.waiting = new Map();
    this.next = 1;
    /** @type {Error | null} */
    this.broken = null;
  }

  /** @returns {Promise<Buffer>} */
  async packet() {
    for (;;) {
      if (this.length >= 4) {
        const length = this.peek(4).readUInt32BE(0);
        if (length < 1 || length > PACKET_BYTES_MAX) {
          throw new ProtocolError(`a packet of files with ${length} bytes`);
        }
        if (this.length >= 4 + length) {
          const packet = this.peek(4 + length);
          this.drop(4 + length);
          return packet.subarray(4, 4 + length);
        }
      }
      const item = await this.call.receive();
      if (item.bytes !== undefined) {
        if (item.channel === STDOUT && item.bytes.length > 0) {
          this.pieces.push(item.bytes);
          this.length += item.bytes.length;
        }
      } else if (item.last) {
        throw new SandboxFsError("the file session has ended");
      }
    }
  }

  /** Returns a buffer that starts with the next bytes, without taking them. @param {number} count */
  peek(count) {
    const first = this.pieces[0] ?? Buffer.alloc(0);
    if (first.length >= count) return first;
    const joined = Buffer.concat(this.pieces);
    this.pieces = [joined];
    return joined;
  }

  /** @param {number} count */
  drop(count) {
    const first = /** @type {Buffer} */ (this.pieces[0]);
    if (first.length === count) this.pieces.shift();
    else this.pieces[0] = first.subarray(count);
    this.length -= count;
  }

  /** Reads answers until the session ends. */
  async readAnswers() {
    try {
      for (;;) {
        const packet = await this.packet();
        if (packet.length < 5) throw new ProtocolError("an answer without a number");
        const number = packet.readUInt32BE(1);
        const waiting = this.waiting.get(number);
        this.waiting.delete(number);
        waiting?.resolve({ kind: packet.readUInt8(0), fields: new Fields(packet.subarray(5)) });
      }
    } catch (error) {
      this.call.abandon();
      this.fail(/** @type {Error} */ (error));
    }
  }

  /** @param {Error} error */
  fail(error) {
    this.broken ??= error;
    for (const { reject } of this.waiting.values()) reject(this.error());
    this.waiting.clear();
  }

  error() {
    const { constructor, message } = this.broken ?? new SandboxFsError("the session has ended");
    return new /** @type {any} */ (constructor)(message);
  }

  /**
   * Sends a request and returns its answer.
   *
   * @param {number} kind
   * @param {Buffer[]} body
   * @param {AbortSignal} [signal]
   * @returns {Promise<Answer>}
   */
  request(kind, body, signal) {
    signal?.throwIfAborted();
    if (this.broken) throw this.error();
    const number = this.next;
    this.next = (this.next + 1) >>> 0;
    const head = Buffer.allocUnsafe(9);
    head.writeUInt32BE(body.reduce((sum, piece) => sum + piece.length, 5), 0);
    head.writeUInt8(kind, 4);
    head.writeUInt32BE(number, 5);
    return new Promise((resolve, reject) => {
      const abort = () => {
        this.waiting.delete(number);
        reject(signal?.reason);
      };
      signal?.addEventListener("abort", abort, { once: true });
      const leave = () => signal?.removeEventListener("abort", abort);
      this.waiting.set(number, {
        resolve: (answer) => {
          leave();
          resolve(answer);
        },
        reject: (why) => {
          leave();
          reject(why);
        },
      });
      // A packet is written whole, even if its caller is cancelled.
      this.call.write(Buffer.concat([head, ...body]));
    });
  }
}

/** A file session with a guest. */
export class Session {
  /**
   * @param {Channel} channel
   * @param {AbortSignal} [signal]
   */
  constructor(channel, signal) {
    this.channel = channel;
    this.signal = signal;
  }

  /**
   * Opens a session as a user.
   *
   * @param {Client} client
   * @param {string} [user]
   */
  static async open(client, user) {
    const call = await client.call({ op: "sftp", ...(user !== undefined && { user: unix(user) }) });
    try {
      const item = await call.receive();
      if (item.bytes !== undefined) throw new ProtocolError("files before their session");
      if (item.message.type === "failed") throw notStarted(item.message, "sftp");
      const channel = new Channel(call);
      await call.write(Buffer.from([0, 0, 0, 5, 1, 0, 0, 0, 3]));
      if ((await channel.packet())[0] !== 2) {
        throw new ProtocolError("no version of the file protocol");
      }
      channel.readAnswers();
      return new Session(channel);
    } catch (error) {
      call.abandon();
      throw error;
    }
  }

  /** Returns the session for calls that a signal ends. @param {AbortSignal} [signal] */
  within(signal) {
    return signal ? new Session(this.channel, signal) : this;
  }

  /** True if requests can be made. */
  get isOpen() {
    return this.channel.broken === null && !this.channel.call.ended;
  }

  /** Ends the session. */
  close() {
    this.channel.call.abandon();
    this.channel.fail(new SandboxFsError("the file session was closed"));
  }

  /**
   * Opens a file. Returns its handle.
   *
   * @param {string} path
   * @param {number} flags
   * @param {Attributes} [attributes]
   */
  openFile(path, flags, attributes = {}) {
    return this.handle(OPEN, [string(path), u32(flags), encode(attributes)], path);
  }

  /** Opens a directory. Returns its handle. @param {string} path */
  openDirectory(path) {
    return this.handle(OPENDIR, [string(path)], path);
  }

  /**
   * Closes a file or directory. A cancellation does not prevent this.
   *
   * @param {Buffer} handle
   * @param {string} path
   */
  async closeHandle(handle, path) {
    if (this.isOpen) check(await this.channel.request(CLOSE, [string(handle)]), path);
  }

  /**
   * Reads at an offset. Returns nothing at the end.
   *
   * @param {Buffer} handle
   * @param {number} offset
   * @param {number} count
   * @param {string} path
   */
  async read(handle, offset, count, path) {
    const answer = await this.request(READ_AT, [string(handle), u64(offset), u32(count)]);
    if (answer.kind === DATA) return answer.fields.string();
    if (check(answer, path, EOF) === EOF) return Buffer.alloc(0);
    throw new ProtocolError("no data");
  }

  /**
   * Writes at an offset.
   *
   * @param {Buffer} handle
   * @param {number} offset
   * @param {Buffer} data
   * @param {string} path
   */
  async write(handle, offset, data, path) {
    await this.status(WRITE_AT, [string(handle), u64(offset), u32(data.length), data], path);
  }

  /**
   * Returns the next entries of a directory; none at the end.
   *
   * @param {Buffer} handle
   * @param {string} path
   */
  async readDirectory(handle, path) {
    const answer = await this.request(READDIR, [string(handle)]);
    /** @type {{ name: string, attributes: Attributes }[]} */
    const entries = [];
    if (answer.kind !== NAME) {
      check(answer, path, EOF);
      return entries;
    }
    const { fields } = answer;
    for (let count = fields.u32(); count > 0; count -= 1) {
      const name = fields.string().toString();
      fields.string();
      entries.push({ name, attributes: fields.attributes() });
    }
    return entries;
  }

  /**
   * Returns the attributes of a file.
   *
   * @param {string} path
   * @param {boolean} [follow]
   */
  async stat(path, follow = true) {
    const answer = await this.request(follow ? STAT : LSTAT, [string(path)]);
    if (answer.kind === ATTRS) return answer.fields.attributes();
    check(answer, path);
    throw new ProtocolError("no attributes");
  }

  /**
   * Sets attributes of a file.
   *
   * @param {string} path
   * @param {Attributes} attributes
   */
  setStat(path, attributes) {
    return this.status(SETSTAT, [string(path), encode(attributes)], path);
  }

  /**
   * Sets attributes of an open file.
   *
   * @param {Buffer} handle
   * @param {Attributes} attributes
   * @param {string} path
   */
  setHandleStat(handle, attributes, path) {
    return this.status(FSETSTAT, [string(handle), encode(attributes)], path);
  }

  /** Removes a file or link. @param {string} path */
  remove(path) {
    return this.status(REMOVE, [string(path)], path);
  }

  /**
   * Creates a directory.
   *
   * @param {string} path
   * @param {number} [mode]
   */
  makeDirectory(path, mode) {
    return this.status(MKDIR, [string(path), encode(mode === undefined ? {} : { mode })], path);
  }

  /** Removes an empty directory. @param {string} path */
  removeDirectory(path) {
    return this.status(RMDIR, [string(path)], path);
  }

  /**
   * Renames a file, over an existing one.
   *
   * @param {string} source
   * @param {string} target
   */
  rename(source, target) {
    const body = [string("posix-rename@openssh.com"), string(source), string(target)];
    return this.status(EXTENDED, body, `${source}' to '${target}`);
  }

  /** Returns the absolute path without links. @param {string} path */
  realPath(path) {
    return this.name(REALPATH, path);
  }

  /** Returns the target of a symbolic link. @param {string} path */
  readLink(path) {
    return this.name(READLINK, path);
  }

  /**
   * Creates a symbolic link.
   *
   * @param {string} target
   * @param {string} link
   */
  symlink(target, link) {
    return this.status(SYMLINK, [string(target), string(link)], link);
  }

  /**
   * Copies an open file to another one, inside the guest.
   *
   * @param {Buffer} source
   * @param {Buffer} target
   * @param {string} path
   */
  copy(source, target, path) {
    const from = [string("copy-data"), string(source), u64(0, 0)];
    return this.status(EXTENDED, [...from, string(target), u64(0)], path);
  }

  // ---- packets

  /** @private @param {number} kind @param {Buffer[]} body */
  async request(kind, body) {
    return this.channel.request(kind, body, this.signal);
  }

  /** @private @param {number} kind @param {Buffer[]} body @param {string} path */
  async status(kind, body, path) {
    check(await this.request(kind, body), path);
  }

  /** @private @param {number} kind @param {Buffer[]} body @param {string} path */
  async handle(kind, body, path) {
    const answer = await this.request(kind, body);
    if (answer.kind === HANDLE) return answer.fields.string();
    check(answer, path);
    throw new ProtocolError("no handle");
  }

  /** @private @param {number} kind @param {string} path */
  async name(kind, path) {
    const answer = await this.request(kind, [string(path)]);
    if (answer.kind === NAME && answer.fields.u32() === 1) return answer.fields.string().toString();
    check(answer, path);
    throw new ProtocolError("no name");
  }
}

/**
 * Returns the code of a status that is a success, or `also`. Throws for the others.
 *
 * @param {Answer} answer
 * @param {string} path
 * @param {number} [also]
 */
function check({ kind, fields }, path, also = OK) {
  if (kind !== STATUS) throw new ProtocolError(`an answer of the kind ${kind}`);
  const code = fields.u32();
  if (code === OK || code === also) return code;
  const why = fields.string().toString();
  const message = `'${path}': ${why}`;
  throw code === NO_SUCH_FILE ? new PathNotFoundError(message) : new SandboxFsError(message);
}
