/** Sessions as over SSH, without SSH: login shells and files of a sandbox. */

import { ExecHandle, run } from "./command.js";
import { RuntimeError, SandboxFsError, unsupported } from "./errors.js";
import { Command } from "./exec-options.js";
import { SandboxFs } from "./files.js";
import { attach, inherit } from "./terminal.js";

/** @typedef {import("./types.js").Bytes} Bytes */
/** @typedef {import("./client.js").Client} Client */
/** @typedef {import("./tool.js").Host} Host */
/** @typedef {import("./types.js").CallOptions} CallOptions */
/**
 * Result of a command.
 *
 * @typedef {{ status: number, success: boolean, stdout: Buffer, stderr: Buffer }} SshOutput
 */

/** Files of a sandbox, as a user. */
export class SftpClient {
  /** @param {SandboxFs} fs */
  constructor(fs) {
    this.fs = fs;
  }

  /** Returns the contents of a file. @param {string} path */
  async read(path) {
    return this.fs.read(path);
  }

  /** Writes a file. @param {string} path @param {Bytes} data */
  async write(path, data) {
    await this.fs.write(path, data);
  }

  /** Returns the entries of a directory. @param {string} path */
  async list(path) {
    return this.fs.list(path);
  }

  /** Creates a directory. @param {string} path */
  async mkdir(path) {
    await this.fs.mkdir(path);
  }

  /** Removes a file. @param {string} path */
  async removeFile(path) {
    await this.fs.remove(path);
  }

  /** Removes an empty directory. @param {string} path */
  async removeDir(path) {
    await this.fs.removeEmptyDir(path);
  }

  /** Renames a file. @param {string} source @param {string} target */
  async rename(source, target) {
    await this.fs.rename(source, target);
  }

  /** Returns the absolute path without symbolic links. @param {string} path */
  async realPath(path) {
    return this.fs.realPath(path);
  }

  /** Returns the target of a symbolic link. @param {string} path */
  async readLink(path) {
    return this.fs.readLink(path);
  }

  /** Creates a symbolic link. @param {string} target @param {string} link */
  async symlink(target, link) {
    await this.fs.symlink(target, link);
  }

  /** Ends the session. */
  async close() {
    this.fs.close();
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }
}

/** A session as a user: commands run as at a login. */
export class SshClient {
  /**
   * @param {Client} client
   * @param {Host} host
   * @param {string} name
   * @param {{ user: string, term: string | undefined, sftp: boolean }} options
   */
  constructor(client, host, name, options) {
    this.client = client;
    this.host = host;
    this.name = name;
    this.options = options;
    /** @type {SftpClient[]} */
    this.files = [];
  }

  /**
   * Runs a command line by the user's shell.
   *
   * @param {string} command
   * @param {CallOptions & { tty?: boolean }} [options]
   * @returns {Promise<SshOutput>}
   */
  async exec(command, options = {}) {
    const output = await run(this.client, this.login(command, options));
    const { code, success } = output;
    return { status: code, success, stdout: output.stdoutBytes(), stderr: output.stderrBytes() };
  }

  /**
   * Starts a command line by the user's shell.
   *
   * @param {string} command
   * @param {CallOptions & { tty?: boolean }} [options]
   */
  async execStream(command, options = {}) {
    return ExecHandle.start(this.client, this.login(command, options));
  }

  /**
   * Connects the terminal of this process to a shell. Returns its exit code.
   *
   * @param {{ term?: string, detachKeys?: string }} [options]
   */
  async attach({ term = this.options.term, detachKeys } = {}) {
    return attach(this.host, this.name, ["/bin/sh", "-l"], {
      user: this.options.user,
      ...(term !== undefined && { env: { TERM: term } }),
      ...(detachKeys !== undefined && { detachKeys }),
    });
  }

  /** Opens a session for files. */
  async sftp() {
    if (!this.options.sftp) throw new SandboxFsError("the session was opened without files");
    const fs = new SandboxFs(this.client, this.host, this.name, this.options.user);
    const files = new SftpClient(fs);
    this.files.push(files);
    return files;
  }

  /** Ends the sessions for files. */
  async close() {
    for (const files of this.files) await files.close();
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }

  /** @private @param {string} line @param {CallOptions & { tty?: boolean }} options */
  login(line, { tty, signal }) {
    const { user, term } = this.options;
    const env = term === undefined ? undefined : { TERM: term };
    return new Command(line, { user, env, tty, signal }, true);
  }
}

/** An SSH server for one connection, on standard input and output of this process. */
export class SshServer {
  /**
   * @param {Host} host
   * @param {string} name
   */
  constructor(host, name) {
    this.host = host;
    this.name = name;
  }

  /** Serves the connection to its end. */
  async serveStdio() {
    const code = await inherit(this.host, ["ssh", "serve", "--stdio", this.name]);
    if (code !== 0) throw new RuntimeError(`'msb ssh serve' failed with exit code ${code}`);
  }

  /** Ends the server. It holds nothing between connections. */
  async close() {}

  async [Symbol.asyncDispose]() {
    await this.close();
  }
}

/** Sessions as over SSH. */
export class SandboxSsh {
  /**
   * @param {Client} client
   * @param {Host} host
   * @param {string} name
   */
  constructor(client, host, name) {
    this.client = client;
    this.host = host;
    this.name = name;
  }

  /**
   * Opens a session as a user.
   *
   * @param {{ user?: string, term?: string, sftp?: boolean }} [options]
   */
  async connect({ user = "root", term, sftp = true } = {}) {
    return new SshClient(this.client, this.host, this.name, { user, term, sftp });
  }

  /**
   * Returns a server with the keys of the state directory, msb-ssh(1).
   *
   * @param {{
   *   hostKeyPath?: string, authorizedKeysPath?: string, user?: string, sftp?: boolean,
   * }} [options]
   */
  async server({ hostKeyPath, authorizedKeysPath, user, sftp = true } = {}) {
    const given = {
      hostKeyPath: hostKeyPath !== undefined,
      authorizedKeysPath: authorizedKeysPath !== undefined,
      user: user !== undefined,
      sftp: !sftp,
    };
    const refused = Object.entries(given).filter(([, isGiven]) => isGiven).map(([name]) => name);
    if (refused.length > 0) throw unsupported(...refused);
    return new SshServer(this.host, this.name);
  }
}
