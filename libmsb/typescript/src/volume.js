/** Named volumes and their files. */

import { constants } from "node:fs";
import * as fs from "node:fs/promises";
import { join, posix } from "node:path";

import { PathNotFoundError, SandboxFsError, unsupported, VolumeNotFoundError } from "./errors.js";
import { kindOf } from "./files.js";
import { date } from "./times.js";
import { Host } from "./tool.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./types.js").Bytes} Bytes */
/** @typedef {import("./files.js").FsEntry} FsEntry */
/** @typedef {import("./files.js").FsMetadata} FsMetadata */

const { O_RDONLY, O_WRONLY, O_CREAT, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK } = constants;

/**
 * Files of a volume of the kind `dir`, from the host.
 *
 * A path never leaves the volume: symbolic links in it are not followed.
 */
export class VolumeFs {
  /**
   * @param {string} root
   * @param {string} kind
   */
  constructor(root, kind) {
    this.root = root;
    this.kind = kind;
  }

  /** Returns the contents of a file. @param {string} path */
  async read(path) {
    return this.within(path, async (at) => {
      const file = await openFile(at, O_RDONLY);
      try {
        return await file.readFile();
      } finally {
        await file.close();
      }
    });
  }

  /** Returns the contents of a file as text. @param {string} path */
  async readToString(path) {
    return (await this.read(path)).toString();
  }

  /** Opens a file for reading in chunks. @param {string} path */
  async readStream(path) {
    const file = await this.within(path, (at) => openFile(at, O_RDONLY));
    return new VolumeReadStream(file);
  }

  /**
   * Writes a file, from bytes or text.
   *
   * @param {string} path
   * @param {Bytes} data
   */
  async write(path, data) {
    const sink = await this.writeStream(path);
    try {
      await sink.write(data);
    } finally {
      await sink.close();
    }
  }

  /** Opens a file for writing in chunks. An existing file is truncated. @param {string} path */
  async writeStream(path) {
    const file = await this.within(path, (at) => openFile(at, O_WRONLY | O_CREAT));
    await file.truncate();
    return new VolumeWriteSink(file);
  }

  /** Returns the entries of a directory, sorted by name. @param {string} [path] */
  async list(path = "/") {
    return this.within(path, async (at) => {
      /** @type {FsEntry[]} */
      const found = [];
      await inDirectory(at, async (directory) => {
        for (const name of (await fs.readdir(directory)).sort()) {
          const { mode, size, mtime } = await fs.lstat(join(directory, name));
          const kind = kindOf(mode);
          const entry = posix.join(path, name);
          found.push({ path: entry, kind, size, mode: mode & 0o7777, modified: mtime });
        }
      });
      return found;
    });
  }

  /** Creates a directory and its parents. @param {string} path */
  async mkdir(path) {
    await this.within(path, makeDirectory, true);
  }

  /** Removes a file. @param {string} path */
  async remove(path) {
    await this.within(path, (at) => fs.unlink(at));
  }

  /** Removes a directory with all that is in it. @param {string} path */
  async removeDir(path) {
    await this.within(path, removeTree);
  }

  /**
   * Copies a file inside the volume.
   *
   * @param {string} source
   * @param {string} target
   */
  async copy(source, target) {
    const reading = await this.readStream(source);
    try {
      const writing = await this.writeStream(target);
      try {
        for await (const data of reading) await writing.write(data);
      } finally {
        await writing.close();
      }
    } finally {
      await reading.close();
    }
  }

  /**
   * Renames a file or directory. An existing file is replaced.
   *
   * @param {string} source
   * @param {string} target
   */
  async rename(source, target) {
    await this.within(source, (from) => this.within(target, (to) => fs.rename(from, to)));
  }

  /** Returns the metadata of a file, of a link itself. @param {string} path */
  async stat(path) {
    const found = await this.within(path, (at) => fs.lstat(at));
    /** @type {FsMetadata} */
    const metadata = {
      kind: kindOf(found.mode),
      size: found.size,
      mode: found.mode & 0o7777,
      readonly: (found.mode & 0o222) === 0,
      modified: found.mtime,
      created: found.birthtime,
      accessed: found.atime,
      uid: found.uid,
      gid: found.gid,
    };
    return metadata;
  }

  /** Returns whether a path exists. @param {string} path */
  async exists(path) {
    try {
      await this.stat(path);
      return true;
    } catch (error) {
      if (error instanceof PathNotFoundError) return false;
      throw error;
    }
  }

  /**
   * Opens the parent of a path step by step, without symbolic links, and acts in it.
   *
   * @private
   * @template T
   * @param {string} path
   * @param {(at: string) => Promise<T>} act
   * @param {boolean} [parents]
   * @returns {Promise<T>}
   */
  async within(path, act, parents = false) {
    if (this.kind !== "dir") {
      throw unsupported("VolumeFs of a volume with a quota, whose files a guest has");
    }
    const words = types.text("path", path).split("/").filter((it) => it !== "" && it !== ".");
    if (words.includes("..") || path.includes("\0")) {
      throw new SandboxFsError(`'${path}': leaves the volume`);
    }
    try {
      return await descend(this.root, words, act, parents);
    } catch (error) {
      const { code } = /** @type {NodeJS.ErrnoException} */ (error);
      if (code === "ENOENT") throw new PathNotFoundError(`'${path}': no such file or directory`);
      if (error instanceof SandboxFsError || code === undefined) throw error;
      throw new SandboxFsError(`'${path}': ${code}`, { cause: error });
    }
  }
}

/**
 * Acts on a path whose directories are opened one by one. `/proc/self/fd` stands for openat(2).
 *
 * @template T
 * @param {string} directory
 * @param {string[]} words
 * @param {(at: string) => Promise<T>} act
 * @param {boolean} parents
 * @returns {Promise<T>}
 */
async function descend(directory, words, act, parents) {
  // A path is not joined by `join`, which would remove a dot at its end.
  return inDirectory(directory, async (at) => {
    const [first = ".", ...rest] = words;
    if (rest.length === 0) return act(`${at}/${first}`);
    if (parents) await makeDirectory(`${at}/${first}`);
    return descend(`${at}/${first}`, rest, act, parents);
  });
}

/**
 * Opens a directory that is no link, and acts on it by its descriptor.
 *
 * @template T
 * @param {string} path
 * @param {(at: string) => Promise<T>} act
 */
async function inDirectory(path, act) {
  const directory = await fs.open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  try {
    return await act(`/proc/self/fd/${directory.fd}`);
  } finally {
    await directory.close();
  }
}

/** @param {string} path */
async function makeDirectory(path) {
  try {
    await fs.mkdir(path);
  } catch (error) {
    const isThere = /** @type {NodeJS.ErrnoException} */ (error).code === "EEXIST";
    if (!isThere || !(await fs.lstat(path)).isDirectory()) throw error;
  }
}

/** Opens a regular file. A pipe that a guest has made blocks nothing. @param {string} path @param {number} flags */
async function openFile(path, flags) {
  const file = await fs.open(path, flags | O_NOFOLLOW | O_NONBLOCK, 0o644);
  if ((await file.stat()).isFile()) return file;
  await file.close();
  throw new SandboxFsError(`'${posix.basename(path)}': not a regular file`);
}

/** @param {string} path @returns {Promise<void>} */
async function removeTree(path) {
  await inDirectory(path, async (at) => {
    for (const name of await fs.readdir(at)) {
      const entry = join(at, name);
      if ((await fs.lstat(entry)).isDirectory()) await removeTree(entry);
      else await fs.unlink(entry);
    }
  });
  await fs.rmdir(path);
}

/** Contents of a file of a volume, in chunks. */
export class VolumeReadStream {
  /** @param {fs.FileHandle} file */
  constructor(file) {
    this.file = file;
    this.isOpen = true;
  }

  /** Returns the next chunk; `null` at the end. */
  async recv() {
    if (!this.isOpen) return null;
    const piece = Buffer.allocUnsafe(131072);
    // Node 18 reads nothing when the offset is left out.
    const { bytesRead } = await this.file.read(piece, 0, piece.length, null);
    if (bytesRead > 0) return piece.subarray(0, bytesRead);
    await this.close();
    return null;
  }

  /** Returns the rest. */
  async collect() {
    const pieces = [];
    for await (const data of this) pieces.push(data);
    return Buffer.concat(pieces);
  }

  /** Closes the file. */
  async close() {
    if (this.isOpen) await this.file.close();
    this.isOpen = false;
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

/** A file of a volume that is written in chunks. */
export class VolumeWriteSink {
  /** @param {fs.FileHandle} file */
  constructor(file) {
    this.file = file;
    this.isOpen = true;
  }

  /** Writes bytes, or text as UTF-8. @param {Bytes} data */
  async write(data) {
    await this.file.writeFile(types.buffer(data));
  }

  /** Closes the file. */
  async close() {
    if (this.isOpen) await this.file.close();
    this.isOpen = false;
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }
}

/** A volume. */
export class VolumeHandle {
  /** @param {Json} fields */
  constructor(fields) {
    this.name = String(fields.name);
    /** Size of the disk; `null` for the kind `dir`. @type {number | null} */
    this.quotaMib = fields.quota_mib ?? null;
    this.usedBytes = Number(fields.used_bytes ?? 0);
    /** @type {Record<string, string>} */
    this.labels = fields.labels ?? {};
    this.createdAt = date(fields.created_at);
    /** `disk` or `dir`. */
    this.kind = String(fields.kind ?? "dir");
    /** Path of the contents on the host. */
    this.path = String(fields.path ?? "");
  }

  /** Returns the files of the volume, from the host. */
  fs() {
    return new VolumeFs(this.path, this.kind);
  }

  /** Removes the volume. */
  async remove() {
    await Volume.remove(this.name);
  }
}

/** Builder of a volume. */
export class VolumeBuilder {
  /** @param {string} name */
  constructor(name) {
    this.name = types.text("name", name);
    /** @type {number | null} */
    this.size = null;
    /** @type {string[]} */
    this.options = [];
  }

  /** Makes a disk of this size instead of a directory. @param {number | types.Size} mib */
  quota(mib) {
    this.size = types.mebibytes("quota", mib);
    return this;
  }

  /**
   * Sets a label.
   *
   * @param {string} name
   * @param {string} value
   */
  label(name, value) {
    this.options.push(`--label=${types.text("label", name)}=${types.text("label", value)}`);
    return this;
  }

  /** Returns the arguments of the program. */
  build() {
    const kind = this.size === null ? ["--kind=dir"] : ["--kind=disk", `--size=${this.size}`];
    return ["volume", "create", "--quiet", ...kind, ...this.options, "--", this.name];
  }

  /** Creates the volume. */
  async create() {
    await Host.current().run(this.build());
    const { name, path, kind } = await Volume.get(this.name);
    return new Volume(name, path, kind);
  }
}

/** A named volume. */
export class Volume {
  /**
   * @param {string} name
   * @param {string} path
   * @param {string} kind
   */
  constructor(name, path, kind) {
    this.name = name;
    /** Path of the contents on the host. */
    this.path = path;
    this.kind = kind;
  }

  /** Returns the files of the volume, from the host. */
  fs() {
    return new VolumeFs(this.path, this.kind);
  }

  /** Returns a builder. @param {string} name */
  static builder(name) {
    return new VolumeBuilder(name);
  }

  /** Returns a volume. Throws VolumeNotFoundError. @param {string} name */
  static async get(name) {
    const args = ["volume", "inspect", "--format=json", "--", types.text("name", name)];
    return new VolumeHandle(await Host.current().json(args));
  }

  /** Returns all volumes, sorted by name. */
  static async list() {
    /** @type {Json[]} */
    const rows = await Host.current().json(["volume", "list", "--format=json"]);
    const found = [];
    for (const row of rows.filter((row) => !row.error)) {
      try {
        found.push(await Volume.get(String(row.name)));
      } catch (error) {
        // It was removed meanwhile.
        if (!(error instanceof VolumeNotFoundError)) throw error;
      }
    }
    return found;
  }

  /** Removes a volume and its contents. Throws VolumeNotFoundError. @param {string} name */
  static async remove(name) {
    const args = ["volume", "remove", "--quiet", "--", types.text("name", name)];
    await Host.current().run(args);
  }
}
