/** Calls to one running sandbox: commands, files, jobs, logs, metrics, handles. */

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { allSandboxMetrics, Sandbox, Stdin } from "../src/index.js";
import { IMAGE, needsPrograms } from "./real.js";

const NAME = "ts-shared";
/** @type {Sandbox} */
let sandbox;

before(async () => {
  await needsPrograms();
  sandbox = await Sandbox.builder(NAME).image(IMAGE).replace().create();
});

after(async () => {
  await sandbox.discard();
});

/** Returns the number of `sleep` commands of this many seconds. @param {string} seconds */
async function running(seconds) {
  return Number((await sandbox.shell(`ps | grep -c '[s]leep ${seconds}' || true`)).stdout());
}

test("a command has output, code, environment, directory and user", async () => {
  const script = "echo $A; pwd; id -u; echo e >&2; exit 3";
  const options = { env: { A: "ä" }, cwd: "/bin", user: "7" };
  const output = await sandbox.exec("sh", ["-c", script], options);
  assert.equal(output.stdout(), "ä\n/bin\n7\n");
  assert.deepEqual([output.code, output.success, output.stderr()], [3, false, "e\n"]);
  const built = await sandbox.execWith("sh", (b) => b.args(["-c", "echo $A; ulimit -n"])
    .env("A", "b").rlimit("nofile", 17).stdinNull());
  assert.equal(built.stdout(), "b\n17\n");
});

test("input is text, bytes, a stream or an iterator", async () => {
  async function* pieces() {
    yield "one ";
    yield Buffer.from("two");
  }
  /** @type {[import("../src/index.js").StdinSource, string][]} */
  const sources = [
    ["ä", "ä"],
    [Buffer.from("b"), "b"],
    [pieces(), "one two"],
    [Readable.from([Buffer.from("stream")]), "stream"],
    [Stdin.bytes("s"), "s"],
  ];
  for (const [stdin, expected] of sources) {
    assert.equal((await sandbox.exec("cat", [], { stdin })).stdout(), expected);
  }
});

test("a pipe is written while output is read", async () => {
  const handle = await sandbox.execStreamWith("cat", (b) => b.stdinPipe());
  const sink = handle.takeStdin();
  assert.equal(handle.takeStdin(), null);
  await sink?.write("ping");
  assert.equal((await handle.recv())?.kind, "started");
  assert.deepEqual(await handle.recv(), { kind: "stdout", data: Buffer.from("ping") });
  await sink?.close();
  assert.deepEqual(await handle.wait(), { code: 0, success: true });
  assert.deepEqual(await handle.recv(), { kind: "exited", code: 0 });
  assert.equal(await handle.recv(), null);
});

test("a signal, a terminal, and a failed input", async () => {
  const handle = await sandbox.execStream("sleep", ["60"]);
  await handle.signal(15);
  assert.equal((await handle.wait()).code, 143);
  const output = await sandbox.shell("test -t 0 && stty size", { tty: true, stdin: "" });
  assert.deepEqual(output.stdout().trim().split(" "), ["24", "80"]);
  async function* broken() {
    yield "one";
    throw new Error("no more");
  }
  const kinds = [];
  for await (const { kind } of await sandbox.execStream("cat", [], { stdin: broken() })) {
    kinds.push(kind);
  }
  assert.deepEqual(kinds.sort(), ["exited", "started", "stdin_error", "stdout"]);
});

test("a missing program and a missing directory have a kind", async () => {
  const failed = { name: "ExecFailedError" };
  await assert.rejects(sandbox.exec("no-such"), { ...failed, kind: "not_found", errno: 2 });
  await assert.rejects(sandbox.exec("true", [], { cwd: "/none" }), { ...failed, stage: "cwd" });
});

test("a timeout keeps the output and kills the process group", async () => {
  const script = "echo before; sleep 1234 & sleep 1234";
  const timeout = { name: "ExecTimeoutError", stdout: Buffer.from("before\n"), timeoutMs: 3000 };
  await assert.rejects(sandbox.shell(script, { timeout: 3000 }), timeout);
  const handle = await sandbox.shellStream(script, { timeout: 3000 });
  await assert.rejects(handle.collect(), timeout);
  assert.equal(await running("1234"), 0);
});

test("an abort kills the command in the guest, in each state", async () => {
  const late = new AbortController();
  const call = sandbox.shell("sleep 2345 & sleep 2345", { signal: late.signal });
  call.catch(() => {});
  while ((await running("2345")) < 2) await sleep(50);
  late.abort();
  await assert.rejects(call, { name: "AbortError" });
  assert.equal(await running("2345"), 0);
  const early = new AbortController();
  const other = sandbox.exec("sleep", ["3456"], { signal: early.signal });
  early.abort(new RangeError("early"));
  await assert.rejects(other, RangeError);
  await assert.rejects(sandbox.fs().read("/x", { signal: early.signal }), RangeError);
  await assert.rejects(sandbox.metrics({ signal: early.signal }), RangeError);
  await assert.rejects(sandbox.ping({ signal: early.signal }), RangeError);
  const handle = await sandbox.execStream("sleep", ["3456"], { signal: AbortSignal.timeout(300) });
  await assert.rejects(handle.wait(), { name: "TimeoutError" });
  const follow = new AbortController();
  const stream = await sandbox.logStream({ follow: true, signal: follow.signal });
  setTimeout(() => follow.abort(), 200);
  await assert.rejects(stream.collect(), { name: "AbortError" });
  assert.equal(await running("3456"), 0);
});

test("a hundred commands at once use several connections", async () => {
  const numbers = [...Array(100).keys()].map(String);
  const one = async (/** @type {string} */ number) =>
    (await sandbox.exec("echo", [number], { log: false })).stdout().trim();
  assert.deepEqual(await Promise.all(numbers.map(one)), numbers);
});

test("much output to a slow reader stays in bounded memory", async () => {
  const total = 200 << 20;
  const before = process.memoryUsage();
  const handle = await sandbox.shellStream(`head -c ${total} /dev/zero`, { log: false });
  let received = 0;
  let most = 0;
  let pauses = 0;
  for await (const event of handle) {
    if (event.kind !== "stdout") continue;
    received += event.data.length;
    if (received >= (pauses << 23)) {
      pauses += 1;
      await sleep(10);
      const { external, arrayBuffers, heapUsed } = process.memoryUsage();
      most = Math.max(most, external + arrayBuffers + heapUsed);
    }
  }
  assert.equal(received, total);
  const start = before.external + before.arrayBuffers + before.heapUsed;
  // Buffers that the collector has not freed yet count as well.
  assert.ok(most - start < 128 << 20, `${(most - start) >> 20} MiB more for 200 MiB of output`);
});

test("output is bounded on request", async () => {
  const output = await sandbox.shell("yes | head -n 100000", { maxOutputBytes: 10 });
  assert.deepEqual([output.stdout(), output.truncated], ["y\n".repeat(5), true]);
});

test("files are written, read, listed, renamed and removed", async () => {
  const fs = sandbox.fs();
  await fs.mkdir("/root/f/a/b");
  await fs.mkdir("/root/f/a/b");
  const big = randomBytes(700_001);
  await fs.write("/root/f/big", big, { mode: 0o600 });
  await fs.write("/root/f/text", "täxt");
  assert.ok((await fs.read("/root/f/big")).equals(big));
  assert.equal(await fs.readToString("/root/f/text"), "täxt");
  const { kind, size, mode } = await fs.stat("/root/f/big");
  assert.deepEqual([kind, size, mode], ["file", 700_001, 0o600]);
  const entries = (await fs.list("/root/f")).map((entry) => [entry.path, entry.kind]);
  assert.deepEqual(entries, [
    ["/root/f/a", "directory"], ["/root/f/big", "file"], ["/root/f/text", "file"],
  ]);
  await fs.copy("/root/f/big", "/root/f/copy");
  await fs.rename("/root/f/copy", "/root/f/text");
  assert.ok((await fs.read("/root/f/text")).equals(big));
  await fs.symlink("big", "/root/f/link");
  assert.equal(await fs.readLink("/root/f/link"), "big");
  assert.equal(await fs.realPath("/root/f/link"), "/root/f/big");
  assert.equal((await fs.stat("/root/f/link", { follow: false })).kind, "symlink");
  assert.ok((await (await fs.readStream("/root/f/big")).collect()).equals(big));
  const sink = await fs.writeStream("/root/f/big");
  for (let at = 0; at < big.length; at += 100_000) await sink.write(big.subarray(at, at + 100_000));
  await sink.close();
  assert.ok((await fs.read("/root/f/big")).equals(big));
  await fs.remove("/root/f/link");
  await fs.removeDir("/root/f");
  assert.equal(await fs.exists("/root/f"), false);
  await assert.rejects(fs.read("/root/f/big"), { name: "PathNotFoundError", code: "sandboxFs" });
  await assert.rejects(fs.exists(`/root/${"x".repeat(300)}`), { name: "SandboxFsError" });
  assert.match(await fs.readToString("/proc/version"), /Linux/);
});

test("files and trees are copied between host and guest", async () => {
  const fs = sandbox.fs();
  const directory = await mkdtemp(join(tmpdir(), "msb-ts-"));
  try {
    await mkdir(join(directory, "tree/in"), { recursive: true });
    await writeFile(join(directory, "tree/in/f"), "tree");
    await fs.copyFromHost(join(directory, "tree"), "/root/tree");
    assert.equal(await fs.readToString("/root/tree/in/f"), "tree");
    await fs.copyFromHost(join(directory, "tree/in/f"), "/root/one");
    await fs.copyToHost("/root/one", join(directory, "one"));
    assert.equal(await readFile(join(directory, "one"), "utf8"), "tree");
    await fs.copyToHost("/root/tree", join(directory, "back"));
    assert.equal(await readFile(join(directory, "back/in/f"), "utf8"), "tree");
    await assert.rejects(fs.copyFromHost(join(directory, "none"), "/x"), { name: "IoError" });
  } finally {
    await rm(directory, { recursive: true });
  }
});

test("a thousand files at once", async () => {
  const fs = sandbox.fs();
  await fs.mkdir("/root/many");
  const numbers = [...Array(1000).keys()];
  await Promise.all(numbers.map((number) => fs.write(`/root/many/${number}`, String(number))));
  assert.equal((await fs.list("/root/many")).length, 1000);
  assert.equal(await fs.readToString("/root/many/999"), "999");
  await fs.removeDir("/root/many");
});

test("a job is found again with what it printed", async () => {
  const job = await sandbox.startJob("sh", ["-c", "echo one; sleep 1; echo two; exit 4"]);
  const again = await Sandbox.connect(NAME);
  const found = await again.job(job.id);
  let printed = "";
  let cursor = null;
  for await (const entry of await found.logStream()) {
    printed += entry.text();
    cursor = entry.cursor;
    if (printed.endsWith("one\n")) break;
  }
  assert.equal((await found.wait()).code, 4);
  const rest = await (await found.logStream({ fromCursor: cursor, follow: false })).collect();
  assert.equal(rest.map((entry) => entry.text()).join(""), "two\n");
  assert.ok((await again.jobs()).some(({ id }) => id === job.id));
  again.close();
});

test("commands are logged unless it is turned off", async () => {
  await sandbox.exec("echo", ["logged-line"]);
  await sandbox.exec("echo", ["hidden-line"], { log: false });
  const text = (await sandbox.logs()).map((entry) => entry.text()).join("");
  assert.match(text, /logged-line/);
  assert.doesNotMatch(text, /hidden-line/);
  const last = await sandbox.logs({ tail: 1 });
  assert.equal(last.length, 1);
  assert.ok(last[0]?.timestamp instanceof Date);
  await assert.rejects(sandbox.logStream({ since: 1, fromCursor: "x" }), TypeError);
});

test("metrics are read and streamed", async () => {
  const sample = await sandbox.metrics();
  assert.equal(sample.memoryLimitBytes, 512 << 20);
  assert.ok(sample.uptimeMs > 0);
  const stream = await sandbox.metricsStream(200);
  const [one, other] = [await stream.recv(), await stream.recv()];
  await stream.close();
  assert.ok(one && other && one.timestamp < other.timestamp);
  assert.ok(NAME in (await allSandboxMetrics()));
});

test("a login session and its files", async () => {
  const session = await sandbox.ssh().connect();
  const output = await session.exec("echo $HOME; exit 2");
  assert.deepEqual([output.status, output.stdout.toString()], [2, "/root\n"]);
  const files = await session.sftp();
  await files.write("/root/s", "sftp");
  assert.equal((await files.read("/root/s")).toString(), "sftp");
  await files.removeFile("/root/s");
  await session.close();
  await assert.rejects(sandbox.ssh().server({ user: "x", sftp: false }), {
    name: "UnsupportedOperationError",
    fields: ["user", "sftp"],
  });
});

test("a handle has the configuration, and lists are by label", async () => {
  const handle = await Sandbox.get(NAME);
  assert.equal(handle.status, "running");
  const { name, memory_mib: memory } = JSON.parse(handle.configJson);
  assert.deepEqual([name, memory], [NAME, 512]);
  assert.ok(handle.createdAt && handle.updatedAt && handle.createdAt <= handle.updatedAt);
  assert.ok((await Sandbox.list()).some((each) => each.name === NAME));
  assert.deepEqual(await Sandbox.listWith({ labels: { no: "label" } }), []);
  assert.equal((await sandbox.config()).memoryMib, 512);
  assert.equal(sandbox.ownsLifecycle, true);
  await assert.rejects(Sandbox.get("ts-none"), { name: "SandboxNotFoundError" });
  await assert.rejects(handle.remove(), { name: "SandboxStillRunningError" });
  const again = Sandbox.builder(NAME).image(IMAGE).create();
  await assert.rejects(again, { name: "SandboxAlreadyExistsError" });
  assert.ok((await sandbox.ping()) > 0);
});

test("what is not supported is named", async () => {
  await assert.rejects(sandbox.drain(), { name: "UnsupportedOperationError" });
  const builder = Sandbox.builder("ts-refused").image(IMAGE);
  /** @type {[typeof builder, string][]} */
  const refused = [[builder.network((n) => n.interface((i) => i.mtu(9000))), "network.interface.mtu"]];
  for (const [made, field] of refused) {
    await assert.rejects(made.create(), { name: "UnsupportedOperationError", fields: [field] });
  }
  await assert.rejects(Sandbox.get("ts-refused"), { name: "SandboxNotFoundError" });
});
