/**
 * Secrets: placeholders in the guest, and the hosts that get their values.
 *
 * Everything here is data. The programs check it when a sandbox is created.
 */

import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */

/** Builder of the action when a secret is about to reach another host. */
export class ViolationActionBuilder {
  constructor() {
    /** @type {Json} */
    this.action = "block-and-log";
    /** @type {{ hosts: string[], host_patterns: string[], all_hosts: boolean }} */
    this.passed = { hosts: [], host_patterns: [], all_hosts: false };
  }

  /** Blocks the request. */
  block() {
    return this.set("block");
  }

  /** Blocks and logs the request. */
  blockAndLog() {
    return this.set("block-and-log");
  }

  /** Blocks the request and ends the sandbox. */
  blockAndTerminate() {
    return this.set("block-and-terminate");
  }

  /** Lets the placeholder pass to a host. @param {string} host */
  passthroughHost(host) {
    this.passed.hosts.push(types.text("host", host));
    return this.set("passthrough");
  }

  /** Lets the placeholder pass to the hosts of a pattern. @param {string} pattern */
  passthroughHostPattern(pattern) {
    this.passed.host_patterns.push(types.text("pattern", pattern));
    return this.set("passthrough");
  }

  /** Lets the placeholder pass to every host. */
  passthroughAllHosts() {
    this.passed.all_hosts = true;
    return this.set("passthrough");
  }

  /** Returns the form of a stored configuration. @returns {Json} */
  build() {
    return this.action === "passthrough" ? { passthrough: { ...this.passed } } : this.action;
  }

  /** @private @param {string} action */
  set(action) {
    this.action = action;
    return this;
  }
}

/**
 * Returns the action of a word or a builder.
 *
 * @param {string | ((builder: ViolationActionBuilder) => ViolationActionBuilder)} action
 * @returns {Json}
 */
export function violation(action) {
  if (typeof action === "function") return action(new ViolationActionBuilder()).build();
  return types.word(types.ViolationActions, "onSecretViolation", action);
}

/** Builder of a secret. */
export class SecretBuilder {
  constructor() {
    this.fields = {
      env_var: "",
      value: "",
      /** @type {string | null} */
      placeholder: null,
      /** @type {Json[]} */
      allowed_hosts: [],
      require_tls_identity: true,
      /** @type {Json} */
      on_violation: null,
      injection: { headers: true, basic_auth: true, query_params: false, body: false },
    };
  }

  /** Sets the environment variable that has the placeholder. @param {string} name */
  env(name) {
    this.fields.env_var = types.text("env", name);
    return this;
  }

  /** Sets the value. @param {string} value */
  value(value) {
    this.fields.value = types.text("value", value);
    return this;
  }

  /** Sets the placeholder. @param {string} placeholder */
  placeholder(placeholder) {
    this.fields.placeholder = types.text("placeholder", placeholder);
    return this;
  }

  /** Allows a host to get the value. @param {string} host */
  allowHost(host) {
    this.fields.allowed_hosts.push({ exact: types.text("host", host) });
    return this;
  }

  /** Allows the hosts of a pattern to get the value. @param {string} pattern */
  allowHostPattern(pattern) {
    this.fields.allowed_hosts.push({ wildcard: types.text("pattern", pattern) });
    return this;
  }

  /**
   * Allows every host to get the value.
   *
   * @param {boolean} iUnderstandTheRisk
   */
  allowAnyHostDangerous(iUnderstandTheRisk) {
    if (iUnderstandTheRisk !== true) throw new RangeError("every host would get the secret");
    this.fields.allowed_hosts.push("any");
    return this;
  }

  /** Sets whether the host must prove its name by TLS. @param {boolean} required */
  requireTlsIdentity(required) {
    this.fields.require_tls_identity = required;
    return this;
  }

  /** Sets whether headers are searched. @param {boolean} inject */
  injectHeaders(inject) {
    this.fields.injection.headers = inject;
    return this;
  }

  /** Sets whether Basic credentials are searched. @param {boolean} inject */
  injectBasicAuth(inject) {
    this.fields.injection.basic_auth = inject;
    return this;
  }

  /** Sets whether query parameters are searched. @param {boolean} inject */
  injectQuery(inject) {
    this.fields.injection.query_params = inject;
    return this;
  }

  /** Sets whether bodies are searched. @param {boolean} inject */
  injectBody(inject) {
    this.fields.injection.body = inject;
    return this;
  }

  /**
   * Sets the action for other hosts.
   *
   * @param {Parameters<typeof violation>[0]} action
   */
  onViolation(action) {
    this.fields.on_violation = violation(action);
    return this;
  }

  /** Returns the form of a stored configuration. @returns {Json} */
  build() {
    if (this.fields.allowed_hosts.length === 0) {
      throw new RangeError("a secret needs at least one host");
    }
    return structuredClone(this.fields);
  }
}

/** Makers of secrets. */
export const Secret = Object.freeze({
  /**
   * Returns a secret whose placeholder is in an environment variable.
   *
   * @param {string} name
   * @param {string} value
   * @param {string} host
   */
  env: (name, value, host) => new SecretBuilder().env(name).value(value).allowHost(host).build(),
  /** Returns a builder. */
  builder: () => new SecretBuilder(),
});
