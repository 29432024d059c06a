/** Frames and messages of the wire protocol msb-wire(5), and its limits. */

/** Version of the protocol. */
export const VERSION = 1;
/** Longest payload of a frame. */
export const FRAME_BYTES_MAX = 65536;
/** Payload of a data frame that this client sends. */
export const DATA_BYTES = 65524;
/** Longest message. */
export const MESSAGE_BYTES_MAX = 4 << 20;
/** Bytes that a sender may have unacknowledged on each channel. */
export const WINDOW = 262144;
/** Consumed bytes after which a receiver grants credit. */
export const CREDIT_BYTES = 131048;
/** Messages of a connection that may be incomplete at a time. */
export const INCOMPLETE_MAX = 64;
/** Time for the handshake, in milliseconds. */
export const HELLO_MS = 10_000;
/** Longest path of a socket. */
export const ADDRESS_BYTES_MAX = 107;
/** Length of a frame without its payload. */
export const HEADER_BYTES = 12;

export const HELLO = 1;
export const OPEN = 2;
export const DATA = 3;
export const CREDIT = 4;
export const CONTROL = 5;
export const EVENT = 6;
export const CLOSE = 7;
export const STDIN = 0;
export const STDOUT = 1;
export const STDERR = 2;
export const MORE = 1;
export const END = 2;

/** @typedef {import("./types.js").Json} Json */
/**
 * Bytes of a channel. An empty one with `end` closes the channel.
 *
 * @typedef {{ channel: number, bytes: Buffer, end: boolean }} Data
 */
/**
 * A message about a call. The last one ends it.
 *
 * @typedef {{ message: Json, last: boolean, bytes?: undefined }} Event
 */
/** @typedef {Data | Event} Incoming */

/**
 * Returns a frame.
 *
 * @param {number} stream
 * @param {number} kind
 * @param {Buffer} payload
 * @param {number} [channel]
 * @param {number} [flags]
 */
export function frame(stream, kind, payload, channel = 0, flags = 0) {
  const bytes = Buffer.allocUnsafe(HEADER_BYTES + payload.length);
  bytes.writeUInt32BE(payload.length, 0);
  bytes.writeUInt32BE(stream, 4);
  bytes.writeUInt8(kind, 8);
  bytes.writeUInt8(channel, 9);
  bytes.writeUInt16BE(flags, 10);
  payload.copy(bytes, HEADER_BYTES);
  return bytes;
}

/**
 * Returns the frames of a JSON message.
 *
 * @param {number} stream
 * @param {number} kind
 * @param {Json} value
 */
export function message(stream, kind, value) {
  const payload = Buffer.from(JSON.stringify(value));
  if (payload.length > MESSAGE_BYTES_MAX) {
    throw new RangeError(
      `the request has ${payload.length} bytes; ${MESSAGE_BYTES_MAX} are allowed`,
    );
  }
  const pieces = [];
  for (let at = 0; at === 0 || at < payload.length; at += FRAME_BYTES_MAX) {
    const piece = payload.subarray(at, at + FRAME_BYTES_MAX);
    const isLast = at + FRAME_BYTES_MAX >= payload.length;
    pieces.push(frame(stream, kind, piece, 0, isLast ? 0 : MORE));
  }
  return Buffer.concat(pieces);
}

/**
 * Checks a Unix string of a request.
 *
 * @param {string} value
 */
export function unix(value) {
  if (typeof value !== "string") throw new TypeError("arguments must be strings");
  if (value.includes("\0")) throw new RangeError(`${JSON.stringify(value)} contains a NUL`);
  return value;
}
