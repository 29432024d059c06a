/** Resource usage of sandboxes. */

import { date } from "./times.js";
import { Host, LineReader } from "./tool.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./types.js").CallOptions} CallOptions */
/**
 * A sample of the resource usage of a sandbox. Unknown values are 0, and in `unknown`.
 *
 * @typedef {{
 *   cpuPercent: number, memoryBytes: number, memoryLimitBytes: number, diskReadBytes: number,
 *   diskWriteBytes: number, netRxBytes: number, netTxBytes: number, uptimeMs: number,
 *   timestamp: Date, unknown: string[],
 * }} SandboxMetrics
 */

/** Returns the sample of a JSON object. @param {Json} sample @returns {SandboxMetrics} */
function metricsOf(sample) {
  const fields = {
    cpuPercent: sample.cpu_percent,
    memoryBytes: sample.memory_bytes,
    memoryLimitBytes: sample.memory_limit_bytes,
    diskReadBytes: sample.disk_read_bytes,
    diskWriteBytes: sample.disk_write_bytes,
    netRxBytes: sample.net_rx_bytes,
    netTxBytes: sample.net_tx_bytes,
  };
  const unknown = Object.entries(fields).filter(([, value]) => value == null);
  const known = Object.entries(fields).map(([name, value]) => [name, Number(value ?? 0)]);
  return {
    .../** @type {typeof fields} */ (Object.fromEntries(known)),
    uptimeMs: Number(sample.uptime_secs ?? 0) * 1000,
    timestamp: date(sample.timestamp) ?? new Date(0),
    unknown: unknown.map(([name]) => name),
  };
}

/**
 * Returns the last sample of a sandbox.
 *
 * @param {Host} host
 * @param {string} name
 * @param {CallOptions} [options]
 */
export async function readMetrics(host, name, options) {
  return metricsOf(await host.json(["metrics", "show", "--format=json", "--", name], options));
}

/** Returns the last sample of each running sandbox, by its name. @param {CallOptions} [options] */
export async function allSandboxMetrics(options = {}) {
  const reader = new LineReader(Host.current(), ["metrics", "jsonl", "--count=1"], options);
  /** @type {Record<string, SandboxMetrics>} */
  const found = {};
  try {
    for (let line; (line = await reader.next());) {
      if (line.type === "sample") found[String(line.name)] = metricsOf(line);
    }
  } finally {
    await reader.close();
  }
  return found;
}

/** Samples of a sandbox at an interval. Iterate over it, or call `recv`. */
export class MetricsStream {
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
   * @param {number} intervalMs
   * @param {CallOptions} options
   */
  static async open(host, name, intervalMs, options) {
    // The first call reports a sandbox without samples by its error.
    await readMetrics(host, name, options);
    const every = `--interval=${types.duration("intervalMs", intervalMs)}`;
    const args = ["metrics", "show", "--watch", every, "--format=json", "--", name];
    return new MetricsStream(new LineReader(host, args, options));
  }

  /** Returns the next sample; `null` at the end of the sandbox. */
  async recv() {
    while (!this.ended) {
      const line = await this.reader.next();
      if (line === null || line.type === "exit") this.ended = true;
      else if ((line.type ?? "sample") === "sample") return metricsOf(line);
    }
    return null;
  }

  /** Ends the stream. */
  async close() {
    this.ended = true;
    await this.reader.close();
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (let sample; (sample = await this.recv());) yield sample;
    } finally {
      await this.close();
    }
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }
}
