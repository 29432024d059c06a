"""Calls in the form in which the documentation of microsandbox 0.5.5 shows them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any

from microsandbox import (
    Image,
    Network,
    Rlimit,
    Sandbox,
    SandboxNotFoundError,
    Snapshot,
    Stdin,
    Volume,
    all_sandbox_metrics,
)

from .real import IMAGE, needs_programs

# The program that the documentation runs, as far as these calls need it.
PYTHON = """#!/bin/sh
case $1 in
-c) echo hello ;;
compute.py) pwd; echo $PYTHONPATH; ulimit -n ;;
server.py) sleep 600 ;;
*) while read -r line; do [ "$line" = "exit()" ] && exit; echo "read $line"; done ;;
esac
"""


def setUpModule() -> None:
    needs_programs()


class DocumentedTests(unittest.IsolatedAsyncioTestCase):
    """Each subtest is one documented call; the last test counts them."""

    calls = 0

    @contextlib.contextmanager
    def call(self, name: str) -> Any:
        """Counts a call."""
        with self.subTest(name):
            yield
            type(self).calls += 1

    async def asyncSetUp(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.directory.name)
        os.mkdir("src")
        Path("src/main.py").write_text("pass\n")
        Path("local-file.txt").write_text("local\n")
        subprocess.run(["msb", "image", "tag", "--quiet", IMAGE, "python"], check=True)

    async def test_calls_of_the_documentation_run_unchanged(self) -> None:
        with self.call("create"):
            sb = await Sandbox.create(
                "worker",
                image="python",
                memory=512,
                cpus=1,
                env={"PYTHONDONTWRITEBYTECODE": "1"},
                labels={"app": "engine"},
                scripts={"python": PYTHON},
                volumes={"/app/src": Volume.bind("./src", readonly=True)},
                network=Network.public_only(),
            )
        with self.call("exec"):
            output = await sb.exec("python", ["-c", "print('hello')"])
            self.assertEqual((output.stdout_text, output.success, output.exit_code),
                             ("hello\n", True, 0))
        with self.call("exec with options"):
            output = await sb.exec(
                "python",
                ["compute.py"],
                cwd="/app",
                env={"PYTHONPATH": "/app/lib"},
                timeout=30.0,
                rlimits=[Rlimit.nofile(1024)],
            )
            self.assertEqual(output.stdout_text, "/app\n/app/lib\n1024\n")
        with self.call("shell"):
            output = await sb.shell("ls -la /app && echo done")
            self.assertTrue(output.stdout_text.endswith("done\n"))
        with self.call("exec_stream"):
            handle = await sb.exec_stream("python", ["-c", "print('hello')"])
            seen: list[Any] = []
            async for event in handle:
                match_on = event.event_type
                if match_on == "stdout":
                    seen.append(event.data)
                elif match_on == "exited":
                    seen.append(event.code)
            self.assertEqual(seen, [b"hello\n", 0])
        with self.call("take_stdin"):
            handle = await sb.exec_stream("python", stdin=Stdin.pipe(), tty=True)
            stdin = handle.take_stdin()
            assert stdin is not None
            await stdin.write(b"print('hello')\n")
            await stdin.write(b"exit()\n")
            await stdin.close()
            code, success = await handle.wait()
            self.assertEqual((code, success), (0, True))
        with self.call("id, kill"):
            handle = await sb.exec_stream("python", ["server.py"])
            self.assertIsInstance(handle.id, str)
            await handle.kill()
            self.assertFalse((await handle.wait())[1])
        await self.files(sb)
        await self.states(sb)
        print(f"documented: {type(self).calls} calls")
        self.assertGreaterEqual(type(self).calls, 15)

    async def files(self, sb: Sandbox) -> None:
        """Runs the calls of the pages about files."""
        with self.call("fs.write"):
            await sb.fs.write("/app/config.json", b'{"debug": true}')
        with self.call("fs.read_text"):
            content = await sb.fs.read_text("/app/config.json")
            self.assertEqual(content, '{"debug": true}')
        with self.call("fs.list"):
            entries = await sb.fs.list("/app")
            self.assertIn(("/app/config.json", "file"),
                          [(entry.path, entry.kind) for entry in entries])
        with self.call("fs.read_stream"):
            stream = await sb.fs.read_stream("/app/config.json")
            chunks = [chunk async for chunk in stream]
            self.assertEqual(b"".join(chunks), b'{"debug": true}')
        with self.call("fs.write_stream"):
            async with await sb.fs.write_stream("/app/data.bin") as sink:
                await sink.write(b"chunk")
            self.assertEqual((await sb.fs.stat("/app/data.bin")).size, 5)
        with self.call("fs.copy_from_host"):
            await sb.fs.copy_from_host("./local-file.txt", "/app/remote-file.txt")
        with self.call("fs.copy_to_host"):
            await sb.fs.copy_to_host("/app/remote-file.txt", "./copied.txt")
            self.assertEqual(Path("copied.txt").read_text(), "local\n")
        with self.call("fs.mkdir, rename, exists, remove_dir"):
            await sb.fs.mkdir("/app/a/b")
            await sb.fs.rename("/app/a", "/app/c")
            self.assertTrue(await sb.fs.exists("/app/c/b"))
            await sb.fs.remove_dir("/app/c")

    async def states(self, sb: Sandbox) -> None:
        """Runs the calls of the pages about life cycle, volumes and snapshots."""
        with self.call("list_with"):
            mine = await Sandbox.list_with(labels={"app": "engine"})
            self.assertEqual([handle.name for handle in mine], ["worker"])
        with self.call("metrics"):
            metrics = await sb.metrics()
            self.assertGreater(metrics.memory_limit_bytes, metrics.memory_bytes)
            self.assertIn("worker", await all_sandbox_metrics())
        with self.call("logs"):
            entries = await sb.logs(tail=100)
            self.assertIn("hello\n", [entry.text() for entry in entries])
        with self.call("get"):
            handle = await Sandbox.get("worker")
            self.assertEqual(handle.status, "running")
        with self.call("stop_and_wait"):
            await sb.stop_and_wait()
        with self.call("snapshot"):
            snap = await handle.snapshot("worker-base")
            self.assertTrue(snap.digest.startswith("sha256:"))
        with self.call("remove"):
            await Sandbox.remove("worker")
            with self.assertRaises(SandboxNotFoundError):
                await Sandbox.get("worker")
        with self.call("Volume.create, named"):
            await Volume.create("pip-cache")
        with self.call("create from a snapshot"):
            async with await Sandbox.create(
                "worker",
                snapshot="worker-base",
                volumes={"/root/.cache/pip": Volume.named("pip-cache")},
            ) as sb:
                self.assertEqual(await sb.fs.read_text("/app/remote-file.txt"), "local\n")
        with self.call("Snapshot.remove, Volume.remove, Image.remove"):
            await Snapshot.remove("worker-base")
            await Volume.remove("pip-cache")
            await Image.remove("python")


if __name__ == "__main__":
    unittest.main()
