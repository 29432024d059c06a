/**
 * A pool of sandboxes from one snapshot, which are ready before they are needed.
 *
 * usage: node pool.js [IMAGE]
 *
 * The snapshot is prepared once. Each sandbox serves one task and is then replaced by a new one, so
 * that tasks share nothing.
 */

import { pathToFileURL } from "node:url";

import { Sandbox, Snapshot } from "msb-sdk";

const SNAPSHOT = "example-pool";

/** Sandboxes that are ready. */
class Pool {
  /** @param {number} size */
  constructor(size) {
    this.count = 0;
    /** @type {Promise<Sandbox>[]} */
    this.ready = [];
    for (let number = 0; number < size; number += 1) this.add();
  }

  add() {
    const name = `example-pool-${this.count}`;
    this.count += 1;
    this.ready.push(Sandbox.builder(name).fromSnapshot(SNAPSHOT).replace().create());
  }

  /**
   * Lends a sandbox, which is removed afterwards.
   *
   * @template T
   * @param {(sandbox: Sandbox) => Promise<T>} work
   */
  async use(work) {
    this.add();
    const sandbox = await /** @type {Promise<Sandbox>} */ (this.ready.shift());
    try {
      return await work(sandbox);
    } finally {
      await sandbox.discard();
    }
  }

  /** Removes the sandboxes that wait. */
  async close() {
    for (const made of this.ready.splice(0)) await (await made).discard();
  }
}

/** Creates the snapshot, with what every task needs. @param {string} image */
async function prepare(image) {
  const sandbox = await Sandbox.builder("example-pool-setup").image(image).replace().create();
  try {
    await sandbox.fs().write("/root/task", "#!/bin/sh\necho task $1\n", { mode: 0o755 });
    await sandbox.stop();
    await Snapshot.builder(sandbox.name).name(SNAPSHOT).force().create();
  } finally {
    await sandbox.discard();
  }
}

/** Runs three tasks by a pool of two. Returns their output. @param {string} image */
export async function main(image) {
  await prepare(image);
  const pool = new Pool(2);
  try {
    const work = (/** @type {number} */ number) =>
      pool.use(async (it) => (await it.exec("/root/task", [String(number)])).stdout().trim());
    return await Promise.all([0, 1, 2].map(work));
  } finally {
    await pool.close();
    await Snapshot.remove(SNAPSHOT);
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  console.log(await main(process.argv[2] ?? "alpine:3.20"));
}
