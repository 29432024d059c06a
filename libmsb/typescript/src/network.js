/** Network of a sandbox: policy, DNS, published ports, TLS interception. */

import { isIP } from "node:net";

import { NetworkPolicy, NetworkPolicyBuilder } from "./policy.js";
import { Secret, SecretBuilder, violation } from "./secret.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./policy.js").NetworkPolicyFields} NetworkPolicyFields */

const IPV4_POOL = "172.16.0.0/12";
const IPV6_POOL = "fd42:6d73:62::/48";

/** Builder of the DNS settings. */
export class DnsBuilder {
  constructor() {
    /** @type {Json} */
    this.fields = { rebind_protection: true, nameservers: [] };
  }

  /**
   * Sets whether answers with addresses that are not public are refused.
   *
   * @param {boolean} protection
   */
  rebindProtection(protection) {
    this.fields.rebind_protection = protection;
    return this;
  }

  /** Sets the name servers. @param {Iterable<string>} servers */
  nameservers(servers) {
    this.fields.nameservers = types.texts("nameservers", servers);
    return this;
  }

  /** Sets the timeout of a query. @param {number} ms */
  queryTimeoutMs(ms) {
    this.fields.query_timeout_ms = types.whole("queryTimeoutMs", ms, 1);
    return this;
  }

  /** Returns the form of a stored configuration. @returns {Json} */
  build() {
    return structuredClone(this.fields);
  }
}

/** Builder of TLS interception: the guest trusts a certificate of the sandbox. */
export class TlsBuilder {
  constructor() {
    /** @type {Json} */
    this.fields = {
      enabled: true,
      bypass: [],
      verify_upstream: true,
      intercepted_ports: [443],
      block_quic_on_intercept: false,
      intercept_ca: { cert_path: null, key_path: null },
    };
  }

  /** Does not intercept connections to a host. @param {string} host */
  bypass(host) {
    this.fields.bypass.push(types.text("host", host));
    return this;
  }

  /** Sets whether certificates of servers are verified. @param {boolean} verify */
  verifyUpstream(verify) {
    this.fields.verify_upstream = verify;
    return this;
  }

  /** Sets the intercepted ports. @param {Iterable<number>} ports */
  interceptedPorts(ports) {
    this.fields.intercepted_ports = [...ports];
    return this;
  }

  /** Sets whether QUIC is blocked. @param {boolean} block */
  blockQuic(block) {
    this.fields.block_quic_on_intercept = block;
    return this;
  }

  /** Sets the certificates that servers are verified with. @param {string} path */
  upstreamCaCert(path) {
    this.fields.upstream_ca_cert = types.text("path", path);
    return this;
  }

  /** Sets the certificate of the interception. @param {string} path */
  interceptCaCert(path) {
    this.fields.intercept_ca.cert_path = types.text("path", path);
    return this;
  }

  /** Sets the key of the interception. @param {string} path */
  interceptCaKey(path) {
    this.fields.intercept_ca.key_path = types.text("path", path);
    return this;
  }

  /** Returns the form of a stored configuration. @returns {Json} */
  build() {
    return structuredClone(this.fields);
  }
}

/** Builder of fixed addresses of the guest. msb chooses them and refuses others by name. */
export class InterfaceOverridesBuilder {
  constructor() {
    /** @type {Json} */
    this.fields = {};
  }

  /** Sets the hardware address. @param {string} mac */
  mac(mac) {
    this.fields.mac = mac;
    return this;
  }

  /** Sets the MTU. @param {number} mtu */
  mtu(mtu) {
    this.fields.mtu = mtu;
    return this;
  }

  /** Sets the IPv4 address. @param {string} address */
  ipv4(address) {
    this.fields.ipv4_address = address;
    return this;
  }

  /** Sets the IPv6 address. @param {string} address */
  ipv6(address) {
    this.fields.ipv6_address = address;
    return this;
  }

  /** Returns the form of a stored configuration. @returns {Json} */
  build() {
    return { ...this.fields };
  }
}

/**
 * @param {string} bind
 * @param {number} host
 * @param {number} guest
 * @param {"tcp" | "udp"} protocol
 */
export function binding(bind, host, guest, protocol) {
  for (const [name, port] of /** @type {const} */ ([["host", host], ["guest", guest]])) {
    if (types.whole(`${name} port`, port, 1) > 65535) {
      throw new RangeError(`the ${name} port must be from 1 to 65535, not ${port}`);
    }
  }
  if (isIP(bind) === 0) throw new RangeError(`'${bind}' is not an address`);
  return { host_port: host, guest_port: guest, host_bind: bind, protocol };
}

/** Builder of a network. Without a policy, the guest reaches the public Internet. */
export class NetworkBuilder {
  constructor() {
    this.isEnabled = true;
    /** @type {NetworkPolicyFields | null} */
    this.chosen = null;
    /** @type {Json[]} */
    this.published = [];
    /** @type {Json[]} */
    this.secrets = [];
    /** @type {Json} */
    this.violation = "block-and-log";
    /** @type {Json} */
    this.addresses = { ipv4_pool: IPV4_POOL, ipv6_pool: IPV6_POOL };
    /** @type {Json} */
    this.more = {};
  }

  /** Sets whether there is a network. @param {boolean} enabled */
  enabled(enabled) {
    this.isEnabled = enabled;
    return this;
  }

  /**
   * Publishes a TCP port on the loopback address.
   *
   * @param {number} host
   * @param {number} guest
   */
  port(host, guest) {
    return this.portBind("127.0.0.1", host, guest);
  }

  /**
   * Publishes a TCP port on an address.
   *
   * @param {string} bind
   * @param {number} host
   * @param {number} guest
   */
  portBind(bind, host, guest) {
    this.published.push(binding(bind, host, guest, "tcp"));
    return this;
  }

  /**
   * Publishes a UDP port on the loopback address.
   *
   * @param {number} host
   * @param {number} guest
   */
  portUdp(host, guest) {
    return this.portUdpBind("127.0.0.1", host, guest);
  }

  /**
   * Publishes a UDP port on an address.
   *
   * @param {string} bind
   * @param {number} host
   * @param {number} guest
   */
  portUdpBind(bind, host, guest) {
    this.published.push(binding(bind, host, guest, "udp"));
    return this;
  }

  /**
   * Sets the policy.
   *
   * @param {NetworkPolicyFields | NetworkPolicyBuilder
   *   | ((builder: NetworkPolicyBuilder) => NetworkPolicyBuilder)} policy
   */
  policy(policy) {
    const made = typeof policy === "function" ? policy(new NetworkPolicyBuilder()) : policy;
    this.chosen = made instanceof NetworkPolicyBuilder ? made.build() : structuredClone(made);
    return this;
  }

  /** Sets up DNS. @param {(builder: DnsBuilder) => DnsBuilder} build */
  dns(build) {
    this.more.dns = build(new DnsBuilder()).build();
    return this;
  }

  /** Sets up TLS interception. @param {(builder: TlsBuilder) => TlsBuilder} build */
  tls(build) {
    this.more.tls = build(new TlsBuilder()).build();
    return this;
  }

  /** Adds a secret. @param {(builder: SecretBuilder) => SecretBuilder} build */
  secret(build) {
    this.secrets.push(build(new SecretBuilder()).build());
    return this;
  }

  /**
   * Adds a secret whose placeholder is in an environment variable.
   *
   * @param {string} name
   * @param {string} value
   * @param {string} host
   */
  secretEnv(name, value, host) {
    this.secrets.push(Secret.env(name, value, host));
    return this;
  }

  /**
   * Sets addresses of the guest.
   *
   * @param {(builder: InterfaceOverridesBuilder) => InterfaceOverridesBuilder} build
   */
  interface(build) {
    Object.assign(this.addresses, build(new InterfaceOverridesBuilder()).build());
    return this;
  }

  /**
   * Sets the action when a secret is about to reach another host.
   *
   * @param {Parameters<typeof violation>[0]} action
   */
  onSecretViolation(action) {
    this.violation = violation(action);
    return this;
  }

  /** Limits connections at a time. @param {number} count */
  maxConnections(count) {
    this.more.max_connections = types.whole("maxConnections", count, 1);
    return this;
  }

  /** Sets the range of IPv4 addresses of guests. @param {string} pool */
  ipv4Pool(pool) {
    this.addresses.ipv4_pool = types.text("ipv4Pool", pool);
    return this;
  }

  /** Sets the range of IPv6 addresses of guests. @param {string} pool */
  ipv6Pool(pool) {
    this.addresses.ipv6_pool = types.text("ipv6Pool", pool);
    return this;
  }

  /** Sets whether the guest trusts the host's certificates. @param {boolean} trust */
  trustHostCAs(trust) {
    this.more.trust_host_cas = trust;
    return this;
  }

  /** Returns the form of a stored configuration. @returns {Json} */
  build() {
    return structuredClone({
      enabled: this.isEnabled,
      policy: this.chosen ?? NetworkPolicy.publicOnly(),
      ports: this.published,
      interface: this.addresses,
      ...this.more,
      ...(this.secrets.length > 0 && {
        secrets: { secrets: this.secrets, on_violation: this.violation },
      }),
    });
  }
}
