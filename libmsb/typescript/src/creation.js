/** Creation and start of sandboxes by the programs, and removal of what a process has created. */

import { ImageNotFoundError, ImagePullFailedError, SandboxNotFoundError } from "./errors.js";
import { Bond } from "./lifetime.js";
import { Sandbox } from "./sandbox.js";
import { date } from "./times.js";
import { Host } from "./tool.js";

/** @typedef {import("./builder.js").SandboxConfig} SandboxConfig */

/**
 * Creates and starts a sandbox.
 *
 * @param {SandboxConfig} config
 * @param {AbortSignal} [signal]
 */
export async function create(config, signal) {
  const host = Host.current();
  const began = Date.now();
  try {
    const { socket } = await host.runBonded(
      ["create", `--name=${config.name}`, "--from-microsandbox=-", ...config.options].concat(
        config.detached ? [] : ["--bond-fd=3"],
      ),
      {
        stdin: Buffer.from(JSON.stringify(config.document)),
        bond: !config.detached,
        more: config.environment,
        signal,
      },
    );
    const bond = socket ? new Bond(socket) : null;
    return new Sandbox(host, config.name, bond, { began, ended: Date.now() });
  } catch (error) {
    if (signal?.aborted) await removeMade(host, config.name, { began, ended: Infinity });
    const isPulled = config.document.pull_policy !== "Never";
    if (error instanceof ImageNotFoundError && isPulled) {
      throw new ImagePullFailedError(error.message, { hint: error.hint });
    }
    throw error;
  }
}

/**
 * Starts a sandbox that is not running.
 *
 * @param {string} name
 * @param {boolean} detached
 * @param {AbortSignal} [signal]
 */
export async function start(name, detached, signal) {
  const host = Host.current();
  const bonded = detached ? [] : ["--bond-fd=3"];
  const args = ["start", "--quiet", ...bonded, "--", name];
  const { socket } = await host.runBonded(args, { bond: !detached, signal });
  return new Sandbox(host, name, socket ? new Bond(socket) : null);
}

/**
 * Kills and removes a sandbox, if it was created between two times: ours, and no later one.
 *
 * @param {Host} host
 * @param {string} name
 * @param {{ began: number, ended: number }} made
 */
export async function removeMade(host, name, { began, ended }) {
  try {
    const document = await host.json(["inspect", "--format=json", "--", name]);
    const created = date(document.created_at)?.getTime() ?? 0;
    if (created < began - 1 || created > ended) return;
    await host.run(["rm", "--force", "--", name]);
  } catch (error) {
    if (!(error instanceof SandboxNotFoundError)) throw error;
  }
}
