/**
 * A program in TypeScript. The package has its types; `await using` needs a target from ES2022 on.
 *
 * usage: compile it with tsc, or node typed.ts from Node 24 on
 */

import { ExecFailedError, Sandbox, type ExecEvent } from "msb-sdk";

function describe(event: ExecEvent): string {
  switch (event.kind) {
    case "started":
      return `process ${event.pid}`;
    case "stdout":
    case "stderr":
      return event.data.toString();
    case "exited":
      return `exit code ${event.code}`;
    case "failed":
      return `not started: ${event.failure.message}`;
    case "stdin_error":
      return event.error.message;
  }
}

export async function main(image: string): Promise<string[]> {
  await using sandbox = await Sandbox.builder("example-typed").image(image).replace().create();
  const seen: string[] = [];
  for await (const event of await sandbox.shellStream("echo typed; exit 3")) {
    seen.push(describe(event));
  }
  try {
    await sandbox.exec("no-such-program");
  } catch (error) {
    if (error instanceof ExecFailedError) seen.push(error.kind);
  }
  return seen;
}
