"""An agent loop: a model writes code, a sandbox runs it, the output goes back to the model.

usage: python agent_loop.py [IMAGE]

The model here is a list of answers. Replace `answers` by calls of a model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from microsandbox import ExecTimeoutError, Network
from microsandbox.sync import Sandbox

STEP_SECONDS = 30.0
OUTPUT_BYTES = 4096


def run_code(sandbox: Sandbox, code: str) -> str:
    """Runs code that a model wrote. Returns what the model sees of it."""
    try:
        output = sandbox.shell(code, timeout=STEP_SECONDS, max_output_bytes=OUTPUT_BYTES)
    except ExecTimeoutError as error:
        return f"timed out; output until then: {error.stdout.decode(errors='replace')}"
    text = output.stdout("replace") + output.stderr("replace")
    return f"exit code {output.exit_code}\n{text}{' [cut]' if output.truncated else ''}"


def main(image: str, answers: Iterable[str]) -> list[str]:
    """Runs each answer in one sandbox without a network. Returns the observations."""
    seen: list[str] = []
    with Sandbox.create(
        "example-agent", image=image, network=Network.none(), memory=256, replace=True
    ) as sandbox:
        for code in answers:
            seen.append(run_code(sandbox, code))
            print(seen[-1])
    return seen


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else "python:3.12-slim",
        ["echo $((6 * 7)) > /root/answer", "cat /root/answer; exit 3", "yes"],
    )
