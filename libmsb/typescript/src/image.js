/** Images in the store. */

import { resolve } from "node:path";

import { ImageNotFoundError } from "./errors.js";
import { date } from "./times.js";
import { documents, Host } from "./tool.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./types.js").CallOptions} CallOptions */
/**
 * Configuration of an image.
 *
 * @typedef {{
 *   digest: string, env: string[], cmd: string[], entrypoint: string[], workingDir: string | null,
 *   user: string | null, labels: Json, stopSignal: string | null,
 * }} ImageConfigDetail
 */
/**
 * A layer of an image.
 *
 * @typedef {{
 *   diffId: string, blobDigest: string, mediaType: string | null,
 *   compressedSizeBytes: number | null, erofsSizeBytes: number | null, position: number,
 * }} ImageLayerDetail
 */
/** @typedef {{ handle: ImageHandle, config: ImageConfigDetail | null, layers: ImageLayerDetail[] }} ImageDetail */
/**
 * Numbers of removed files, and the disk space that was freed.
 *
 * @typedef {{
 *   imageRefsRemoved: number, manifestsRemoved: number, layersRemoved: number,
 *   fsmetaRemoved: number, vmdkRemoved: number, bytesReclaimed: number | null,
 *   references: string[],
 * }} ImagePruneReport
 */
/** @typedef {{ reference: string, digest: string, imageId: string, layers: number, sizeBytes: number }} LoadedImage */

/** An image in the store. */
export class ImageHandle {
  /**
   * @param {Json} fields
   * @param {string} [reference]
   */
  constructor(fields, reference) {
    /** The reference as it was given; the full form in a list. */
    this.reference = reference ?? String(fields.reference);
    this.sizeBytes = Number(fields.size_bytes ?? 0);
    this.manifestDigest = String(fields.digest);
    /** @type {string | null} */
    this.architecture = fields.architecture ?? null;
    /** @type {string | null} */
    this.os = fields.os ?? null;
    this.layerCount = Number(fields.layer_count ?? 0);
    /** Time of the last creation of a sandbox from it, if it is known. */
    this.lastUsedAt = date(fields.last_used_at);
    /** Time at which the image was stored. */
    this.createdAt = date(fields.created_at);
  }

  /** Returns the configuration and the layers. */
  async inspect() {
    return Image.inspect(this.reference);
  }

  /** Removes the image. @param {{ force?: boolean }} [options] */
  async remove(options) {
    await Image.remove(this.reference, options);
  }
}

/** Images in the store. */
export class Image {
  /** Returns an image. Throws ImageNotFoundError. @param {string} reference */
  static async get(reference) {
    return new ImageHandle(await inspect(reference), reference);
  }

  /** Returns all images, the newest first. */
  static async list() {
    /** @type {Json[]} */
    const rows = await Host.current().json(["image", "list", "--format=json"]);
    const time = (/** @type {ImageHandle} */ image) => image.createdAt?.getTime() ?? 0;
    return rows.map((row) => new ImageHandle(row)).sort((one, other) => time(other) - time(one));
  }

  /**
   * Returns an image with its configuration and layers. Throws ImageNotFoundError.
   *
   * @param {string} reference
   * @returns {Promise<ImageDetail>}
   */
  static async inspect(reference) {
    const fields = await inspect(reference);
    const { config, layers } = fields;
    return {
      handle: new ImageHandle(fields, reference),
      config: config == null ? null : {
        digest: String(config.digest ?? ""),
        env: config.env ?? [],
        cmd: config.cmd ?? [],
        entrypoint: config.entrypoint ?? [],
        workingDir: config.working_dir ?? null,
        user: config.user ?? null,
        labels: config.labels ?? {},
        stopSignal: config.stop_signal ?? null,
      },
      layers: (layers ?? []).map((/** @type {Json} */ layer) => ({
        diffId: String(layer.diff_id),
        blobDigest: String(layer.blob_digest ?? ""),
        mediaType: layer.media_type ?? null,
        compressedSizeBytes: layer.compressed_size_bytes ?? null,
        erofsSizeBytes: layer.erofs_size_bytes ?? null,
        position: Number(layer.position ?? 0),
      })),
    };
  }

  /**
   * Removes an image. Throws ImageInUseError; `force` removes it nevertheless.
   *
   * @param {string} reference
   * @param {{ force?: boolean }} [options]
   */
  static async remove(reference, { force = false } = {}) {
    const options = force ? ["--force"] : [];
    const args = ["image", "remove", "--quiet", ...options, "--"];
    await Host.current().run([...args, types.text("reference", reference)]);
  }

  /** Removes images that no sandbox uses, and files that no image needs. */
  static async prune() {
    const report = await Host.current().json(["image", "prune", "--yes", "--format=json"]);
    /** @type {ImagePruneReport} */
    const counts = {
      imageRefsRemoved: Number(report.image_refs_removed ?? 0),
      manifestsRemoved: Number(report.manifests_removed ?? 0),
      layersRemoved: Number(report.layers_removed ?? 0),
      fsmetaRemoved: Number(report.fsmeta_removed ?? 0),
      vmdkRemoved: Number(report.vmdk_removed ?? 0),
      bytesReclaimed: report.bytes_reclaimed ?? null,
      references: report.references ?? [],
    };
    return counts;
  }

  /** Removes files that no image needs. Returns the number of removed layers. */
  static async gcLayers() {
    const args = ["image", "prune", "--yes", "--dangling", "--format=json"];
    return Number((await Host.current().json(args)).layers_removed ?? 0);
  }

  /** Removes unused images. Returns the number of removed layers. */
  static async gc() {
    return (await Image.prune()).layersRemoved;
  }

  /**
   * Loads the images of an archive of docker, podman, skopeo or buildah.
   *
   * @param {string} path
   * @param {CallOptions & { tag?: string }} [options]
   * @returns {Promise<LoadedImage[]>}
   */
  static async load(path, { tag, signal } = {}) {
    const options = tag === undefined ? [] : [`--tag=${tag}`];
    const args = ["image", "load", "--format=json", `--input=${resolve(path)}`, ...options];
    const loaded = documents(args, await Host.current().run(args, { signal }));
    return loaded.map((fields) => ({
      reference: String(fields.reference ?? ""),
      digest: String(fields.digest ?? ""),
      imageId: String(fields.image_id ?? ""),
      layers: Number(fields.layers ?? 0),
      sizeBytes: Number(fields.size_bytes ?? 0),
    }));
  }

  /**
   * Saves images as an archive that docker and `load` read.
   *
   * @param {string} path
   * @param {string | readonly string[]} references
   * @param {CallOptions} [options]
   */
  static async save(path, references, options) {
    const names = [references].flat();
    if (names.length === 0) throw new TypeError("give at least one image");
    const args = ["image", "save", "--quiet", `--output=${resolve(path)}`, "--", ...names];
    await Host.current().run(args, options);
  }

  /** Returns whether the store has an image. @param {string} reference */
  static async exists(reference) {
    try {
      await Image.get(reference);
      return true;
    } catch (error) {
      if (error instanceof ImageNotFoundError) return false;
      throw error;
    }
  }
}

/** @param {string} reference */
async function inspect(reference) {
  const args = ["image", "inspect", "--format=json", "--", types.text("reference", reference)];
  return Host.current().json(args);
}
