/**
 * An agent loop: a model writes code, a sandbox runs it, the output goes back to the model.
 *
 * usage: node agent-loop.js [IMAGE]
 *
 * The model here is a list of answers. Replace it by calls of a model.
 */

import { pathToFileURL } from "node:url";

import { ExecTimeoutError, Sandbox } from "msb-sdk";

const STEP_MS = 30_000;
const OUTPUT_BYTES = 4096;

/**
 * Runs code that a model wrote. Returns what the model sees of it.
 *
 * @param {Sandbox} sandbox
 * @param {string} code
 */
async function runCode(sandbox, code) {
  try {
    const limits = { timeout: STEP_MS, maxOutputBytes: OUTPUT_BYTES };
    const output = await sandbox.shell(code, limits);
    const text = output.stdout() + output.stderr();
    return `exit code ${output.code}\n${text}${output.truncated ? " [cut]" : ""}`;
  } catch (error) {
    if (!(error instanceof ExecTimeoutError)) throw error;
    return `timed out; output until then: ${error.stdout}`;
  }
}

/**
 * Runs each answer in one sandbox without a network. Returns the observations.
 *
 * @param {string} image
 * @param {string[]} answers
 */
export async function main(image, answers) {
  const sandbox = await Sandbox.builder("example-agent").image(image).disableNetwork().memory(256)
    .replace().create();
  try {
    const seen = [];
    for (const code of answers) seen.push(await runCode(sandbox, code));
    return seen;
  } finally {
    await sandbox.discard();
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const answers = ["echo $((6 * 7)) > /root/answer", "cat /root/answer; exit 3", "yes"];
  console.log(await main(process.argv[2] ?? "python:3.12-slim", answers));
}
