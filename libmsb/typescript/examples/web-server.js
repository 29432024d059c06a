/**
 * A web server in a sandbox, with a port of the host.
 *
 * usage: node web-server.js [IMAGE [PORT]]
 */

import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

import { Sandbox } from "msb-sdk";

const SERVER = "mkdir -p /www; echo hello from the guest > /www/index.html; httpd -f -p 80 -h /www";

/** Serves a page. Returns its text. @param {string} image @param {number} port */
export async function main(image, port) {
  const sandbox = await Sandbox.builder("example-web").image(image).port(port, 80).replace()
    .create();
  try {
    await sandbox.startJob("sh", ["-c", SERVER]);
    for (let attempt = 0; attempt < 100; attempt += 1) {
      try {
        return await (await fetch(`http://127.0.0.1:${port}/`)).text();
      } catch {
        await sleep(100);
      }
    }
    throw new Error("the server did not start");
  } finally {
    await sandbox.discard();
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  console.log(await main(process.argv[2] ?? "busybox", Number(process.argv[3] ?? 8080)));
}
