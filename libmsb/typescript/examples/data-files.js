/**
 * Data analysis: files go in, a program runs, results come out.
 *
 * usage: node data-files.js [IMAGE]
 */

import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { Sandbox } from "msb-sdk";

const PROGRAM = `
awk -F, 'NR > 1 { sum[$1] += $2 } END { for (k in sum) print k "," sum[k] }' in.csv |
    sort > out.csv
`;

/** Sums a table in the guest. Returns the result. @param {string} image */
export async function main(image) {
  const directory = await mkdtemp(join(tmpdir(), "msb-example-"));
  const sandbox = await Sandbox.builder("example-data").image(image).replace().create();
  try {
    await writeFile(join(directory, "in.csv"), "name,count\nred,1\nblue,2\nred,40\n");
    await sandbox.fs().copyFromHost(join(directory, "in.csv"), "/root/in.csv");
    const output = await sandbox.shell(PROGRAM, { cwd: "/root" });
    if (!output.success) throw new Error(output.stderr());
    await sandbox.fs().copyToHost("/root/out.csv", join(directory, "out.csv"));
    return await readFile(join(directory, "out.csv"), "utf8");
  } finally {
    await sandbox.discard();
    await rm(directory, { recursive: true });
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  console.log(await main(process.argv[2] ?? "alpine:3.20"));
}
