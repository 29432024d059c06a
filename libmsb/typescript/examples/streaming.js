/**
 * Streaming: the output of a command while it runs.
 *
 * usage: node streaming.js [IMAGE]
 */

import { pathToFileURL } from "node:url";

import { Sandbox } from "msb-sdk";

const SCRIPT = "for n in 1 2 3; do echo step $n; sleep 0.2; done; echo done >&2; exit 4";

/** Prints each event. Returns the exit code of the command. @param {string} image */
export async function main(image) {
  const sandbox = await Sandbox.builder("example-streaming").image(image).replace().create();
  try {
    for await (const event of await sandbox.shellStream(SCRIPT)) {
      switch (event.kind) {
        case "stdout":
        case "stderr":
          console.log(`${event.kind}: ${event.data.toString().trim()}`);
          break;
        case "exited":
          return event.code;
        default:
          break;
      }
    }
    return -1;
  } finally {
    await sandbox.discard();
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  console.log("exit code:", await main(process.argv[2] ?? "python:3.12-slim"));
}
