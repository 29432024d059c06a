/** Snapshots: copies of the disk of a sandbox at one moment, with its image pinned by digest. */

import { readdir } from "node:fs/promises";
import { join, resolve } from "node:path";

import { RuntimeError, SnapshotNotFoundError } from "./errors.js";
import { date } from "./times.js";
import { Host } from "./tool.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./types.js").CallOptions} CallOptions */
/**
 * Result of a verification.
 *
 * @typedef {{ kind: "notRecorded" } | { kind: "verified", algorithm: string, digest: string }} Verification
 */

/** Builder of a snapshot. */
export class SnapshotBuilder {
  /** @param {string} source Name of the sandbox. */
  constructor(source) {
    this.source = types.text("source", source);
    /** @type {string | null} */
    this.chosenName = null;
    /** @type {string | null} */
    this.chosenPath = null;
    /** @type {string[]} */
    this.options = [];
  }

  /** Sets the name. @param {string} name */
  name(name) {
    this.chosenName = types.text("name", name);
    return this;
  }

  /** Sets the path of the new directory. @param {string} path */
  path(path) {
    // A path has a slash, which tells it from a name.
    this.chosenPath = resolve(types.text("path", path));
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

  /** Replaces a snapshot of that name. */
  force() {
    this.options.push("--force");
    return this;
  }

  /** Records a digest of the disk. */
  recordIntegrity() {
    this.options.push("--integrity");
    return this;
  }

  /** Returns the arguments of the program. */
  build() {
    const place = this.chosenPath ?? this.chosenName;
    if (place === null || (this.chosenPath !== null && this.chosenName !== null)) {
      throw new TypeError("give exactly one of name and path");
    }
    return { place, options: [`--from=${this.source}`, ...this.options] };
  }

  /** Creates the snapshot. The guest of a running sandbox is frozen. @param {CallOptions} [options] */
  async create(options) {
    const { place, options: given } = this.build();
    await Host.current().run(["snapshot", "create", "--quiet", ...given, "--", place], options);
    return Snapshot.open(place);
  }
}

/** An entry of the index of snapshots. */
export class SnapshotHandle {
  /** @param {Json} fields */
  constructor(fields) {
    /** @type {string} */
    this.digest = String(fields.digest);
    /** @type {string | null} */
    this.name = fields.name ?? null;
    /** @type {string | null} */
    this.parentDigest = fields.parent_digest ?? null;
    this.imageRef = String(fields.image_ref ?? "");
    this.format = String(fields.format ?? "");
    /** @type {bigint | null} */
    this.sizeBytes = fields.size_bytes == null ? null : BigInt(fields.size_bytes);
    this.createdAt = date(fields.created_at);
    this.path = String(fields.artifact_path ?? "");
  }

  /** Opens the snapshot. */
  async open() {
    return Snapshot.open(this.path);
  }

  /** Removes the snapshot. @param {{ force?: boolean }} [options] */
  async remove(options) {
    await Snapshot.remove(this.path, options);
  }
}

/** A snapshot of the disk of a sandbox. */
export class Snapshot {
  /** @param {Json} fields */
  constructor(fields) {
    this.path = String(fields.artifact_path ?? "");
    this.digest = String(fields.digest);
    this.sizeBytes = BigInt(fields.size_bytes ?? 0);
    this.imageRef = String(fields.image_ref ?? "");
    this.imageManifestDigest = String(fields.image_manifest_digest ?? "");
    this.format = String(fields.format ?? "");
    this.fstype = String(fields.fstype ?? "");
    /** @type {string | null} */
    this.parent = fields.parent_digest ?? null;
    /** Time of the creation, RFC 3339. */
    this.createdAt = String(fields.created_at ?? "");
    /** @type {[string, string][]} */
    this.labels = Object.entries(fields.labels ?? {});
    /** @type {string | null} */
    this.sourceSandbox = fields.source_sandbox ?? null;
  }

  /** Compares the disk with its recorded digest. Throws SnapshotIntegrityError. */
  async verify() {
    const { verification, integrity } = await document(this.path, "--verify");
    return /** @type {Verification} */ (
      verification === "verified"
        ? { kind: "verified", algorithm: integrity?.algorithm ?? "", digest: integrity?.digest ?? "" }
        : { kind: "notRecorded" }
    );
  }

  /** Returns a builder. @param {string} source Name of the sandbox. */
  static builder(source) {
    return new SnapshotBuilder(source);
  }

  /** Opens a snapshot by its name, its digest, or a path that contains a slash. @param {string} name */
  static async open(name) {
    return new Snapshot(await document(name));
  }

  /** Returns an entry of the index. Throws SnapshotNotFoundError. @param {string} name */
  static async get(name) {
    return new SnapshotHandle(await document(name));
  }

  /** Returns the index, the newest snapshot first. */
  static async list() {
    /** @type {Json[]} */
    const rows = await Host.current().json(["snapshot", "list", "--format=json"]);
    return rows.map((row) => new SnapshotHandle(row));
  }

  /** Returns the snapshots in a directory, sorted by name. @param {string} directory */
  static async listDir(directory) {
    const found = [];
    const entries = await readdir(resolve(directory), { withFileTypes: true });
    for (const name of entries.filter((it) => it.isDirectory()).map((it) => it.name).sort()) {
      try {
        found.push(await Snapshot.open(join(resolve(directory), name)));
      } catch (error) {
        // Another directory, or a snapshot that was removed meanwhile.
        if (!(error instanceof SnapshotNotFoundError)) throw error;
      }
    }
    return found;
  }

  /**
   * Removes a snapshot; with `force` also the parent of others, or a damaged one.
   *
   * @param {string} name
   * @param {{ force?: boolean }} [options]
   */
  static async remove(name, { force = false } = {}) {
    const options = force ? ["--force"] : [];
    const args = ["snapshot", "remove", "--quiet", ...options, "--", types.text("name", name)];
    await Host.current().run(args);
  }

  /** Adds the snapshots in a directory to the index. Returns their number. @param {string} directory */
  static async reindex(directory) {
    const args = ["snapshot", "reindex", "--", resolve(directory)];
    const count = /^\S+ (\d+)/.exec((await Host.current().run(args)).toString())?.[1];
    if (count === undefined) throw new RuntimeError("'msb snapshot reindex' printed no number");
    return Number(count);
  }

  /**
   * Writes a snapshot as an archive, which appears when it is complete.
   *
   * @param {string} name
   * @param {string} out
   * @param {CallOptions & { withParents?: boolean, withImage?: boolean, plainTar?: boolean }} [options]
   */
  static async export(name, out, { withParents, withImage, plainTar, signal } = {}) {
    const given = {
      "--with-parents": withParents,
      "--with-image": withImage,
      "--plain-tar": plainTar,
    };
    const options = Object.entries(given).filter(([, isGiven]) => isGiven).map(([word]) => word);
    const args = ["snapshot", "export", ...options, "--", types.text("name", name), resolve(out)];
    await Host.current().run(args, { signal });
  }

  /**
   * Reads the snapshots of an archive. Returns the last one, which has the others as parents.
   *
   * @param {string} archive
   * @param {CallOptions & { dest?: string }} [options]
   */
  static async import(archive, { dest, signal } = {}) {
    const places = [archive, ...(dest === undefined ? [] : [dest])].map((it) => resolve(it));
    const output = await Host.current().run(["snapshot", "import", "--", ...places], { signal });
    const last = output.toString().split("\n").filter(Boolean).at(-1);
    if (last === undefined) throw new RuntimeError("'msb snapshot import' printed no snapshot");
    return Snapshot.get(last);
  }
}

/** @param {string} name @param {string[]} options @returns {Promise<Json>} */
async function document(name, ...options) {
  const args = ["snapshot", "inspect", "--format=json", ...options, "--"];
  return Host.current().json([...args, types.text("name", name)]);
}
