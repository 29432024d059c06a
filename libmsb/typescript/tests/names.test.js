/** Every public name of microsandbox 0.5.5 for TypeScript. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

import * as sdk from "../src/index.js";
import { fixture } from "./peer.js";

const NAMES = fixture("names-typescript.json");
const SOURCES = new URL("../src/", import.meta.url);
const TEXT = readdirSync(SOURCES)
  .map((name) => readFileSync(new URL(name, SOURCES), "utf8"))
  .join("\n");

/** @type {Record<string, any>} */
const exported = sdk;

/** @param {string} owner @param {string} member */
function isMember(owner, member) {
  const kind = exported[owner];
  if (typeof kind !== "function") return false;
  const key = member === "@@asyncIterator" ? Symbol.asyncIterator
    : member === "@@asyncDispose" ? Symbol.asyncDispose : member;
  if (key in kind.prototype) return true;
  for (let at = kind; at?.prototype; at = Object.getPrototypeOf(at)) {
    if (new RegExp(`^    this\\.${member} =|^  ${member} =`, "m").test(String(at))) return true;
  }
  return false;
}

/** Returns the text of the declaration of a type. @param {string} name */
function declaration(name) {
  return new RegExp(`@typedef \\{(?!import)[^@]*?\\} ${name}\\b`).exec(TEXT)?.[0] ?? "";
}

/** @returns {[string, boolean][]} */
function everyName() {
  /** @type {[string, boolean][]} */
  const found = [];
  for (const [owner, groups] of Object.entries(NAMES.classes)) {
    for (const member of groups.static ?? []) {
      found.push([`${owner}.${member}`, typeof exported[owner]?.[member] === "function"]);
    }
    for (const member of groups.instance ?? []) {
      const name = `${owner}.${member}`;
      if (!found.some(([known]) => known === name)) found.push([name, isMember(owner, member)]);
    }
  }
  for (const [owner, members] of Object.entries(NAMES.objects)) {
    for (const member of members) {
      found.push([`${owner}.${member}`, typeof exported[owner]?.[member] === "function"]);
    }
  }
  for (const [owner, members] of Object.entries(NAMES.fields)) {
    const text = declaration(owner);
    for (const member of members) {
      found.push([`${owner}.${member}`, new RegExp(`\\b${member}\\??:`).test(text)]);
    }
  }
  for (const name of NAMES.functions) found.push([name, typeof exported[name] === "function"]);
  return found;
}

test("every name is there, and the verdicts name members and are counted", () => {
  const every = everyName();
  const missing = every.filter(([, isThere]) => !isThere).map(([name]) => name);
  const names = new Set(every.map(([name]) => name));
  const differ = Object.keys(NAMES.differs);
  const refused = NAMES.refused;
  assert.deepEqual([...differ, ...refused].filter((name) => !names.has(name)), []);
  assert.deepEqual(differ.filter((name) => refused.includes(name)), []);
  const works = names.size - differ.length - refused.length - missing.length;
  console.log(
    `names: ${names.size} members: ${works} work, ${differ.length} differ, ` +
      `${refused.length} are refused, ${missing.length} are missing`,
  );
  assert.deepEqual(missing, []);
});

test("every word of a list is there", () => {
  for (const [name, words] of Object.entries(NAMES.words)) {
    for (const word of words) assert.ok(exported[name].includes(word), `${name}: ${word}`);
  }
});

test("every error has its code and class", () => {
  for (const [name, code] of Object.entries(NAMES.errors)) {
    const error = new exported[name]("why");
    assert.ok(error instanceof sdk.MicrosandboxError, name);
    assert.deepEqual([error.code, error.name, error.message], [code, name, "why"]);
  }
});

test("what is refused at once is refused with its name", async () => {
  const refusal = { name: "UnsupportedOperationError" };
  assert.throws(() => sdk.setup().baseDir("/x"), refusal);
  assert.throws(() => new sdk.RegistryBuilder().insecure(), { ...refusal, fields: ["registry.insecure"] });
  await assert.rejects(sdk.AgentClient.connect("/x"), { ...refusal, fields: ["agent"] });
});

test("builders write the form of a stored configuration", () => {
  const { document, options } = new sdk.SandboxBuilder("n")
    .image("python")
    .memory(sdk.GiB(1))
    .port(8080, 80)
    .portUdpBind("0.0.0.0", 53, 53)
    .network((n) =>
      n.policy((p) =>
        p.defaultDeny().egress((r) => r.tcp().portRange(8000, 8010).allowPublic().denyDomains(["a.b"])),
      ),
    )
    .rlimit("nofile", 5)
    .maxDuration(1.5)
    .replace()
    .build();
  assert.deepEqual(options, ["--max-duration=1500ms", "--replace", "--entrypoint="]);
  assert.deepEqual(document.image, { Oci: { reference: "python", upper_size_mib: null } });
  assert.equal(document.memory_mib, 1024);
  const ports = [{ start: 8000, end: 8010 }];
  const rule = { direction: "egress", protocols: ["tcp"], ports };
  assert.deepEqual(document.network.policy, {
    default_egress: "deny",
    default_ingress: "deny",
    rules: [
      { ...rule, action: "allow", destination: { group: "public" } },
      { ...rule, action: "deny", destination: { domain: "a.b" } },
    ],
  });
  assert.deepEqual(document.network.ports.map((/** @type {any} */ it) => it.host_bind), [
    "127.0.0.1", "0.0.0.0",
  ]);
});

test("wrong arguments are errors before anything runs", () => {
  const builder = () => new sdk.SandboxBuilder("n").image("x");
  /** @type {[() => unknown, ErrorConstructor | any][]} */
  const wrong = [
    [() => new sdk.SandboxBuilder("n").build(), TypeError],
    [() => builder().fromSnapshot("s").build(), TypeError],
    [() => builder().cpus(0), RangeError],
    [() => builder().memory(/** @type {any} */ (true)), TypeError],
    [() => builder().maxDuration(NaN), RangeError],
    [() => builder().pullPolicy(/** @type {any} */ ("daily")), RangeError],
    [() => builder().port(0, 80), RangeError],
    [() => builder().entrypoint(/** @type {any} */ ("sh")), TypeError],
    [() => builder().rlimitRange("nofile", 5, 4), RangeError],
    [() => new sdk.SandboxBuilder("x".repeat(129)).image("x").build(), sdk.InvalidConfigError],
    [() => sdk.Destination.cidr("10.0.0.0/33"), sdk.NetworkBuilderError],
    [() => sdk.PortRange.range(2, 1), RangeError],
    [() => new sdk.SecretBuilder().env("A").value("v").build(), RangeError],
  ];
  for (const [work, error] of wrong) assert.throws(work, error, String(work));
});
