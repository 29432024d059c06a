/**
 * Configuration of a new sandbox, in the form that `msb create --from-microsandbox` reads.
 *
 * The programs translate and check it, and refuse what they do not support by the field's name.
 */

import { create } from "./creation.js";
import { InvalidConfigError } from "./errors.js";
import {
  ImageBuilder,
  InitBuilder,
  intoRootfsSource,
  MountBuilder,
  PatchBuilder,
  RegistryBuilder,
} from "./mount.js";
import { NetworkBuilder } from "./network.js";
import { PullSession } from "./pull.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./types.js").CallOptions} CallOptions */
/** @typedef {import("./sandbox.js").Sandbox} Sandbox */
/** @typedef {import("./secret.js").SecretBuilder} SecretBuilder */
/**
 * A checked configuration: the document for the programs, and the options that have no field.
 *
 * @typedef {{
 *   name: string,
 *   document: Json,
 *   options: string[],
 *   detached: boolean,
 *   environment: Record<string, string>,
 * }} SandboxConfig
 */

const NAME_BYTES_MAX = 128;
/** @type {Record<string, string>} */
const PULL = { always: "Always", "if-missing": "IfMissing", never: "Never" };

/** Builder of a sandbox. Each method returns the builder. */
export class SandboxBuilder {
  /** @param {string} name */
  constructor(name) {
    this.name = types.text("name", name);
    /** @type {Json} */
    this.fields = {
      env: [], labels: {}, scripts: {}, mounts: [], patches: [], rlimits: [], cpus: 1,
      memory_mib: 512,
    };
    /** @type {Record<string, string>} */
    this.options = {};
    /** @type {Record<string, string>} */
    this.environment = {};
    /** @type {NetworkBuilder | null} */
    this.net = null;
    this.isDetached = false;
  }

  /** Sets the root: an image, or the path of a directory or disk image. @param {string} image */
  image(image) {
    return this.set({ image: intoRootfsSource(image) });
  }

  /** Sets the root. @param {(builder: ImageBuilder) => ImageBuilder} build */
  imageWith(build) {
    return this.set({ image: build(new ImageBuilder()).build() });
  }

  /** Starts from a snapshot. @param {string} snapshot */
  fromSnapshot(snapshot) {
    this.options.snapshot = types.text("snapshot", snapshot);
    return this;
  }

  /** Sets the number of processors. @param {number} count */
  cpus(count) {
    return this.set({ cpus: types.whole("cpus", count, 1) });
  }

  /** Sets the memory in MiB. @param {number | types.Size} mib */
  memory(mib) {
    return this.set({ memory_mib: types.mebibytes("memory", mib) });
  }

  /** Accepted for compatibility; has no effect. @param {types.LogLevel} level */
  logLevel(level) {
    types.word(types.LogLevels, "logLevel", level);
    return this;
  }

  /** Accepted for compatibility; has no effect. */
  quietLogs() {
    return this;
  }

  /** Lets the sandbox go on without this process. @param {boolean} [detached] */
  detached(detached = true) {
    this.isDetached = detached;
    return this;
  }

  /** Sets the time between two samples of the resource usage. @param {number} ms */
  metricsSampleIntervalMs(ms) {
    return this.set({ metrics_sample_interval_ms: types.whole("ms", ms, 1) });
  }

  /** Takes no samples of the resource usage. */
  disableMetricsSample() {
    return this.set({ disable_metrics_sample: true });
  }

  /** Sets the working directory. @param {string} path */
  workdir(path) {
    return this.set({ workdir: types.text("workdir", path) });
  }

  /** Sets the shell. @param {string} shell */
  shell(shell) {
    return this.set({ shell: types.text("shell", shell) });
  }

  /** Sets the privileges of commands. @param {types.SecurityProfile} profile */
  security(profile) {
    const word = types.word(types.SecurityProfiles, "security", profile);
    return this.set({ security_profile: word });
  }

  /** Sets up the registry. @param {(builder: RegistryBuilder) => RegistryBuilder} build */
  registry(build) {
    return this.set({ registry_auth: build(new RegistryBuilder()).build() });
  }

  /** Replaces a sandbox of that name. @param {boolean} [replace] */
  replace(replace = true) {
    delete this.options.replace;
    if (replace) this.options.replace = "";
    return this;
  }

  /** Replaces a sandbox of that name, which gets time to stop; 0 kills it. @param {number} ms */
  replaceWithTimeout(ms) {
    this.options["replace-with-timeout"] = types.duration("replaceWithTimeout", ms);
    return this;
  }

  /** Sets the command that the arguments of the image's command follow. @param {string[]} words */
  entrypoint(words) {
    return this.set({ entrypoint: types.texts("entrypoint", words) });
  }

  /**
   * Starts an init as the first process of the guest; `auto` finds it.
   *
   * @param {string} cmd
   * @param {Iterable<string>} [args]
   */
  init(cmd, args = []) {
    return this.initWith(cmd, (b) => b.args(args));
  }

  /**
   * Starts an init as the first process of the guest.
   *
   * @param {string} cmd
   * @param {(builder: InitBuilder) => InitBuilder} build
   */
  initWith(cmd, build) {
    return this.set({ init: build(new InitBuilder(cmd)).build() });
  }

  /** Sets the host name. @param {string} hostname */
  hostname(hostname) {
    return this.set({ hostname: types.text("hostname", hostname) });
  }

  /** Sets the path of libkrunfw or of a kernel. @param {string} path */
  libkrunfwPath(path) {
    this.environment.MSB_KRUNFW = types.text("path", path);
    return this;
  }

  /** Sets the user of commands. @param {string} user */
  user(user) {
    return this.set({ user: types.text("user", user) });
  }

  /** Sets when the image is pulled. @param {types.PullPolicy} policy */
  pullPolicy(policy) {
    const word = types.word(types.PullPolicies, "pullPolicy", policy);
    return this.set({ pull_policy: PULL[word] });
  }

  /** Gives no network. */
  disableNetwork() {
    return this.network((b) => b.enabled(false));
  }

  /** Sets up the network. @param {(builder: NetworkBuilder) => NetworkBuilder} build */
  network(build) {
    this.net = build(this.net ?? new NetworkBuilder());
    return this;
  }

  /**
   * Publishes a TCP port on the loopback address.
   *
   * @param {number} host
   * @param {number} guest
   */
  port(host, guest) {
    return this.network((b) => b.port(host, guest));
  }

  /**
   * Publishes a TCP port on an address.
   *
   * @param {string} bind
   * @param {number} host
   * @param {number} guest
   */
  portBind(bind, host, guest) {
    return this.network((b) => b.portBind(bind, host, guest));
  }

  /**
   * Publishes a UDP port on the loopback address.
   *
   * @param {number} host
   * @param {number} guest
   */
  portUdp(host, guest) {
    return this.network((b) => b.portUdp(host, guest));
  }

  /**
   * Publishes a UDP port on an address.
   *
   * @param {string} bind
   * @param {number} host
   * @param {number} guest
   */
  portUdpBind(bind, host, guest) {
    return this.network((b) => b.portUdpBind(bind, host, guest));
  }

  /** Adds a secret. @param {(builder: SecretBuilder) => SecretBuilder} build */
  secret(build) {
    return this.network((b) => b.secret(build));
  }

  /**
   * Adds a secret whose placeholder is in an environment variable.
   *
   * @param {string} name
   * @param {string} value
   * @param {string} host
   */
  secretEnv(name, value, host) {
    return this.network((b) => b.secretEnv(name, value, host));
  }

  /**
   * Sets a variable.
   *
   * @param {string} name
   * @param {string} value
   */
  env(name, value) {
    this.fields.env.push([types.text("env", name), types.text(`env.${name}`, value)]);
    return this;
  }

  /** Sets variables. @param {Record<string, string>} env */
  envs(env) {
    for (const [name, value] of Object.entries(env)) this.env(name, value);
    return this;
  }

  /**
   * Sets a label.
   *
   * @param {string} name
   * @param {string} value
   */
  label(name, value) {
    this.fields.labels[types.text("label", name)] = types.text(`label ${name}`, value);
    return this;
  }

  /** Sets labels. @param {Record<string, string>} labels */
  labels(labels) {
    for (const [name, value] of Object.entries(labels)) this.label(name, value);
    return this;
  }

  /**
   * Limits a resource of every command.
   *
   * @param {string} resource
   * @param {number} limit
   */
  rlimit(resource, limit) {
    return this.rlimitRange(resource, limit, limit);
  }

  /**
   * Limits a resource of every command by a soft and a hard limit.
   *
   * @param {string} resource
   * @param {number} soft
   * @param {number} hard
   */
  rlimitRange(resource, soft, hard) {
    this.fields.rlimits.push(types.rlimit(resource, soft, hard));
    return this;
  }

  /**
   * Adds a script, which is a program in the guest.
   *
   * @param {string} name
   * @param {string} body
   */
  script(name, body) {
    this.fields.scripts[types.text("script", name)] = types.text(`script ${name}`, body);
    return this;
  }

  /** Adds scripts. @param {Record<string, string>} scripts */
  scripts(scripts) {
    for (const [name, body] of Object.entries(scripts)) this.script(name, body);
    return this;
  }

  /** Stops the sandbox after a time. @param {number} seconds */
  maxDuration(seconds) {
    this.options["max-duration"] = types.duration("maxDuration", seconds * 1000);
    return this;
  }

  /** Stops the sandbox when it was idle for a time. @param {number} seconds */
  idleTimeout(seconds) {
    this.options["idle-timeout"] = types.duration("idleTimeout", seconds * 1000);
    return this;
  }

  /**
   * Adds a mount.
   *
   * @param {string} guest
   * @param {(builder: MountBuilder) => MountBuilder} build
   */
  volume(guest, build) {
    this.fields.mounts.push(build(new MountBuilder(guest)).build());
    return this;
  }

  /** Adds a change of files, in the form that `PatchBuilder.build` returns. @param {Json} patch */
  addPatch(patch) {
    this.fields.patches.push(...[patch].flat());
    return this;
  }

  /** Adds changes of files before the first boot. @param {(b: PatchBuilder) => PatchBuilder} build */
  patch(build) {
    return this.addPatch(build(new PatchBuilder()).build());
  }

  /** Returns the configuration. @returns {SandboxConfig} */
  build() {
    const length = Buffer.byteLength(this.name);
    if (length < 1 || length > NAME_BYTES_MAX) {
      throw new InvalidConfigError(`a name has 1 to ${NAME_BYTES_MAX} bytes`);
    }
    const { image, entrypoint } = this.fields;
    if ((image === undefined) === (this.options.snapshot === undefined)) {
      throw new TypeError("give exactly one of image and fromSnapshot");
    }
    const { replace, ...others } = this.options;
    const options = Object.entries(others).map(([name, value]) => `--${name}=${value}`);
    if (replace !== undefined && !("replace-with-timeout" in others)) options.push("--replace");
    // As upstream: a sandbox boots and waits for commands.
    if (!entrypoint?.length) options.push("--entrypoint=");
    return {
      name: this.name,
      document: structuredClone({
        name: this.name,
        ...this.fields,
        ...(this.net && { network: this.net.build() }),
      }),
      options,
      detached: this.isDetached,
      environment: { ...this.environment },
    };
  }

  /**
   * Creates the sandbox and starts it. Returns when its guest accepts commands.
   *
   * What the installed programs do not support throws UnsupportedOperationError with the names of
   * the fields, and nothing is created.
   *
   * @param {CallOptions} [options]
   * @returns {Promise<Sandbox>}
   */
  async create(options) {
    return create(this.build(), options?.signal);
  }

  /**
   * Pulls the image with its progress, and creates the sandbox after it.
   *
   * @param {CallOptions} [options]
   */
  createWithPullProgress(options) {
    return new PullSession(this.build(), options?.signal);
  }

  /** @private @param {Json} fields */
  set(fields) {
    Object.assign(this.fields, fields);
    return this;
  }
}

