/**
 * Cancellation: time limits, partial output, and commands that end with their caller.
 *
 * usage: node cancellation.js [IMAGE]
 */

import { pathToFileURL } from "node:url";

import { ExecTimeoutError, Sandbox } from "msb-sdk";

/** Runs a command with a time limit, and aborts another one. @param {string} image */
export async function main(image) {
  const sandbox = await Sandbox.builder("example-cancel").image(image).replace().create();
  try {
    try {
      await sandbox.shell("echo half; sleep 600", { timeout: 1000 });
    } catch (error) {
      if (!(error instanceof ExecTimeoutError)) throw error;
      console.log(`timed out after ${error.timeoutMs} ms with '${error.stdout}'`);
    }
    try {
      await sandbox.exec("sleep", ["601"], { signal: AbortSignal.timeout(500) });
    } catch (error) {
      console.log(String(error));
    }
    const left = await sandbox.shell("ps | grep '[s]leep 60' || echo none");
    return left.stdout().trim();
  } finally {
    await sandbox.discard();
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  console.log("left in the guest:", await main(process.argv[2] ?? "alpine:3.20"));
}
