/** Sandboxes of their own: arguments, ends, cancellation, resources and unusual hosts. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import * as sdk from "../src/index.js";
import { Image, MiB, Sandbox, Snapshot, Volume } from "../src/index.js";
import { freePort, IMAGE, needsPrograms } from "./real.js";

before(needsPrograms);

/** Runs a test with a directory of its own. @param {(directory: string) => Promise<void>} work */
async function inDirectory(work) {
  const directory = await mkdtemp(join(tmpdir(), "msb-ts-"));
  try {
    await work(directory);
  } finally {
    await rm(directory, { recursive: true });
  }
}

/** Returns what a server sends. @param {number} port */
async function fetchText(port) {
  for (;;) {
    const socket = connect(port, "127.0.0.1");
    const pieces = [];
    try {
      for await (const data of socket) pieces.push(data);
    } catch {
      // Nothing listens yet.
    }
    if (pieces.length > 0) return Buffer.concat(pieces).toString();
    await sleep(100);
  }
}

test("every argument reaches the guest, and a port the host", async () => {
  await inDirectory(async (directory) => {
    await writeFile(join(directory, "f"), "shared");
    const port = await freePort();
    const sandbox = await Sandbox.builder("ts-full")
      .imageWith((b) => b.oci(IMAGE).upperSize(512))
      .memory(MiB(256))
      .workdir("/w")
      .hostname("hosty")
      .envs({ A: "b=c", EMPTY: "" })
      .label("team", "ml")
      .script("hi", "echo script")
      .volume("/shared", (b) => b.bind(directory).readonly())
      .volume("/mem", (b) => b.tmpfs().size(8).noexec())
      .patch((b) =>
        b.mkdir("/w").text("/w/t", "patched", { mode: 0o600 }).append("/w/t", "+more")
          .symlink("/w/t", "/w/l").file("/w/b", Buffer.from([255])),
      )
      .rlimit("nofile", 99)
      .port(port, 8000)
      .network((b) => b.maxConnections(7).policy((p) => p.denyDomain("example.org")))
      .secretEnv("KEY", "hunter2", "a.test")
      .maxDuration(3600.5)
      .idleTimeout(600)
      .replace()
      .create();
    try {
      const script =
        "pwd; hostname; echo $A $KEY; cat /w/l; hi; cat /shared/f; " +
        "touch /shared/x 2>/dev/null || echo read-only; ulimit -n";
      const stdout = (await sandbox.shell(script)).stdout();
      assert.equal(stdout, "/w\nhosty\nb=c $MSB_KEY\npatched+morescript\nsharedread-only\n99\n");
      assert.deepEqual(await sandbox.fs().read("/w/b"), Buffer.from([255]));
      const [handle] = await Sandbox.listWith({ labels: { team: "ml" } });
      const config = handle?.config();
      assert.equal(config.policy.max_duration_secs, 3601);
      assert.deepEqual(config.network.secrets.secrets[0].allowed_hosts, [{ exact: "a.test" }]);
      assert.equal(JSON.stringify(config).includes("hunter2"), false);
      assert.deepEqual(config.network.policy.rules[0].destination, { domain: "example.org" });
      const serve = ["-l", "-p", "8000", "-e", "echo", "served"];
      const server = await sandbox.startJob("nc", serve);
      assert.equal(await fetchText(port), "served\n");
      await server.wait();
    } finally {
      await sandbox.discard();
    }
  });
  await assert.rejects(Sandbox.get("ts-full"), { name: "SandboxNotFoundError" });
});

test("a sandbox is stopped, copied, started and removed", async () => {
  await inDirectory(async (directory) => {
    const sandbox = await Sandbox.builder("ts-life").image(IMAGE).detached().replace().create();
    assert.equal(sandbox.ownsLifecycle, false);
    await sandbox.fs().write("/root/kept", "kept");
    const waiting = sandbox.waitUntilStopped();
    const call = sandbox.exec("sleep", ["600"]);
    call.catch(() => {});
    await sleep(300);
    await sandbox.stop();
    assert.equal((await waiting).reason, "stop_requested");
    // A call to a sandbox that ends does not wait for its command.
    await Promise.allSettled([call]);
    await assert.rejects(sandbox.exec("true"), { name: "SandboxNotRunningError" });
    const handle = await Sandbox.get("ts-life");
    assert.equal(handle.status, "stopped");
    assert.ok((await handle.logs({ sources: ["system"] })).length > 0);

    const taken = await handle.snapshot("ts-base");
    const other = await Snapshot.builder("ts-life").path(join(directory, "other"))
      .label("a", "b").recordIntegrity().create();
    const exists = { name: "SnapshotAlreadyExistsError" };
    await assert.rejects(handle.snapshot("ts-base"), exists);
    assert.deepEqual([other.labels, other.parent], [[["a", "b"]], taken.digest]);
    assert.equal((await other.verify()).kind, "verified");
    assert.deepEqual(await taken.verify(), { kind: "notRecorded" });
    const listed = await Snapshot.list();
    assert.equal(listed.find((it) => it.digest === taken.digest)?.name, "ts-base");
    const found = await Snapshot.listDir(directory);
    assert.deepEqual(found.map((it) => it.digest), [other.digest]);
    const archive = join(directory, "archive");
    await Snapshot.export("ts-base", archive);
    await Snapshot.remove(other.path);
    await (await Snapshot.get("ts-base")).remove({ force: true });
    await assert.rejects(Snapshot.open("ts-base"), { name: "SnapshotNotFoundError" });
    const imported = await Snapshot.import(archive);
    assert.deepEqual([imported.digest, (await imported.open()).sizeBytes], [taken.digest, taken.sizeBytes]);
    await imported.remove();

    const again = await handle.start();
    assert.equal(await again.fs().readToString("/root/kept"), "kept");
    await again[Symbol.asyncDispose]();
    // What was only started is stopped, and kept.
    assert.equal((await Sandbox.get("ts-life")).status, "stopped");
    await handle.remove();
    await assert.rejects(handle.refresh(), { name: "SandboxNotFoundError" });
  });
});

test("the death of a maker ends its sandbox, and a detached one stays", async () => {
  const module = new URL("../src/index.js", import.meta.url).href;
  const program =
    `import { Sandbox } from ${JSON.stringify(module)};` +
    `const sandbox = await Sandbox.builder("ts-maker").image(${JSON.stringify(IMAGE)})` +
    `.replace().create();` +
    `if (process.argv[1] === "detach") await sandbox.detach();` +
    `console.log("made");` +
    `if (process.argv[1] !== "end") setInterval(() => {}, 1000);`;
  const ends = { stay: "client_gone", end: "client_gone", detach: "" };
  for (const [word, reason] of Object.entries(ends)) {
    const args = ["--input-type=module", "-e", program, word];
    const maker = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
    await once(maker.stdout, "data");
    const ended = once(maker, "exit");
    if (word !== "end") maker.kill("SIGKILL");
    await ended;
    const handle = await Sandbox.get("ts-maker");
    if (reason) {
      const result = await handle.waitUntilStopped({ signal: AbortSignal.timeout(30_000) });
      assert.equal(result.reason, reason, word);
    } else {
      await sleep(1000);
      const sandbox = await handle.connect();
      assert.ok((await sandbox.exec("true")).success);
      await sandbox.kill();
      sandbox.close();
    }
    await handle.remove();
  }
});

test("an aborted creation leaves nothing", async () => {
  // A start from memory can take less than 300 ms.
  for (const pause of [0, 20, 100]) {
    const stop = new AbortController();
    const made = Sandbox.builder("ts-aborted").image(IMAGE).create({ signal: stop.signal });
    made.catch(() => {});
    await sleep(pause);
    stop.abort();
    await assert.rejects(made, { name: "AbortError" });
    await assert.rejects(Sandbox.get("ts-aborted"), { name: "SandboxNotFoundError" });
  }
});

test("a sandbox that dies during reads ends them", async () => {
  const sandbox = await Sandbox.builder("ts-dying").image(IMAGE).replace().create();
  const handle = await sandbox.shellStream("yes", { log: false });
  const stream = await sandbox.fs().readStream("/dev/zero");
  await stream.recv();
  await sandbox.kill();
  await assert.rejects(stream.collect(), (error) =>
    /SandboxNotRunningError|SandboxFsError/.test(/** @type {Error} */ (error).name));
  await assert.rejects(handle.collect(), { name: "SandboxNotRunningError" });
  await sandbox.discard();
});

test("volumes keep files and never leave their root", async () => {
  await Volume.builder("ts-volume").label("a", "b").create();
  try {
    const exists = { name: "VolumeAlreadyExistsError" };
    await assert.rejects(Volume.builder("ts-volume").create(), exists);
    const handle = await Volume.get("ts-volume");
    assert.deepEqual([handle.labels, handle.quotaMib], [{ a: "b" }, null]);
    const fs = handle.fs();
    await fs.mkdir("/d/e");
    await fs.write("/d/e/f", "host");
    await fs.copy("/d/e/f", "/d/e/g");
    await fs.rename("/d/e/g", "/d/h");
    const sandbox = await Sandbox.builder("ts-volumes").image(IMAGE).replace()
      .volume("/data", (b) => b.named("ts-volume")).create();
    try {
      const script = "cat /data/d/e/f /data/d/h; ln -s /etc/passwd /data/out";
      assert.equal((await sandbox.shell(script)).stdout(), "hosthost");
    } finally {
      await sandbox.discard();
    }
    const refused = { name: "SandboxFsError" };
    await assert.rejects(fs.read("/out"), refused);
    await assert.rejects(fs.read("/../volume.json"), refused);
    await assert.rejects(fs.read("/none"), { name: "PathNotFoundError" });
    assert.deepEqual((await fs.list()).map((it) => it.path), ["/d", "/out"]);
    await fs.removeDir("/d");
    assert.equal(await fs.exists("/d"), false);
  } finally {
    await Volume.remove("ts-volume");
  }
  await assert.rejects(Volume.get("ts-volume"), { name: "VolumeNotFoundError" });
});

test("images are listed, inspected, saved and loaded, also below a long path", async () => {
  const image = await Image.get(IMAGE);
  assert.equal(image.reference, IMAGE);
  const { config, layers } = await image.inspect();
  assert.equal(layers.length, image.layerCount);
  assert.match(config?.digest ?? "", /^sha256:/);
  assert.ok((await Image.list()).some((it) => it.manifestDigest === image.manifestDigest));
  assert.equal(typeof (await Image.gcLayers()), "number");
  await inDirectory(async (directory) => {
    const archive = join(directory, "image.tar");
    await Image.save(archive, IMAGE);
    const kept = process.env.MSB_HOME;
    process.env.MSB_HOME = join(directory, "x".repeat(120));
    try {
      await mkdir(process.env.MSB_HOME, { mode: 0o700 });
      const [loaded] = await Image.load(archive, { tag: "ts-copy:1" });
      assert.equal(loaded?.layers, image.layerCount);
      const sandbox = await Sandbox.builder("ts-long").image("ts-copy:1").create();
      assert.equal((await sandbox.exec("echo", ["x"])).stdout(), "x\n");
      await sandbox.discard();
      await Image.remove("ts-copy:1");
      await assert.rejects(Image.get("ts-copy:1"), { name: "ImageNotFoundError" });
    } finally {
      process.env.MSB_HOME = kept;
    }
  });
});

test("a pull without a registry reports its error", async () => {
  const session = Sandbox.builder("ts-pulled").image("127.0.0.1:9/none:1").createWithPullProgress();
  const kinds = [];
  for await (const event of session) kinds.push(event.kind);
  assert.deepEqual(kinds, ["resolving"]);
  await assert.rejects(session.awaitSandbox(), { name: "ImagePullFailedError" });
  await assert.rejects(session.awaitSandbox(), { name: "UsedUpError" });
  const never = Sandbox.builder("ts-pulled").image("none:1").pullPolicy("never");
  await assert.rejects(never.create(), { name: "ImageNotFoundError" });
  await assert.rejects(Sandbox.builder("no/name").image(IMAGE).create(), {
    name: "InvalidConfigError",
  });
});

test("a path without programs is an error that names it", async () => {
  const { PATH, MSB_PATH } = process.env;
  process.env.PATH = "/nonexistent";
  delete process.env.MSB_PATH;
  try {
    assert.equal(sdk.isInstalled(), false);
    await assert.rejects(Sandbox.list(), { name: "ProgramNotFoundError" });
  } finally {
    process.env.PATH = PATH;
    if (MSB_PATH !== undefined) process.env.MSB_PATH = MSB_PATH;
  }
  assert.match(await sdk.runtimeVersion(), /^\d+\.\d+/);
});
