/**
 * The raw agent client of microsandbox, which msb does not serve.
 *
 * Its frames and CBOR bodies are those of another guest protocol. `msb-sdk/wire` is a client of
 * msb's own protocol, msb-wire(5).
 */

import { UnsupportedOperationError } from "./errors.js";

const refusal = () =>
  new UnsupportedOperationError("not supported: the raw agent protocol of microsandbox", {
    hint: "use msb-sdk/wire, the client of msb-wire(5)",
    fields: ["agent"],
  });

/** A stream of frames. */
export class AgentStream {
  /** Identifier. */
  id = 0;

  /** Returns the next frame. @returns {Promise<never>} */
  async next() {
    throw refusal();
  }

  /** Closes the stream. @returns {Promise<never>} */
  async close() {
    throw refusal();
  }
}

/** A client of the guest's agent. */
export class AgentClient {
  /** Connects to the agent of a sandbox. @param {string} _name @param {object} [_options] */
  static async connectSandbox(_name, _options) {
    throw refusal();
  }

  /** Connects to a socket. @param {string} _path @param {object} [_options] */
  static async connect(_path, _options) {
    throw refusal();
  }

  /** Sends a frame and returns the answer. @param {number} _flags @param {Uint8Array} _body */
  async request(_flags, _body) {
    throw refusal();
  }

  /** Sends a frame and returns the stream of answers. @param {number} _flags @param {Uint8Array} _body */
  async stream(_flags, _body) {
    throw refusal();
  }

  /** Sends a frame of a stream. @param {bigint} _id @param {number} _flags @param {Uint8Array} _body */
  async send(_id, _flags, _body) {
    throw refusal();
  }

  /** Returns the greeting of the agent. @returns {never} */
  readyBytes() {
    throw refusal();
  }

  /** Closes the connection. */
  async close() {
    throw refusal();
  }
}
