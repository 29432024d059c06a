/** Progress of the pull of an image, and the creation of a sandbox after it. */

import { create } from "./creation.js";
import { ImagePullFailedError, RuntimeError, UsedUpError } from "./errors.js";
import { Image } from "./image.js";
import { Host, LineReader } from "./tool.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./builder.js").SandboxConfig} SandboxConfig */
/** @typedef {import("./sandbox.js").Sandbox} Sandbox */
/** @typedef {{ layerIndex: number, digest: string }} LayerFields */
/**
 * An event of a pull. msb converts a layer while it downloads, and reports no bytes of that.
 *
 * @typedef {{ kind: "resolving", reference: string }
 *   | { kind: "resolved", reference: string, manifestDigest: string, layerCount: number,
 *       totalDownloadBytes: number | null }
 *   | LayerFields & { kind: "layerDownloadProgress", downloadedBytes: number,
 *       totalBytes: number | null }
 *   | LayerFields & { kind: "layerDownloadComplete", totalBytes: number | null }
 *   | LayerFields & { kind: "layerMaterializeStarted" }
 *   | LayerFields & { kind: "layerMaterializeComplete" }
 *   | { kind: "complete", reference: string, manifestDigest: string, layerCount: number }} PullEvent
 */

/** Events of a pull. Iterators share the events: each is seen once. */
export class PullProgress {
  constructor() {
    /** @type {PullEvent[]} */
    this.events = [];
    this.ended = false;
    /** @type {(() => void)[]} */
    this.waiting = [];
  }

  /** Returns the next event; `null` after the last one. @returns {Promise<PullEvent | null>} */
  async recv() {
    while (this.events.length === 0 && !this.ended) {
      await new Promise((/** @type {(value: void) => void} */ resolve) => {
        this.waiting.push(resolve);
      });
    }
    return this.events.shift() ?? null;
  }

  /** @param {PullEvent} event */
  add(event) {
    this.events.push(event);
    this.wake();
  }

  end() {
    this.ended = true;
    this.wake();
  }

  wake() {
    for (const resolve of this.waiting.splice(0)) resolve();
  }

  async *[Symbol.asyncIterator]() {
    for (let event; (event = await this.recv());) yield event;
  }
}

/** A pull and the creation of a sandbox after it. Iterates over the events of the pull. */
export class PullSession {
  /**
   * @param {SandboxConfig} config
   * @param {AbortSignal} [signal]
   */
  constructor(config, signal) {
    /** Events of the pull. */
    this.progress = new PullProgress();
    this.taken = false;
    this.stop = new AbortController();
    const abort = () => this.stop.abort(signal?.reason);
    signal?.addEventListener("abort", abort);
    if (signal?.aborted) abort();
    this.result = this.work(config).finally(() => {
      this.progress.end();
      signal?.removeEventListener("abort", abort);
    });
    this.result.catch(() => {});
  }

  /** Waits for the sandbox. It can be taken once. @returns {Promise<Sandbox>} */
  async awaitSandbox() {
    if (this.taken) throw new UsedUpError("the sandbox was taken already");
    this.taken = true;
    return this.result;
  }

  async *[Symbol.asyncIterator]() {
    yield* this.progress;
  }

  /** Cancels what is under way, unless the sandbox was taken. */
  async [Symbol.asyncDispose]() {
    if (this.taken) return;
    this.stop.abort();
    await this.result.then((sandbox) => sandbox.discard(), () => {});
  }

  /** @private @param {SandboxConfig} config */
  async work(config) {
    const { signal } = this.stop;
    const { image, pull_policy: policy, registry_auth: auth } = config.document;
    const reference = image?.Oci?.reference;
    const isWanted =
      reference !== undefined &&
      policy !== "Never" &&
      (policy === "Always" || !(await Image.exists(reference)));
    if (isWanted) {
      await pull(reference, auth?.Basic, (event) => this.progress.add(event), signal);
      config.document.pull_policy = "Never";
    }
    this.progress.end();
    return create(config, signal);
  }
}

/**
 * Pulls an image and reports its events.
 *
 * @param {string} reference
 * @param {{ username: string, password: string } | undefined} login
 * @param {(event: PullEvent) => void} add
 * @param {AbortSignal} signal
 */
async function pull(reference, login, add, signal) {
  add({ kind: "resolving", reference });
  const options = login ? [`--username=${login.username}`, "--password-stdin"] : [];
  const stdin = login ? Buffer.from(login.password) : undefined;
  const args = ["image", "pull", "--format=json", ...options, "--", reference];
  const reader = new LineReader(Host.current(), args, { stdin, signal });
  const states = new LayerStates(add);
  try {
    for (let line; (line = await reader.next());) states.take(line);
  } catch (error) {
    if (!(error instanceof RuntimeError)) throw error;
    throw new ImagePullFailedError(error.message, { hint: error.hint });
  } finally {
    await reader.close();
  }
}

/** Translation of the states of layers to events. */
class LayerStates {
  /** @param {(event: PullEvent) => void} add */
  constructor(add) {
    this.add = add;
    /** @type {Map<string, { index: number, state: string }>} */
    this.layers = new Map();
  }

  /** @param {Json} line */
  take(line) {
    const { reference, digest: manifestDigest, layers: layerCount } = line;
    if (line.type === "resolved") {
      const totalDownloadBytes = line.size_bytes ?? null;
      this.add({ kind: "resolved", reference, manifestDigest, layerCount, totalDownloadBytes });
    } else if (line.type === "pulled") {
      this.add({ kind: "complete", reference, manifestDigest, layerCount });
    } else if (line.type === "layer_progress") {
      this.takeLayer(String(line.digest), String(line.state), line);
    }
  }

  /** @param {string} digest @param {string} state @param {Json} line */
  takeLayer(digest, state, line) {
    const layer = this.layers.get(digest) ?? { index: this.layers.size, state: "" };
    const before = layer.state;
    this.layers.set(digest, { ...layer, state });
    const fields = { layerIndex: layer.index, digest };
    const totalBytes = line.size_bytes ?? null;
    if (state === "downloading") {
      const downloadedBytes = Number(line.done_bytes ?? 0);
      this.add({ kind: "layerDownloadProgress", ...fields, downloadedBytes, totalBytes });
    }
    if (before === state || !["unpacking", "done", "present"].includes(state)) return;
    if (before !== "unpacking" && before !== "present") {
      this.add({ kind: "layerDownloadComplete", ...fields, totalBytes });
    }
    const isStart = state === "unpacking";
    this.add({ kind: isStart ? "layerMaterializeStarted" : "layerMaterializeComplete", ...fields });
  }
}
