/** Sandboxes for tests: the image, and a check that the programs are there. */

import { once } from "node:events";
import { createServer } from "node:net";

import { Image } from "../src/index.js";

/** An image with a shell. */
export const IMAGE = process.env.MSB_TEST_IMAGE ?? "busybox:test";

/** Throws if the programs or the image are not there: a test is not passed over in silence. */
export async function needsPrograms() {
  await Image.get(IMAGE);
}

/** Returns a free port. */
export async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  server.close();
  return port;
}
