/** Builders of mounts, changes of files, roots, registries and inits. */

import { statSync } from "node:fs";
import { extname, resolve } from "node:path";

import { unsupported } from "./errors.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */

/** @type {Record<string, string>} */
const FORMATS = { qcow2: "Qcow2", raw: "Raw", vmdk: "Vmdk" };

/** Returns the format that the suffix of a disk image names. @param {string} path */
function formatOf(path) {
  return FORMATS[extname(path).slice(1).toLowerCase()] ?? "Raw";
}

/** Builder of a mount. */
export class MountBuilder {
  /** @param {string} guest Path in the guest. */
  constructor(guest) {
    this.guest = types.text("guest", guest);
    /** @type {Json} */
    this.source = null;
    /** @type {Json} */
    this.policies = {};
    this.options = { readonly: false, noexec: false, nosuid: false, nodev: false };
  }

  /** Mounts a directory or file of the host. @param {string} path */
  bind(path) {
    return this.set({ type: "Bind", host: resolve(types.text("path", path)) });
  }

  /** Mounts a named volume, which is created if it is missing. @param {string} name */
  named(name) {
    return this.set({ type: "Named", name: types.text("name", name) });
  }

  /** Mounts memory. */
  tmpfs() {
    return this.set({ type: "Tmpfs", size_mib: this.source?.size_mib ?? null });
  }

  /** Mounts a disk image. @param {string} path */
  disk(path) {
    const { format = formatOf(path), fstype = null } = this.source ?? {};
    return this.set({ type: "DiskImage", host: resolve(path), format, fstype });
  }

  /** Sets the format of a disk image; the suffix names it otherwise. @param {string} format */
  format(format) {
    return this.set({ format: FORMATS[types.word(types.DiskImageFormats, "format", format)] });
  }

  /** Sets the file system of a disk image. @param {string} fstype */
  fstype(fstype) {
    return this.set({ fstype: types.text("fstype", fstype) });
  }

  /** Mounts read-only. */
  readonly() {
    return this.option("readonly");
  }

  /** Does not run programs of the mount. */
  noexec() {
    return this.option("noexec");
  }

  /** Ignores set-user-ID bits. */
  nosuid() {
    return this.option("nosuid");
  }

  /** Ignores device files. */
  nodev() {
    return this.option("nodev");
  }

  /** Sets the size of memory in MiB. @param {number | types.Size} size */
  size(size) {
    return this.set({ size_mib: types.mebibytes("size", size) });
  }

  /** Sets how owners and modes are kept. @param {types.StatVirtualization} mode */
  statVirtualization(mode) {
    const list = types.StatVirtualizations;
    this.policies.stat_virtualization = types.word(list, "statVirtualization", mode);
    return this;
  }

  /** Sets the permissions of new files on the host. @param {types.HostPermission} mode */
  hostPermissions(mode) {
    const list = types.HostPermissions;
    this.policies.host_permissions = types.word(list, "hostPermissions", mode);
    return this;
  }

  /** Returns the form of a stored configuration. @returns {Json} */
  build() {
    const type = this.source?.type;
    if (type === undefined) throw new TypeError("a mount needs bind, named, tmpfs or disk");
    const hasPolicies = type === "Bind" || type === "Named";
    if (!hasPolicies && Object.keys(this.policies).length > 0) {
      throw new RangeError("this mount has no statVirtualization or hostPermissions");
    }
    return {
      guest: this.guest,
      options: { ...this.options },
      ...(hasPolicies && {
        stat_virtualization: "strict",
        host_permissions: "private",
        ...this.policies,
      }),
      ...this.source,
    };
  }

  /** @private @param {Json} fields */
  set(fields) {
    this.source = { ...this.source, ...fields };
    return this;
  }

  /** @private @param {keyof MountBuilder["options"]} name */
  option(name) {
    this.options[name] = true;
    return this;
  }
}

/** @typedef {{ mode?: number | null, replace?: boolean }} PatchOptions */

/** Builder of changes of files before the first boot. */
export class PatchBuilder {
  constructor() {
    /** @type {Json[]} */
    this.patches = [];
  }

  /**
   * Writes a text file.
   *
   * @param {string} path
   * @param {string} content
   * @param {PatchOptions} [options]
   */
  text(path, content, { mode = null, replace = false } = {}) {
    return this.add("Text", { path, content: types.text("content", content), mode, replace });
  }

  /**
   * Writes a file.
   *
   * @param {string} path
   * @param {Uint8Array} content
   * @param {PatchOptions} [options]
   */
  file(path, content, { mode = null, replace = false } = {}) {
    return this.add("File", { path, content: [...content], mode, replace });
  }

  /**
   * Copies a file of the host.
   *
   * @param {string} src
   * @param {string} dst
   * @param {PatchOptions} [options]
   */
  copyFile(src, dst, { mode = null, replace = false } = {}) {
    return this.add("CopyFile", { src: resolve(src), dst, mode, replace });
  }

  /**
   * Copies a directory of the host.
   *
   * @param {string} src
   * @param {string} dst
   * @param {{ replace?: boolean }} [options]
   */
  copyDir(src, dst, { replace = false } = {}) {
    return this.add("CopyDir", { src: resolve(src), dst, replace });
  }

  /**
   * Creates a symbolic link.
   *
   * @param {string} target
   * @param {string} link
   * @param {{ replace?: boolean }} [options]
   */
  symlink(target, link, { replace = false } = {}) {
    return this.add("Symlink", { target, link, replace });
  }

  /**
   * Creates a directory and its parents.
   *
   * @param {string} path
   * @param {{ mode?: number | null }} [options]
   */
  mkdir(path, { mode = null } = {}) {
    return this.add("Mkdir", { path, mode });
  }

  /** Removes a file or directory, if it exists. @param {string} path */
  remove(path) {
    return this.add("Remove", { path });
  }

  /**
   * Appends to a file.
   *
   * @param {string} path
   * @param {string} content
   */
  append(path, content) {
    return this.add("Append", { path, content: types.text("content", content) });
  }

  /** Returns the changes. @returns {Json[]} */
  build() {
    return [...this.patches];
  }

  /** @private @param {string} kind @param {Json} fields */
  add(kind, fields) {
    this.patches.push({ [kind]: fields });
    return this;
  }
}

/** Builder of a root. */
export class ImageBuilder {
  constructor() {
    /** @type {Json} */
    this.fields = {};
  }

  /** Uses an image. @param {string} reference */
  oci(reference) {
    this.fields.oci = types.text("reference", reference);
    return this;
  }

  /** Sets the size of the writable disk in MiB. @param {number | types.Size} size */
  upperSize(size) {
    this.fields.upper = types.mebibytes("upperSize", size);
    return this;
  }

  /** Uses a disk image of the host. @param {string} path */
  disk(path) {
    this.fields.disk = resolve(types.text("path", path));
    return this;
  }

  /** Uses a directory of the host. @param {string} path */
  bind(path) {
    this.fields.bind = resolve(types.text("path", path));
    return this;
  }

  /** Sets the file system of the disk image. @param {string} fstype */
  fstype(fstype) {
    this.fields.fstype = types.text("fstype", fstype);
    return this;
  }

  /** Returns the form of a stored configuration. @returns {Json} */
  build() {
    const { oci, upper = null, disk, bind, fstype = null } = this.fields;
    if ([oci, disk, bind].filter((given) => given !== undefined).length !== 1) {
      throw new TypeError("a root is one of oci, disk and bind");
    }
    if (oci !== undefined) return { Oci: { reference: oci, upper_size_mib: upper } };
    if (bind !== undefined) return { Bind: bind };
    return { DiskImage: { path: disk, format: formatOf(disk), fstype } };
  }
}

/**
 * Returns the root of a text or an object. A text that starts like a path is one.
 *
 * @param {string | Json} value
 * @returns {Json}
 */
export function intoRootfsSource(value) {
  if (typeof value !== "string") {
    if (typeof value !== "object" || value === null) throw new TypeError("image must be a text");
    return value;
  }
  const builder = new ImageBuilder();
  if (!/^(\/|\.\/|\.\.\/|\.$|\.\.$)/.test(value)) return builder.oci(value).build();
  const isDirectory = statSync(value, { throwIfNoEntry: false })?.isDirectory();
  return (isDirectory ? builder.bind(value) : builder.disk(value)).build();
}

/** Builder of the settings of a registry. */
export class RegistryBuilder {
  constructor() {
    /** @type {{ username: string, password: string } | null} */
    this.login = null;
  }

  /**
   * Sets the credentials for one pull. They are not stored.
   *
   * @param {{ username: string, password: string }} login
   */
  auth({ username, password }) {
    this.login = {
      username: types.text("username", username),
      password: types.text("password", password),
    };
    return this;
  }

  /** Allows plain HTTP. `msb image pull --insecure` serves this instead. */
  insecure() {
    throw unsupported("registry.insecure");
  }

  /** Trusts certificates. The host's certificates serve this instead. @param {unknown} _pem */
  caCerts(_pem) {
    throw unsupported("registry.caCerts");
  }

  /** Trusts certificates of a file. @param {string} _path */
  caCertsPath(_path) {
    throw unsupported("registry.caCertsPath");
  }

  /** Returns the form of a stored configuration. @returns {Json} */
  build() {
    return this.login ? { Basic: this.login } : "Anonymous";
  }
}

/** Builder of the init of the image as the first process of the guest. */
export class InitBuilder {
  /** @param {string} cmd */
  constructor(cmd) {
    /** @type {{ cmd: string, args: string[], env: [string, string][] }} */
    this.init = { cmd: types.text("cmd", cmd), args: [], env: [] };
  }

  /** Adds an argument. @param {string} arg */
  arg(arg) {
    this.init.args.push(types.text("arg", arg));
    return this;
  }

  /** Adds arguments. @param {Iterable<string>} args */
  args(args) {
    this.init.args.push(...types.texts("args", args));
    return this;
  }

  /**
   * Sets a variable.
   *
   * @param {string} name
   * @param {string} value
   */
  env(name, value) {
    this.init.env.push([types.text("env", name), types.text("env", value)]);
    return this;
  }

  /** Sets variables. @param {Record<string, string>} env */
  envs(env) {
    for (const [name, value] of Object.entries(env)) this.env(name, value);
    return this;
  }

  /** Returns the form of a stored configuration. @returns {Json} */
  build() {
    return structuredClone(this.init);
  }
}
