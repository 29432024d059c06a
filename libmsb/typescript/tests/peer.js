/** A peer that plays the supervisor of a sandbox: an older one, a hostile one, one that dies. */

import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Client } from "../src/client.js";
import * as frames from "../src/frames.js";

/** Returns a fixture of all SDKs. @param {string} name @returns {any} */
export function fixture(name) {
  return JSON.parse(readFileSync(new URL(`../../sdk-fixtures/${name}`, import.meta.url), "utf8"));
}

/** A connection of a client. */
export class Peer {
  /** @param {import("node:net").Socket} socket */
  constructor(socket) {
    this.socket = socket;
    this.bytes = Buffer.alloc(0);
    this.iterator = socket[Symbol.asyncIterator]();
  }

  /** @param {number} count */
  async take(count) {
    while (this.bytes.length < count) {
      const { value, done } = await this.iterator.next();
      if (done) throw new Error("the client has ended");
      this.bytes = Buffer.concat([this.bytes, value]);
    }
    const taken = this.bytes.subarray(0, count);
    this.bytes = this.bytes.subarray(count);
    return taken;
  }

  /** Returns a frame. */
  async receive() {
    const head = await this.take(frames.HEADER_BYTES);
    return {
      stream: head.readUInt32BE(4),
      kind: head.readUInt8(8),
      payload: await this.take(head.readUInt32BE(0)),
    };
  }

  /** Waits for a request. Returns its stream. */
  async opened() {
    const { stream, kind } = await this.receive();
    if (kind !== frames.OPEN) throw new Error(`a frame of the kind ${kind}`);
    return stream;
  }

  /** Waits for the end of the client. */
  async idle() {
    for (;;) await this.receive();
  }

  /** Sends an event. @param {number} stream @param {any} fields @param {boolean} [last] */
  event(stream, fields, last = false) {
    const payload = Buffer.from(JSON.stringify(fields));
    this.write(frames.frame(stream, frames.EVENT, payload, 0, last ? frames.END : 0));
  }

  /** Sends bytes of a channel. @param {number} stream @param {string | Buffer} data @param {number} [channel] */
  data(stream, data, channel = frames.STDOUT) {
    this.write(frames.frame(stream, frames.DATA, Buffer.from(data), channel));
  }

  /** @param {Buffer} bytes */
  write(bytes) {
    this.socket.write(bytes);
  }
}

/**
 * Runs a test against a peer. `act` plays it, after the hello of the client.
 *
 * @param {(peer: Peer) => Promise<void>} act
 * @param {(client: Client) => Promise<void>} use
 * @param {any} [hello]
 */
export async function withPeer(act, use, hello = fixture("frames.json").hello) {
  const directory = mkdtempSync(join(tmpdir(), "msb-peer-"));
  const path = join(directory, "agent.sock");
  /** @type {unknown[]} */
  const errors = [];
  const server = createServer(async (socket) => {
    socket.on("error", () => {});
    const peer = new Peer(socket);
    try {
      await peer.receive();
      peer.write(frames.message(0, frames.HELLO, hello));
      await act(peer);
    } catch (error) {
      const isEnd = /the client has ended|ECONNRESET|EPIPE|premature/i.test(String(error));
      if (!isEnd) errors.push(error);
    } finally {
      socket.destroy();
    }
  });
  server.listen(path);
  await once(server, "listening");
  const client = new Client("peer", () => path);
  try {
    await use(client);
  } finally {
    client.close();
    server.close();
    rmSync(directory, { recursive: true });
  }
  if (errors.length > 0) throw errors[0];
}
