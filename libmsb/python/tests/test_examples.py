"""The examples, each run as its reader runs it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

from examples import (
    agent_loop,
    backend,
    cancellation,
    conftest_sandbox,
    data_files,
    notebook,
    pool,
    streaming,
    web_server,
)

from .real import IMAGE, needs_programs

DIRECTORY = Path(__file__).resolve().parents[1]


def setUpModule() -> None:
    needs_programs()


class ExampleTests(unittest.TestCase):
    def test_an_agent_loop_sees_output_codes_and_cuts(self) -> None:
        answers = ["echo 42 > /root/a", "cat /root/a; exit 3", "yes | head -n 9999"]
        seen = agent_loop.main(IMAGE, answers)
        self.assertEqual(seen[:2], ["exit code 0\n", "exit code 3\n42\n"])
        self.assertTrue(seen[2].endswith("[cut]"))

    def test_data_goes_in_and_comes_out(self) -> None:
        self.assertEqual(asyncio.run(data_files.main(IMAGE)), "blue,2\nred,41\n")

    def test_a_web_server_is_reached(self) -> None:
        self.assertEqual(asyncio.run(web_server.main(IMAGE)), "hello from the guest\n")

    def test_a_pool_serves_tasks(self) -> None:
        self.assertEqual(asyncio.run(pool.main(IMAGE)), ["task 0", "task 1", "task 2"])

    def test_events_are_streamed(self) -> None:
        self.assertEqual(asyncio.run(streaming.main(IMAGE)), 4)

    def test_a_cancelled_command_ends(self) -> None:
        asyncio.run(cancellation.main(IMAGE))

    def test_a_notebook_calls_without_await(self) -> None:
        self.assertEqual(notebook.main(IMAGE), "kept between cells")

    def test_a_fixture_makes_a_sandbox(self) -> None:
        conftest_sandbox.IMAGE = IMAGE
        with conftest_sandbox.new_sandbox() as sandbox:
            self.assertTrue(sandbox.exec("true").success)

    def test_a_backend_never_raises(self) -> None:
        response = backend.main(IMAGE)
        self.assertEqual((response.output, response.exit_code), ("a", 5))

    def test_an_mcp_server_runs_commands(self) -> None:
        server = DIRECTORY / "examples" / "mcp_server.py"
        self.assertLessEqual(len(server.read_text().splitlines()), 200)
        calls: list[Any] = [
            {"method": "initialize", "params": {}},
            {"method": "tools/list"},
            self.tool("sandbox_create", name="example-mcp", image=IMAGE),
            self.tool("sandbox_exec", name="example-mcp", command="echo hi; exit 2"),
            self.tool("sandbox_exec", name="none", command="true"),
            self.tool("sandbox_remove", name="example-mcp"),
        ]
        with subprocess.Popen(
            [sys.executable, str(server)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(DIRECTORY / "src")},
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            results: list[Any] = []
            for number, fields in enumerate(calls):
                message = {"jsonrpc": "2.0", "id": number, **fields}
                process.stdin.write(json.dumps(message) + "\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
                self.assertEqual(answer["id"], number)
                results.append(answer["result"])
            process.stdin.close()
        tools = [tool["name"] for tool in results[1]["tools"]]
        self.assertIn("sandbox_exec", tools)
        text = json.loads(results[3]["content"][0]["text"])
        self.assertEqual((text["stdout"], text["exit_code"]), ("hi\n", 2))
        self.assertTrue(results[4]["isError"])
        self.assertFalse(results[5]["isError"])

    @staticmethod
    def tool(name: str, /, **arguments: Any) -> Any:
        return {"method": "tools/call", "params": {"name": name, "arguments": arguments}}


if __name__ == "__main__":
    unittest.main()
