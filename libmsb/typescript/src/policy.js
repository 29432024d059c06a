/**
 * Network policies: rules in order, and the actions for connections that match none.
 *
 * Everything here is data, in the form of a stored configuration. The programs check it when a
 * sandbox is created.
 */

import { isIP } from "node:net";

import { NetworkBuilderError } from "./errors.js";
import * as types from "./types.js";

/** @typedef {import("./types.js").Json} Json */
/** @typedef {import("./types.js").Action} Action */
/** @typedef {import("./types.js").DestinationGroup} DestinationGroup */
/**
 * The remote side of a rule.
 *
 * @typedef {"any" | { cidr: string } | { domain: string } | { domain_suffix: string }
 *   | { group: string }} NetworkDestination
 */
/** @typedef {{ start: number, end: number }} PortRangeFields */
/**
 * A rule: an action for connections to a destination. The first rule that matches decides.
 *
 * @typedef {{
 *   action: Action,
 *   direction: "egress" | "ingress" | "any",
 *   destination: NetworkDestination,
 *   protocols: string[],
 *   ports: PortRangeFields[],
 * }} RuleFields
 */
/**
 * A policy.
 *
 * @typedef {{
 *   default_egress: Action, default_ingress: Action, rules: RuleFields[],
 * }} NetworkPolicyFields
 */

/** Makers of destinations. */
export const Destination = Object.freeze({
  /** Returns every address. @returns {NetworkDestination} */
  any: () => "any",
  /** Returns one address. @param {string} address @returns {NetworkDestination} */
  ip(address) {
    const version = isIP(address);
    if (version === 0) throw new NetworkBuilderError(`'${address}' is not an address`);
    return { cidr: `${address}/${version === 4 ? 32 : 128}` };
  },
  /** Returns an address range. @param {string} range @returns {NetworkDestination} */
  cidr(range) {
    const [address = "", length = ""] = types.text("cidr", range).split("/");
    const most = isIP(address) === 4 ? 32 : 128;
    if (isIP(address) === 0 || !/^\d+$/.test(length) || Number(length) > most) {
      throw new NetworkBuilderError(`'${range}' is not a range of addresses`);
    }
    return { cidr: range };
  },
  /** Returns the addresses that a name resolves to. @param {string} name */
  domain: (name) => /** @type {NetworkDestination} */ ({ domain: types.text("domain", name) }),
  /** Returns the addresses of a name and of all names below it. @param {string} suffix */
  domainSuffix: (suffix) =>
    /** @type {NetworkDestination} */ ({
      domain_suffix: types.text("suffix", suffix).replace(/^\.+/, ""),
    }),
  /** Returns a group of addresses. @param {string} group @returns {NetworkDestination} */
  group: (group) => ({
    group: types
      .word(types.DestinationGroups, "group", group.replaceAll("_", "-"))
      .replaceAll("-", "_"),
  }),
});

/** Makers of port ranges. */
export const PortRange = Object.freeze({
  /** Returns one port. @param {number} port */
  single: (port) => PortRange.range(port, port),
  /**
   * Returns the ports of a range.
   *
   * @param {number} start
   * @param {number} end
   * @returns {PortRangeFields}
   */
  range(start, end) {
    for (const port of [start, end]) {
      if (types.whole("port", port) > 65535) throw new RangeError(`${port} is not a port`);
    }
    if (start > end) throw new RangeError(`${start}-${end} is not a range of ports`);
    return { start, end };
  },
});

/**
 * @param {Action} action
 * @param {RuleFields["direction"]} direction
 * @returns {(destination: NetworkDestination) => RuleFields}
 */
const maker = (action, direction) => (destination) => ({
  action,
  direction,
  destination,
  protocols: [],
  ports: [],
});

/** Makers of rules. */
export const Rule = Object.freeze({
  /** Returns a rule that allows connections of the guest. */
  allowEgress: maker("allow", "egress"),
  /** Returns a rule that denies connections of the guest. */
  denyEgress: maker("deny", "egress"),
  /** Returns a rule that allows connections to the guest. */
  allowIngress: maker("allow", "ingress"),
  /** Returns a rule that denies connections to the guest. */
  denyIngress: maker("deny", "ingress"),
  /** Returns a rule that allows connections of both directions. */
  allowAny: maker("allow", "any"),
  /** Returns a rule that denies connections of both directions. */
  denyAny: maker("deny", "any"),
  /** Returns the rules that allow DNS queries to the host, by UDP and TCP. */
  allowDns: () =>
    ["udp", "tcp"].map((protocol) => ({
      ...Rule.allowEgress(Destination.group("host")),
      protocols: [protocol],
      ports: [PortRange.single(53)],
    })),
});

/** Builder of the destination of one rule. */
export class RuleDestinationBuilder {
  /** @param {(destination: NetworkDestination) => RuleBuilder} add */
  constructor(add) {
    this.add = add;
  }

  /** Matches one address. @param {string} address */
  ip(address) {
    return this.add(Destination.ip(address));
  }

  /** Matches an address range. @param {string} range */
  cidr(range) {
    return this.add(Destination.cidr(range));
  }

  /** Matches a name. @param {string} name */
  domain(name) {
    return this.add(Destination.domain(name));
  }

  /** Matches a name and all names below it. @param {string} suffix */
  domainSuffix(suffix) {
    return this.add(Destination.domainSuffix(suffix));
  }

  /** Matches a group. @param {string} group */
  group(group) {
    return this.add(Destination.group(group));
  }

  /** Matches every address. */
  any() {
    return this.add("any");
  }
}

/** Groups of addresses in names of methods. @type {Record<string, string>} */
const GROUPS = {
  Public: "public",
  Private: "private",
  Loopback: "loopback",
  LinkLocal: "link-local",
  Meta: "metadata",
  Multicast: "multicast",
  Host: "host",
};
/** The groups of `allowLocal` and `denyLocal`. */
const LOCAL = ["loopback", "private", "link-local"];

/**
 * Builder of rules. Direction, protocols and ports apply to the rules that are added after them.
 *
 * The methods for groups are `allowPublic`, `denyPublic`, `allowPrivate`, … and are declared below.
 */
class RuleBuilderBase {
  constructor() {
    /** @type {RuleFields["direction"]} */
    this.direction = "egress";
    /** @type {string[]} */
    this.protocols = [];
    /** @type {PortRangeFields[]} */
    this.ranges = [];
    /** @type {RuleFields[]} */
    this.rules = [];
  }

  /** Applies to connections of the guest. */
  egress() {
    return this.set({ direction: "egress" });
  }

  /** Applies to connections to the guest. */
  ingress() {
    return this.set({ direction: "ingress" });
  }

  /** Applies to both directions. */
  any() {
    return this.set({ direction: "any" });
  }

  /** Applies to TCP as well. */
  tcp() {
    return this.set({ protocols: [...this.protocols, "tcp"] });
  }

  /** Applies to UDP as well. */
  udp() {
    return this.set({ protocols: [...this.protocols, "udp"] });
  }

  /** Applies to ICMP as well. */
  icmpv4() {
    return this.set({ protocols: [...this.protocols, "icmpv4"] });
  }

  /** Applies to ICMPv6 as well. */
  icmpv6() {
    return this.set({ protocols: [...this.protocols, "icmpv6"] });
  }

  /** Applies to a port as well. @param {number} port */
  port(port) {
    return this.portRange(port, port);
  }

  /**
   * Applies to a range of ports as well.
   *
   * @param {number} start
   * @param {number} end
   */
  portRange(start, end) {
    return this.set({ ranges: [...this.ranges, PortRange.range(start, end)] });
  }

  /** Applies to ports as well. @param {Iterable<number>} ports */
  ports(ports) {
    return this.set({ ranges: [...this.ranges, ...[...ports].map(PortRange.single)] });
  }

  /**
   * Adds a rule that allows a destination, every one without an argument.
   *
   * @param {(builder: RuleDestinationBuilder) => unknown} [choose]
   */
  allow(choose = (b) => b.any()) {
    return this.choose("allow", choose);
  }

  /**
   * Adds a rule that denies a destination, every one without an argument.
   *
   * @param {(builder: RuleDestinationBuilder) => unknown} [choose]
   */
  deny(choose = (b) => b.any()) {
    return this.choose("deny", choose);
  }

  /** Returns the rules. */
  build() {
    return [...this.rules];
  }

  /** @protected @param {Action} action @param {NetworkDestination} destination */
  add(action, destination) {
    this.rules.push({
      action,
      direction: this.direction,
      destination,
      protocols: [...this.protocols],
      ports: [...this.ranges],
    });
    return this.self();
  }

  /** @private @param {Action} action @param {(builder: RuleDestinationBuilder) => unknown} choose */
  choose(action, choose) {
    choose(new RuleDestinationBuilder((destination) => this.add(action, destination)));
    return this.self();
  }

  /** @private @param {{ direction?: RuleFields["direction"], protocols?: string[],
   *   ranges?: PortRangeFields[] }} fields */
  set(fields) {
    Object.assign(this, fields);
    return this.self();
  }

  /** @private @returns {RuleBuilder} */
  self() {
    return /** @type {RuleBuilder} */ (/** @type {unknown} */ (this));
  }
}

/** @typedef {"Public" | "Private" | "Loopback" | "LinkLocal" | "Meta" | "Multicast" | "Host" | "Local"} GroupName */
/**
 * @typedef {RuleBuilderBase & {
 *   [K in `${"allow" | "deny"}${GroupName}`]: () => RuleBuilder
 * } & {
 *   [K in `${"allow" | "deny"}${"Domain" | "DomainSuffix"}`]: (name: string) => RuleBuilder
 * } & {
 *   [K in `${"allow" | "deny"}${"Domains" | "DomainSuffixes"}`]:
 *     (names: Iterable<string>) => RuleBuilder
 * }} RuleBuilder
 */

/**
 * @param {string} name
 * @param {(this: any, value: any) => unknown} method
 */
function define(name, method) {
  Object.defineProperty(RuleBuilderBase.prototype, name, { value: method, configurable: true });
}

for (const action of types.Actions) {
  for (const [name, group] of Object.entries(GROUPS)) {
    define(action + name, function () {
      return this.add(action, Destination.group(group));
    });
  }
  define(`${action}Local`, function () {
    for (const group of LOCAL) this.add(action, Destination.group(group));
    return this;
  });
  for (const [name, make] of /** @type {const} */ ([
    ["Domain", Destination.domain],
    ["DomainSuffix", Destination.domainSuffix],
  ])) {
    define(action + name, function (value) {
      return this.add(action, make(value));
    });
    define(action + name + (name === "Domain" ? "s" : "es"), function (values) {
      for (const value of types.texts("domains", values)) this.add(action, make(value));
      return this;
    });
  }
}

/** Builder of rules. */
export const RuleBuilder = /** @type {new () => RuleBuilder} */ (
  /** @type {unknown} */ (RuleBuilderBase)
);

/** Builder of a policy. */
export class NetworkPolicyBuilder {
  constructor() {
    /** @type {NetworkPolicyFields} */
    this.policy = { default_egress: "deny", default_ingress: "allow", rules: [] };
  }

  /** Allows connections that match no rule. */
  defaultAllow() {
    return this.defaultEgress("allow").defaultIngress("allow");
  }

  /** Denies connections that match no rule. */
  defaultDeny() {
    return this.defaultEgress("deny").defaultIngress("deny");
  }

  /** Sets the action for connections of the guest. @param {Action} action */
  defaultEgress(action) {
    this.policy.default_egress = types.word(types.Actions, "defaultEgress", action);
    return this;
  }

  /** Sets the action for connections to the guest. @param {Action} action */
  defaultIngress(action) {
    this.policy.default_ingress = types.word(types.Actions, "defaultIngress", action);
    return this;
  }

  /** Adds rules. @param {RuleFields | RuleFields[] | ((b: RuleBuilder) => RuleBuilder)} rule */
  rule(rule) {
    const rules = typeof rule === "function" ? rule(new RuleBuilder()).build() : [rule].flat();
    this.policy.rules.push(...rules);
    return this;
  }

  /** Adds rules for connections of the guest. @param {(b: RuleBuilder) => RuleBuilder} build */
  egress(build) {
    return this.rule((b) => build(b.egress()));
  }

  /** Adds rules for connections to the guest. @param {(b: RuleBuilder) => RuleBuilder} build */
  ingress(build) {
    return this.rule((b) => build(b.ingress()));
  }

  /** Adds rules for both directions. @param {(b: RuleBuilder) => RuleBuilder} build */
  any(build) {
    return this.rule((b) => build(b.any()));
  }

  /** Denies connections of the guest to a name. @param {string} name */
  denyDomain(name) {
    return this.egress((b) => b.denyDomain(name));
  }

  /** Denies connections of the guest to a name and all names below it. @param {string} suffix */
  denyDomainSuffix(suffix) {
    return this.egress((b) => b.denyDomainSuffix(suffix));
  }

  /** Returns the policy. */
  build() {
    return structuredClone(this.policy);
  }
}

/**
 * @param {Action} egress
 * @param {Action} ingress
 * @param {RuleFields[]} rules
 * @returns {NetworkPolicyFields}
 */
const policy = (egress, ingress, rules) => ({
  default_egress: egress,
  default_ingress: ingress,
  rules,
});

/** Makers of policies. */
export const NetworkPolicy = Object.freeze({
  /** Returns the policy that denies everything. */
  none: () => policy("deny", "deny", []),
  /** Returns the policy that allows the public Internet and DNS. It is the default. */
  publicOnly: () =>
    policy("deny", "allow", [
      ...Rule.allowDns(),
      Rule.allowEgress(Destination.group("public")),
    ]),
  /** Returns the public policy with the private networks. */
  nonLocal: () =>
    policy("deny", "allow", [
      ...NetworkPolicy.publicOnly().rules,
      Rule.allowEgress(Destination.group("private")),
    ]),
  /** Returns the policy that allows everything. */
  allowAll: () => policy("allow", "allow", []),
  /** Returns a builder. */
  builder: () => new NetworkPolicyBuilder(),
});
