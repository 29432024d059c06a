/** Connections to one sandbox, opened when they are needed. */

import { Connection } from "./wire.js";

/** @typedef {import("./types.js").Json} Json */

const CONNECTIONS_MAX = 8;
const CALLS_MAX = 60;

/** Connections to one sandbox. Opens another one when all are busy. */
export class Client {
  /**
   * @param {string} name
   * @param {() => string} path
   */
  constructor(name, path) {
    this.name = name;
    this.path = path;
    /** @type {Connection[]} */
    this.open = [];
    /** @type {Promise<Connection> | null} */
    this.opening = null;
  }

  /**
   * Opens a call, on a connection that has room for it.
   *
   * @param {Json} request
   * @param {readonly string[]} [needs]
   */
  async call(request, needs) {
    for (;;) {
      // Between the search and the call nothing else runs, so that the room is not taken.
      const free = this.free();
      if (free) return free.call(request, needs);
      await this.makeRoom();
    }
  }

  /** Connects, unless there is a connection. */
  async connect() {
    while (!this.free()) await this.makeRoom();
  }

  /** @private */
  free() {
    this.open = this.open.filter((connection) => connection.isOpen);
    return this.open.find((connection) => connection.calls.size < CALLS_MAX);
  }

  /** @private */
  async makeRoom() {
    if (this.opening) {
      await this.opening;
    } else if (this.open.length < CONNECTIONS_MAX) {
      this.opening = Connection.open(this.path(), this.name);
      try {
        const connection = await this.opening;
        this.open.push(connection);
      } finally {
        this.opening = null;
      }
    } else {
      // Every connection is full: the next call that ends makes room.
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  /**
   * Opens a call that has one answer, and returns it.
   *
   * @param {Json} request
   * @param {readonly string[]} [needs]
   * @param {AbortSignal} [signal]
   * @returns {Promise<Json>}
   */
  async ask(request, needs, signal) {
    signal?.throwIfAborted();
    const call = await this.call(request, needs);
    const abort = () => {
      call.abandon();
      call.finish();
    };
    signal?.addEventListener("abort", abort);
    try {
      for (;;) {
        const item = await call.receive();
        if (item.bytes === undefined) return item.message;
      }
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    } finally {
      signal?.removeEventListener("abort", abort);
      call.abandon();
    }
  }

  /** Closes all connections. The next call opens a new one. */
  close() {
    for (const connection of this.open) connection.close();
    this.open = [];
  }
}
