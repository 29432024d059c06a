/**
 * A backend for agent frameworks: execute commands, upload and download files.
 *
 * Frameworks differ in names and agree on the calls: a command with its cut output and exit code,
 * and files by path and bytes. Adapt the names of `Backend` to those of the framework.
 *
 * usage: node backend.js [IMAGE]
 */

import { posix } from "node:path";
import { pathToFileURL } from "node:url";

import { ExecTimeoutError, MicrosandboxError, Sandbox } from "msb-sdk";

/** A sandbox as a framework sees it. No call throws: a model reads the reason. */
export class Backend {
  /** @param {Sandbox} sandbox @param {{ timeout: number, maxOutputBytes: number }} limits */
  constructor(sandbox, limits = { timeout: 120_000, maxOutputBytes: 100_000 }) {
    this.sandbox = sandbox;
    this.limits = limits;
  }

  /**
   * Runs a command line.
   *
   * @param {string} command
   * @returns {Promise<{ output: string, exitCode: number | null, truncated: boolean }>}
   */
  async execute(command) {
    try {
      const done = await this.sandbox.shell(command, this.limits);
      const output = done.stdout() + done.stderr();
      return { output, exitCode: done.code, truncated: done.truncated };
    } catch (error) {
      if (error instanceof ExecTimeoutError) {
        const output = `${error.stdout}\n[timed out after ${this.limits.timeout} ms]`;
        return { output, exitCode: null, truncated: false };
      }
      return { output: reason(error), exitCode: null, truncated: false };
    }
  }

  /** Writes a file and the directories above it. @param {string} path @param {Uint8Array} data */
  async upload(path, data) {
    try {
      await this.sandbox.fs().mkdir(posix.dirname(path));
      await this.sandbox.fs().write(path, data);
      return null;
    } catch (error) {
      return reason(error);
    }
  }

  /** Reads a file; `null` if it cannot be read. @param {string} path */
  async download(path) {
    try {
      return await this.sandbox.fs().read(path);
    } catch (error) {
      reason(error);
      return null;
    }
  }
}

/** @param {unknown} error */
function reason(error) {
  if (!(error instanceof MicrosandboxError)) throw error;
  return `[${error.code}: ${error.message}]`;
}

/** Uses the backend as a framework does. @param {string} image */
export async function main(image) {
  const sandbox = await Sandbox.builder("example-backend").image(image).replace().create();
  try {
    const backend = new Backend(sandbox, { timeout: 30_000, maxOutputBytes: 4096 });
    const refused = await backend.upload("/proc/none/f", Buffer.from("b"));
    await backend.upload("/root/in/a", Buffer.from("a"));
    const missing = await backend.download("/none");
    return { refused, missing, done: await backend.execute("cat /root/in/a; exit 5") };
  } finally {
    await sandbox.discard();
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  console.log(await main(process.argv[2] ?? "alpine:3.20"));
}
