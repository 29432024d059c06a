/** Files in a sandbox. */

import { open, stat } from "node:fs/promises";
import { posix, resolve } from "node:path";

import { IoError, PathNotFoundError, SandboxFsError } from "./errors.js";
import * as sftp from "./sftp.js";
import * as types from "./types.js";

/** @typedef {import("./client.js").Client} Client */
/** @typedef {import("./tool.js").Host} Host */
/** @typedef {import("./types.js").Bytes} Bytes */
/** @typedef {import("./types.js").FsEntryKind} FsEntryKind */
/** @typedef {import("./types.js").CallOptions} CallOptions */
/**
 * Metadata of a file. `created` is always `null`: the protocol has no time of creation.
 *
 * @typedef {{
 *   kind: FsEntryKind, size: number, mode: number, readonly: boolean,
 *   modified: Date | null, created: Date | null, accessed: Date | null,
 *   uid: number | null, gid: number | null,
 * }} FsMetadata
 */
/**
 * An entry of a directory.
 *
 * @typedef {{
 *   path: string, kind: FsEntryKind, size: number, mode: number, modified: Date | null,
 * }} FsEntry
 */

/** Reads or writes of one file that are on their way at a time. */
const OUTSTANDING = 8;
/** Entries of a tree that are removed at a time. */
const REMOVALS = 32;

/** Whole files that are read or written at a time: a session has 512 open files at most. */
const FILES = 64;

/** A limit of tasks that run at a time. */
class Gate {
  constructor() {
    this.free = FILES;
    /** @type {(() => void)[]} */
    this.waiting = [];
  }

  /** @template T @param {() => Promise<T>} work */
  async run(work) {
    if (this.free > 0) this.free -= 1;
    else await new Promise((resolve) => this.waiting.push(() => resolve(null)));
    try {
      return await work();
    } finally {
      const next = this.waiting.shift();
      if (next) next();
      else this.free += 1;
    }
  }
}

/** Returns the kind of a file with this mode. @param {number} mode @returns {FsEntryKind} */
export function kindOf(mode) {
  switch (mode & 0o170000) {
    case 0o100000:
      return "file";
    case 0o040000:
      return "directory";
    case 0o120000:
      return "symlink";
    default:
      return "other";
  }
}

/** @param {number | undefined} seconds */
const dateOf = (seconds) => (seconds === undefined ? null : new Date(seconds * 1000));

/** Contents of a file, in chunks. Iterate over it, or call `recv` or `collect`. */
export class FsReadStream {
  /**
   * @param {sftp.Session} session
   * @param {Buffer} handle
   * @param {string} path
   */
  constructor(session, handle, path) {
    this.session = session;
    this.handle = handle;
    this.path = path;
    this.offset = 0;
    /** @type {Promise<Buffer>[]} */
    this.ahead = [];
    this.isOpen = true;
  }

  /** Returns the next chunk; `null` at the end. */
  async recv() {
    if (!this.isOpen) return null;
    while (this.ahead.length < OUTSTANDING) {
      const read = this.session.read(this.handle, this.offset, sftp.CHUNK_BYTES, this.path);
      // A read behind one that failed, or was short, is not waited for.
      read.catch(() => {});
      this.ahead.push(read);
      this.offset += sftp.CHUNK_BYTES;
    }
    const first = /** @type {Promise<Buffer>} */ (this.ahead.shift());
    const data = await first;
    if (data.length < sftp.CHUNK_BYTES) {
      // The next read starts after these bytes, which need not be the last.
      const readAhead = (this.ahead.length + 1) * sftp.CHUNK_BYTES;
      this.ahead = [];
      this.offset += data.length - readAhead;
    }
    if (data.length === 0) {
      await this.close();
      return null;
    }
    return data;
  }

  /** Returns the rest. */
  async collect() {
    const pieces = [];
    for await (const data of this) pieces.push(data);
    return Buffer.concat(pieces);
  }

  /** Closes the file. */
  async close() {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.ahead = [];
    await this.session.closeHandle(this.handle, this.path);
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (let data; (data = await this.recv());) yield data;
    } finally {
      await this.close();
    }
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }
}

/** A file that is written in chunks. `close` reports errors of writes that were under way. */
export class FsWriteSink {
  /**
   * @param {sftp.Session} session
   * @param {Buffer} handle
   * @param {string} path
   */
  constructor(session, handle, path) {
    this.session = session;
    this.handle = handle;
    this.path = path;
    this.offset = 0;
    /** @type {Promise<void>[]} */
    this.writes = [];
    this.isOpen = true;
  }

  /** Writes bytes, or text as UTF-8. @param {Bytes} data */
  async write(data) {
    if (!this.isOpen) throw new TypeError("the file is closed");
    const bytes = types.buffer(data);
    for (let at = 0; at < bytes.length; at += sftp.CHUNK_BYTES) {
      while (this.writes.length >= OUTSTANDING) await this.writes.shift();
      const chunk = bytes.subarray(at, at + sftp.CHUNK_BYTES);
      const write = this.session.write(this.handle, this.offset, chunk, this.path);
      write.catch(() => {});
      this.writes.push(write);
      this.offset += chunk.length;
    }
  }

  /** Waits for the writes and closes the file. */
  async close() {
    if (!this.isOpen) return;
    this.isOpen = false;
    const results = await Promise.allSettled(this.writes);
    await this.session.closeHandle(this.handle, this.path);
    for (const result of results) if (result.status === "rejected") throw result.reason;
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }
}

/**
 * Files in a sandbox, read and changed as the sandbox's user.
 *
 * Relative paths start in the user's home directory. Any number of calls can be made at a time.
 */
export class SandboxFs {
  /**
   * @param {Client} client
   * @param {Host} host
   * @param {string} name
   * @param {string} [user]
   */
  constructor(client, host, name, user) {
    this.client = client;
    this.host = host;
    this.name = name;
    this.user = user;
    this.gate = new Gate();
    /** @type {Promise<sftp.Session> | null} */
    this.opening = null;
  }

  /** Returns an open file session, which all calls share. @param {CallOptions} [options] */
  async session(options = {}) {
    options.signal?.throwIfAborted();
    for (;;) {
      this.opening ??= sftp.Session.open(this.client, this.user);
      const { opening } = this;
      try {
        const session = await opening;
        if (session.isOpen) return session.within(options.signal);
      } catch (error) {
        if (this.opening === opening) this.opening = null;
        throw error;
      }
      if (this.opening === opening) this.opening = null;
    }
  }

  /**
   * Returns the contents of a file.
   *
   * @param {string} path
   * @param {CallOptions} [options]
   */
  async read(path, options) {
    return this.gate.run(() => this.readWhole(path, options));
  }

  /** @private @param {string} path @param {CallOptions} [options] */
  async readWhole(path, options) {
    const stream = await this.readStream(path, options);
    const { session, handle } = stream;
    try {
      const first = await session.read(handle, 0, sftp.CHUNK_BYTES, path);
      if (first.length === 0) return first;
      // A short read need not be the end.
      const second = await session.read(handle, first.length, sftp.CHUNK_BYTES, path);
      if (second.length === 0) return first;
      stream.offset = first.length + second.length;
      const pieces = [first, second];
      for (let data; (data = await stream.recv());) pieces.push(data);
      return Buffer.concat(pieces);
    } finally {
      await stream.close().catch(() => {});
    }
  }

  /**
   * Returns the contents of a file as text.
   *
   * @param {string} path
   * @param {CallOptions} [options]
   */
  async readToString(path, options) {
    return (await this.read(path, options)).toString();
  }

  /**
   * Opens a file for reading in chunks.
   *
   * @param {string} path
   * @param {CallOptions} [options]
   */
  async readStream(path, options) {
    const session = await this.session(options);
    const handle = await session.openFile(types.text("path", path), sftp.READ);
    return new FsReadStream(session, handle, path);
  }

  /**
   * Writes a file, from bytes or text. `mode` sets its permission bits.
   *
   * @param {string} path
   * @param {Bytes} data
   * @param {CallOptions & { mode?: number }} [options]
   */
  async write(path, data, options) {
    const bytes = types.buffer(data);
    await this.gate.run(async () => {
      const sink = await this.writeStream(path, options);
      try {
        await sink.write(bytes);
      } finally {
        await sink.close();
      }
    });
  }

  /**
   * Opens a file for writing in chunks. An existing file is truncated.
   *
   * @param {string} path
   * @param {CallOptions & { mode?: number }} [options]
   */
  async writeStream(path, options = {}) {
    const session = await this.session(options);
    const flags = sftp.WRITE | sftp.CREATE | sftp.TRUNCATE;
    const attributes =
      options.mode === undefined ? {} : { mode: types.whole("mode", options.mode) };
    const handle = await session.openFile(types.text("path", path), flags, attributes);
    // The mode of an existing file, and without the umask of the guest.
    if (options.mode !== undefined) await session.setHandleStat(handle, attributes, path);
    return new FsWriteSink(session, handle, path);
  }

  /**
   * Returns the entries of a directory, sorted by name.
   *
   * @param {string} path
   * @param {CallOptions} [options]
   * @returns {Promise<FsEntry[]>}
   */
  async list(path, options) {
    const found = await entries(await this.session(options), path);
    return found.map(({ name, attributes: { mode = 0, size = 0, modified } }) => ({
      path: posix.join(path, name),
      kind: kindOf(mode),
      size,
      mode: mode & 0o7777,
      modified: dateOf(modified),
    }));
  }

  /**
   * Creates a directory and its parents. An existing directory is no error.
   *
   * @param {string} path
   * @param {CallOptions & { mode?: number }} [options]
   * @returns {Promise<void>}
   */
  async mkdir(path, options = {}) {
    const session = await this.session(options);
    const parent = posix.dirname(types.text("path", path));
    try {
      await session.makeDirectory(path, options.mode);
    } catch (error) {
      if (error instanceof PathNotFoundError && parent !== path && parent !== ".") {
        await this.mkdir(parent, { signal: options.signal });
        await session.makeDirectory(path, options.mode);
      } else if (!(error instanceof SandboxFsError) || error instanceof PathNotFoundError) {
        throw error;
      } else if (!sftp.isDirectory(await session.stat(path))) {
        throw error;
      }
    }
  }

  /**
   * Removes a file or symbolic link.
   *
   * @param {string} path
   * @param {CallOptions} [options]
   */
  async remove(path, options) {
    await (await this.session(options)).remove(path);
  }

  /**
   * Removes a directory with all that is in it.
   *
   * @param {string} path
   * @param {CallOptions} [options]
   */
  async removeDir(path, options) {
    const session = await this.session(options);
    if (!sftp.isDirectory(await session.stat(path, false))) {
      throw new SandboxFsError(`'${path}': not a directory`);
    }
    await removeTree(session, path);
  }

  /**
   * Removes an empty directory.
   *
   * @param {string} path
   * @param {CallOptions} [options]
   */
  async removeEmptyDir(path, options) {
    await (await this.session(options)).removeDirectory(path);
  }

  /**
   * Copies a file inside the guest, with its permission bits.
   *
   * @param {string} source
   * @param {string} target
   * @param {CallOptions} [options]
   */
  async copy(source, target, options) {
    const session = await this.session(options);
    const mode = ((await session.stat(source)).mode ?? 0) & 0o7777;
    const reading = await session.openFile(source, sftp.READ);
    try {
      const flags = sftp.WRITE | sftp.CREATE | sftp.TRUNCATE;
      const writing = await session.openFile(target, flags, { mode });
      try {
        await session.copy(reading, writing, `${source}' to '${target}`);
        await session.setHandleStat(writing, { mode }, target);
      } finally {
        await session.closeHandle(writing, target);
      }
    } finally {
      await session.closeHandle(reading, source);
    }
  }

  /**
   * Renames a file or directory. An existing file is replaced.
   *
   * @param {string} source
   * @param {string} target
   * @param {CallOptions} [options]
   */
  async rename(source, target, options) {
    await (await this.session(options)).rename(source, target);
  }

  /**
   * Returns the metadata of a file. Without `follow`, of a link itself.
   *
   * @param {string} path
   * @param {CallOptions & { follow?: boolean }} [options]
   * @returns {Promise<FsMetadata>}
   */
  async stat(path, options = {}) {
    const found = await (await this.session(options)).stat(path, options.follow ?? true);
    const { mode = 0, size = 0, modified, accessed, uid = null, gid = null } = found;
    return {
      kind: kindOf(mode),
      size,
      mode: mode & 0o7777,
      readonly: (mode & 0o222) === 0,
      modified: dateOf(modified),
      created: null,
      accessed: dateOf(accessed),
      uid,
      gid,
    };
  }

  /**
   * Returns whether a path exists. Other errors than a missing path are thrown.
   *
   * @param {string} path
   * @param {CallOptions} [options]
   */
  async exists(path, options) {
    try {
      await this.stat(path, options);
      return true;
    } catch (error) {
      if (error instanceof PathNotFoundError) return false;
      throw error;
    }
  }

  /**
   * Returns the target of a symbolic link.
   *
   * @param {string} path
   * @param {CallOptions} [options]
   */
  async readLink(path, options) {
    return (await this.session(options)).readLink(path);
  }

  /**
   * Creates a symbolic link to `target`.
   *
   * @param {string} target
   * @param {string} link
   * @param {CallOptions} [options]
   */
  async symlink(target, link, options) {
    await (await this.session(options)).symlink(target, link);
  }

  /**
   * Returns the absolute path without symbolic links.
   *
   * @param {string} path
   * @param {CallOptions} [options]
   */
  async realPath(path, options) {
    return (await this.session(options)).realPath(path);
  }

  /**
   * Sets the permission bits of a file.
   *
   * @param {string} path
   * @param {number} mode
   * @param {CallOptions} [options]
   */
  async chmod(path, mode, options) {
    await (await this.session(options)).setStat(path, { mode: types.whole("mode", mode) });
  }

  /**
   * Sets the owner and group of a file.
   *
   * @param {string} path
   * @param {number} uid
   * @param {number} gid
   * @param {CallOptions} [options]
   */
  async chown(path, uid, gid, options) {
    const owner = { uid: types.whole("uid", uid), gid: types.whole("gid", gid) };
    await (await this.session(options)).setStat(path, owner);
  }

  /**
   * Copies a file or directory tree of the host into the guest.
   *
   * @param {string} hostPath
   * @param {string} guestPath
   * @param {CallOptions} [options]
   */
  async copyFromHost(hostPath, guestPath, options = {}) {
    const { signal } = options;
    const found = await host(hostPath, () => stat(hostPath));
    if (found.isDirectory()) {
      const target = `${this.name}:${types.text("path", guestPath)}`;
      await this.host.run(["cp", "--", resolve(hostPath), target], { signal });
      return;
    }
    const file = await host(hostPath, () => open(hostPath, "r"));
    try {
      const sink = await this.writeStream(guestPath, { signal, mode: found.mode & 0o7777 });
      try {
        for await (const data of file.createReadStream({ autoClose: false })) {
          await sink.write(data);
        }
      } finally {
        await sink.close();
      }
    } finally {
      await file.close();
    }
  }

  /**
   * Copies a file or directory tree of the guest to the host.
   *
   * @param {string} guestPath
   * @param {string} hostPath
   * @param {CallOptions} [options]
   */
  async copyToHost(guestPath, hostPath, options = {}) {
    if ((await this.stat(guestPath, options)).kind === "directory") {
      const source = `${this.name}:${guestPath}`;
      await this.host.run(["cp", "--", source, resolve(hostPath)], { signal: options.signal });
      return;
    }
    const stream = await this.readStream(guestPath, options);
    try {
      const file = await host(hostPath, () => open(hostPath, "w"));
      try {
        for await (const data of stream) await file.writeFile(data);
      } finally {
        await file.close();
      }
    } finally {
      await stream.close();
    }
  }

  /** Ends the file session. The next call opens another one. */
  close() {
    this.opening?.then((session) => session.close(), () => {});
    this.opening = null;
  }
}

/**
 * Runs an operation on a file of the host.
 *
 * @template T
 * @param {string} path
 * @param {() => Promise<T>} work
 */
async function host(path, work) {
  try {
    return await work();
  } catch (error) {
    const { code } = /** @type {NodeJS.ErrnoException} */ (error);
    throw new IoError(`cannot open '${path}': ${code ?? error}`, { cause: error });
  }
}

/**
 * @param {sftp.Session} session
 * @param {string} path
 */
async function entries(session, path) {
  const handle = await session.openDirectory(types.text("path", path));
  try {
    const found = [];
    for (let some; (some = await session.readDirectory(handle, path)).length > 0;) {
      found.push(...some.filter(({ name }) => name !== "." && name !== ".."));
    }
    return found.sort((one, other) => (one.name < other.name ? -1 : 1));
  } finally {
    await session.closeHandle(handle, path);
  }
}

/**
 * @param {sftp.Session} session
 * @param {string} path
 */
async function removeTree(session, path) {
  const files = [];
  for (const { name, attributes } of await entries(session, path)) {
    const entry = posix.join(path, name);
    if (sftp.isDirectory(attributes)) await removeTree(session, entry);
    else files.push(entry);
  }
  for (let at = 0; at < files.length; at += REMOVALS) {
    await Promise.all(files.slice(at, at + REMOVALS).map((file) => session.remove(file)));
  }
  await session.removeDirectory(path);
}
