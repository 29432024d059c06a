/** Commands on the terminal of this process. */

import { spawn } from "node:child_process";

import { RuntimeError } from "./errors.js";

/** @typedef {import("./tool.js").Host} Host */
/** @typedef {import("./exec-options.js").ExecOptions & { detachKeys?: string }} AttachOptions */

/**
 * Runs a command on standard input and output of this process. Returns its exit code.
 *
 * With `detachKeys` the command is a job, which continues after these keys.
 *
 * @param {Host} host
 * @param {string} name
 * @param {readonly string[]} words
 * @param {AttachOptions} options
 */
export async function attach(host, name, words, { cwd, user, env, rlimits, detachKeys }) {
  const given = [];
  if (process.stdin.isTTY && process.stdout.isTTY) given.push("--tty");
  if (cwd !== undefined) given.push(`--workdir=${cwd}`);
  if (user !== undefined) given.push(`--user=${user}`);
  for (const [variable, value] of Object.entries(env ?? {})) given.push(`--env=${variable}=${value}`);
  for (const { resource, soft, hard } of rlimits ?? []) {
    given.push(`--rlimit=${resource}=${soft ?? "unlimited"}:${hard ?? "unlimited"}`);
  }
  if (detachKeys === undefined) {
    return inherit(host, ["exec", "--interactive", ...given, name, "--", ...words]);
  }
  const args = ["exec", "--detach", "--interactive", ...given, name, "--", ...words];
  const job = (await host.run(args)).toString().trim();
  return inherit(host, ["attach", "--logs", `--detach-keys=${detachKeys}`, name, job]);
}

/**
 * Runs a program on the descriptors of this process. Returns its exit code.
 *
 * @param {Host} host
 * @param {string[]} args
 * @returns {Promise<number>}
 */
export function inherit(host, args) {
  return new Promise((resolve, reject) => {
    const environment = host.environment();
    delete environment.MSB_ERRORS;
    const child = spawn(host.program, args, { stdio: "inherit", env: environment });
    child.once("error", reject);
    child.once("exit", (code, signal) => {
      if (code === 125 || signal) reject(new RuntimeError(`'msb ${args[0]}' failed`));
      else resolve(code ?? 0);
    });
  });
}
