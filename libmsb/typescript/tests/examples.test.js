/** The examples, each run as its reader runs it. */

import assert from "node:assert/strict";
import { before, test } from "node:test";

import * as agentLoop from "../examples/agent-loop.js";
import * as backend from "../examples/backend.js";
import * as cancellation from "../examples/cancellation.js";
import * as dataFiles from "../examples/data-files.js";
import * as pool from "../examples/pool.js";
import * as streaming from "../examples/streaming.js";
import * as webServer from "../examples/web-server.js";
import { freePort, IMAGE, needsPrograms } from "./real.js";

before(needsPrograms);

test("an agent loop sees output, codes and cuts", async () => {
  const answers = ["echo 42 > /root/a", "cat /root/a; exit 3", "yes | head -n 9999"];
  const seen = await agentLoop.main(IMAGE, answers);
  assert.deepEqual(seen.slice(0, 2), ["exit code 0\n", "exit code 3\n42\n"]);
  assert.match(seen[2] ?? "", /\[cut\]$/);
});

test("data goes in and comes out", async () => {
  assert.equal(await dataFiles.main(IMAGE), "blue,2\nred,41\n");
});

test("a web server is reached", async () => {
  assert.equal(await webServer.main(IMAGE, await freePort()), "hello from the guest\n");
});

test("a pool serves tasks", async () => {
  assert.deepEqual(await pool.main(IMAGE), ["task 0", "task 1", "task 2"]);
});

test("events are streamed", async () => {
  assert.equal(await streaming.main(IMAGE), 4);
});

test("cancelled commands end", async () => {
  assert.equal(await cancellation.main(IMAGE), "none");
});

test("a backend reports reasons instead of errors", async () => {
  const { refused, missing, done } = await backend.main(IMAGE);
  assert.match(refused ?? "", /^\[/);
  assert.equal(missing, null);
  assert.deepEqual(done, { output: "a", exitCode: 5, truncated: false });
});
