/** Logs of a sandbox: the output of its main command, of jobs and of logged commands. */

import { MicrosandboxError, MissedRotationError } from "./errors.js";
import { date, rfc3339 } from "./times.js";
import { LineReader } from "./tool.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./types.js").CallOptions} CallOptions */
/** @typedef {import("./types.js").LogSource} LogSource */
/** @typedef {import("./tool.js").Host} Host */
/** @typedef {CallOptions & { sources?: Iterable<LogSource> | undefined, since?: Date | number | undefined, until?: Date | number | undefined }} LogRange */
/** @typedef {LogRange & { tail?: number | undefined }} LogOptions */
/** @typedef {LogRange & { fromCursor?: string | null | undefined, follow?: boolean | undefined }} LogStreamOptions */

/** An entry of a log. The entries of one source, joined, are its output byte for byte. */
export class LogEntry {
  /** @param {Json} line */
  constructor(line) {
    /** Time; `null` for the kernel and the supervisor process. */
    this.timestamp = date(line.t);
    /** Source. @type {Exclude<LogSource, "all">} */
    this.source = line.s === "all" || !types.LogSources.includes(line.s) ? "system" : line.s;
    /** Identifier of the job or command; `null` for the main command. @type {string | null} */
    this.sessionId = line.id ?? null;
    /** Position after the entry, for `fromCursor`. @type {string | null} */
    this.cursor = line.cursor ?? null;
    /** Bytes. */
    this.data = Buffer.from(String(line.d ?? ""), line.e === "b64" ? "base64" : "utf8");
  }

  /** Returns the data as text; bytes that are not UTF-8 are replaced. */
  text() {
    return this.data.toString();
  }
}

/** A stream of log entries. Iterate over it, or call `recv`. */
export class LogStream {
  /** @param {LineReader} reader */
  constructor(reader) {
    this.reader = reader;
    this.ended = false;
  }

  /**
   * Opens a stream.
   *
   * @param {Host} host
   * @param {string} name
   * @param {LogStreamOptions} [options]
   * @param {string} [job]
   */
  static async open(host, name, options = {}, job) {
    const { sources, since, until, fromCursor, follow, signal } = options;
    if (since !== undefined && fromCursor != null) {
      throw new TypeError("give one of since and fromCursor");
    }
    const args = ["logs", "--format=json", "--cursors"];
    const words = [...(sources ?? [])].map((it) => types.word(types.LogSources, "sources", it));
    if (words.length > 0) args.push(`--source=${words.join(",")}`);
    if (since !== undefined) args.push(`--since=${rfc3339("since", since)}`);
    if (until !== undefined) args.push(`--until=${rfc3339("until", until)}`);
    if (fromCursor != null) args.push(`--after-cursor=${types.text("fromCursor", fromCursor)}`);
    if (job !== undefined) args.push(`--job=${job}`);
    if (follow) args.push("--follow");
    return new LogStream(new LineReader(host, [...args, "--", name], { signal }));
  }

  /** Returns the next entry; `null` at the end. */
  async recv() {
    if (this.ended) return null;
    try {
      const line = await this.reader.next();
      if (line !== null) return new LogEntry(line);
    } catch (error) {
      this.ended = true;
      if (!(error instanceof MicrosandboxError)) throw error;
      const isMissed = `${error.message} ${error.hint}`.match(/rotated|after-cursor/);
      throw isMissed ? new MissedRotationError(error.message, { hint: error.hint }) : error;
    }
    this.ended = true;
    return null;
  }

  /** Returns the rest. */
  async collect() {
    const entries = [];
    for await (const entry of this) entries.push(entry);
    return entries;
  }

  /** Ends the stream. */
  async close() {
    this.ended = true;
    await this.reader.close();
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (let entry; (entry = await this.recv());) yield entry;
    } finally {
      await this.close();
    }
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }
}

/**
 * Returns the entries of a log, or the last `tail` of them.
 *
 * @param {Host} host
 * @param {string} name
 * @param {LogOptions} [options]
 * @param {string} [job]
 */
export async function readLogs(host, name, { tail, ...options } = {}, job) {
  const most = tail === undefined ? Infinity : types.whole("tail", tail);
  /** @type {LogEntry[]} */
  let entries = [];
  for await (const entry of await LogStream.open(host, name, options, job)) {
    entries.push(entry);
    if (entries.length > 2 * most + 1000) entries = entries.slice(entries.length - most);
  }
  return entries.slice(Math.max(0, entries.length - most));
}
