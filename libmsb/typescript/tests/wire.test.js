/** The wire protocol with old, hostile and dying peers. */

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { ExecHandle, run } from "../src/command.js";
import * as errors from "../src/errors.js";
import { Command } from "../src/exec-options.js";
import * as frames from "../src/frames.js";
import { Session } from "../src/sftp.js";
import { fieldsOf } from "../src/tool.js";
import { fixture, withPeer } from "./peer.js";

const FRAMES = fixture("frames.json");

/** @param {import("../src/exec-options.js").ExecOptions} [options] */
const command = (options) => new Command("cmd", { log: false, ...options });

/** Receives until the end of a call. @param {import("../src/wire.js").Call} call */
async function drain(call) {
  for (;;) await call.receive();
}

test("frames have the bytes of the fixtures", () => {
  for (const { what, stream, kind, payload, channel, flags, bytes } of FRAMES.frames) {
    const made = frames.frame(stream, kind, Buffer.from(payload, "hex"), channel, flags);
    assert.equal(made.toString("hex"), bytes, what);
  }
});

test("a long message is split and a longer one refused", () => {
  const sent = frames.message(3, frames.OPEN, { op: "x".repeat(100_000) });
  assert.equal(sent.subarray(0, 12).toString("hex"), "000100000000000302000001");
  assert.equal(sent.subarray(12 + 65536 + 8, 12 + 65536 + 12).toString("hex"), "02000000");
  const op = "x".repeat(frames.MESSAGE_BYTES_MAX);
  assert.throws(() => frames.message(3, frames.OPEN, { op }), RangeError);
});

test("each violation ends the connection with a protocol error", async () => {
  for (const { what, bytes } of FRAMES.violations) {
    await withPeer(
      async (peer) => {
        await peer.opened();
        peer.write(Buffer.from(bytes, "hex"));
        await peer.idle();
      },
      async (client) => {
        const call = await client.call({ op: "exec" });
        await assert.rejects(drain(call), errors.ProtocolError, what);
      },
    );
  }
});

test("random bytes throw nothing but errors of the protocol", async () => {
  for (let round = 0; round < 60; round += 1) {
    const noise = randomBytes(1 + Math.floor(Math.random() * 4000));
    await withPeer(
      async (peer) => {
        await peer.opened();
        peer.write(noise);
        peer.socket.end();
        await peer.idle();
      },
      async (client) => {
        const call = await client.call({ op: "exec" });
        const name = /ProtocolError|SandboxNotRunningError/;
        await assert.rejects(drain(call), (error) => name.test(/** @type {Error} */ (error).name));
      },
    );
  }
});

test("an older peer refuses single calls", async () => {
  await withPeer(
    async (peer) => {
      const stream = await peer.opened();
      peer.event(stream, { type: "started", pid: 5 });
      peer.event(stream, { type: "exited", code: 0 }, true);
      await peer.idle();
    },
    async (client) => {
      const refusal = { name: "UnsupportedOperationError" };
      await assert.rejects(client.call({ op: "connect" }), { ...refusal, fields: ["connect"] });
      await assert.rejects(run(client, new Command("cmd")), { ...refusal, fields: ["exec.log"] });
      assert.ok((await run(client, command())).success);
    },
  );
});

test("a peer of another version is refused", async () => {
  await withPeer(
    (peer) => peer.idle(),
    (client) => assert.rejects(client.call({ op: "exec" }), errors.ProtocolError),
    FRAMES.refused_hello,
  );
});

test("more data than credit ends the connection", async () => {
  await withPeer(
    async (peer) => {
      const stream = await peer.opened();
      for (let count = 0; count < 5; count += 1) peer.data(stream, Buffer.alloc(65536));
      await peer.idle();
    },
    async (client) => {
      const call = await client.call({ op: "exec" });
      // A reader that takes nothing grants nothing: the fifth frame is beyond the window.
      await call.waitEnded(5000);
      assert.ok(call.ended);
    },
  );
});

test("a slow reader holds one window and the peer waits", async () => {
  let sent = 0;
  const total = 20 << 20;
  await withPeer(
    async (peer) => {
      const stream = await peer.opened();
      peer.event(stream, { type: "started", pid: 1 });
      for (let credit = frames.WINDOW; sent < total; sent += 65536) {
        while (credit < 65536) {
          const { kind, payload } = await peer.receive();
          if (kind === frames.CREDIT) credit += payload.readUInt32BE(0);
        }
        peer.data(stream, Buffer.alloc(65536));
        credit -= 65536;
      }
      peer.event(stream, { type: "exited", code: 0 }, true);
      await peer.idle();
    },
    async (client) => {
      const handle = await ExecHandle.start(client, command());
      while (sent < frames.WINDOW) await sleep(10);
      await sleep(100);
      assert.equal(sent, frames.WINDOW);
      let received = 0;
      for await (const event of handle) {
        if (event.kind === "stdout") received += event.data.length;
        assert.ok(sent - received <= 2 * frames.WINDOW);
      }
      assert.equal(received, total);
    },
  );
});

test("a dying peer ends all calls at once with their output", async () => {
  await withPeer(
    async (peer) => {
      for (let count = 0; count < 3; count += 1) {
        const stream = await peer.opened();
        peer.event(stream, { type: "started", pid: 1 });
        peer.data(stream, "partial");
      }
      await new Promise((resolve) => peer.socket.end(() => resolve(null)));
    },
    async (client) => {
      const one = () => run(client, command({ timeout: 60_000 }));
      for (const result of await Promise.allSettled([one(), one(), one()])) {
        assert.equal(result.status, "rejected");
        assert.equal(result.reason.name, "SandboxNotRunningError");
        assert.equal(result.reason.stdout.toString(), "partial");
      }
    },
  );
});

test("a timeout kills and a deaf peer holds no caller", async () => {
  let seen = "";
  await withPeer(
    async (peer) => {
      const stream = await peer.opened();
      peer.event(stream, { type: "started", pid: 1 });
      peer.data(stream, "before");
      seen = (await peer.receive()).payload.toString();
      await peer.idle();
    },
    async (client) => {
      await assert.rejects(run(client, command({ timeout: 50 })), {
        name: "ExecTimeoutError",
        timeoutMs: 50,
        stdout: Buffer.from("before"),
      });
      assert.equal(seen, '{"type":"signal","signal":9}');
    },
  );
});

test("an abort closes the call and waits for its end, in each state", async () => {
  for (const state of ["started", "unanswered"]) {
    let ended = false;
    const stop = new AbortController();
    await withPeer(
      async (peer) => {
        const stream = await peer.opened();
        if (state === "started") peer.event(stream, { type: "started", pid: 1 });
        setTimeout(() => stop.abort(), 20);
        while ((await peer.receive()).kind !== frames.CLOSE);
        await sleep(50);
        ended = true;
        peer.event(stream, { type: "exited", signal: 9 }, true);
        await peer.idle();
      },
      async (client) => {
        const running = run(client, command({ signal: stop.signal }));
        await assert.rejects(running, { name: "AbortError" });
        assert.ok(ended, state);
        await assert.rejects(run(client, command({ signal: stop.signal })), { name: "AbortError" });
      },
    );
  }
});

test("a command that was not started has a kind", async () => {
  await withPeer(
    async (peer) => {
      const failed = { type: "failed", kind: "not_found", message: "no such program" };
      peer.event(await peer.opened(), failed, true);
      await peer.idle();
    },
    (client) =>
      assert.rejects(run(client, command()), { name: "ExecFailedError", kind: "not_found", errno: 2 }),
  );
});

test("hostile answers of files are errors", async () => {
  for (const answer of ["ffffffff65", "0000000165", "0000000e69000000020000000548ffffffff00"]) {
    await withPeer(
      async (peer) => {
        const stream = await peer.opened();
        peer.event(stream, { type: "started", pid: 1 });
        await peer.receive();
        peer.data(stream, Buffer.from("000000050200000003", "hex"));
        await peer.receive();
        peer.data(stream, Buffer.from(answer, "hex"));
        peer.event(stream, { type: "exited", code: 0 }, true);
        await peer.idle();
      },
      async (client) => {
        const session = await Session.open(client);
        const name = /ProtocolError|SandboxFsError/;
        await assert.rejects(session.stat("/x"), (error) => name.test(/** @type {Error} */ (error).name));
      },
    );
  }
});

test("options of a command are checked", () => {
  for (const timeout of [-1, NaN, Infinity]) {
    assert.throws(() => command({ timeout }), RangeError);
  }
  assert.throws(() => new Command("c", /** @type {any} */ ({ colour: "red" })), TypeError);
  assert.throws(() => new Command("c", /** @type {any} */ ({ args: "text" })), TypeError);
  assert.throws(() => command({ env: { "A=B": "c" } }), RangeError);
  assert.throws(() => new Command("a\0b").request(), RangeError);
});

test("unsupported fields are read from a message", () => {
  const message = "msb create: unsupported fields: network.tls (TLS (all), x), mounts.0 (why)";
  assert.deepEqual(fieldsOf(message), ["network.tls", "mounts.0"]);
});
