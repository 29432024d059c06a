"""Sandboxes of their own: arguments, ends, cancellation, and unusual hosts."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import microsandbox
from microsandbox import (
    Image,
    ImageNotFoundError,
    InvalidConfigError,
    Network,
    Patch,
    ProgramNotFoundError,
    Rlimit,
    Sandbox,
    SandboxNotFoundError,
    SandboxNotRunningError,
    Volume,
)

from .real import IMAGE, needs_programs


def setUpModule() -> None:
    needs_programs()


class CreateTests(unittest.IsolatedAsyncioTestCase):
    """Sandboxes of their own."""

    async def test_every_argument_reaches_the_guest(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "f").write_text("shared")
            sandbox = await Sandbox.create(
                "sdk-full",
                image=Image.oci(IMAGE, upper_size_mib=512),
                cpus=1,
                memory=microsandbox.MiB(256),
                workdir="/w",
                hostname="hosty",
                env={"A": "b=c", "EMPTY": ""},
                labels={"team": "ml"},
                scripts={"hi": "echo script"},
                volumes={
                    "/shared": Volume.bind(directory, readonly=True),
                    "/mem": Volume.tmpfs(size_mib=8, noexec=True),
                },
                patches=[
                    Patch.mkdir("/w"),
                    Patch.text("/w/t", "patched", mode=0o600),
                    Patch.append("/w/t", "+more"),
                    Patch.symlink("/w/t", "/w/l"),
                    Patch.file("/w/b", b"\xff"),
                ],
                rlimits=[Rlimit.nofile(99)],
                network=Network(deny_domains=("example.org",), max_connections=7),
                max_duration=3600.5,
                idle_timeout=600,
                replace=True,
            )
            async with sandbox:
                self.assertTrue(sandbox.owns_lifecycle)
                script = (
                    "pwd; hostname; echo $A; cat /w/l; hi; cat /shared/f; "
                    "touch /shared/x 2>/dev/null || echo read-only; ulimit -n"
                )
                output = await sandbox.shell(script)
                self.assertEqual(
                    output.stdout_text,
                    "/w\nhosty\nb=c\npatched+morescript\nsharedread-only\n99\n",
                )
                self.assertEqual(await sandbox.fs.read("/w/b"), b"\xff")
                handle = (await Sandbox.list_with(labels={"team": "ml"}))[0]
                config = handle.config()
                self.assertEqual(config["policy"]["max_duration_secs"], 3601)
                rules = config["network"]["policy"]["rules"]
                self.assertEqual(rules[0]["destination"], {"domain": "example.org"})
        with self.assertRaises(SandboxNotFoundError):
            await Sandbox.get("sdk-full")

    async def test_a_sandbox_is_drained(self) -> None:
        async with await Sandbox.create("sdk-drain", image=IMAGE, replace=True) as sandbox:
            script = "while [ ! -e /go ]; do sleep 0.1; done; echo ended"
            running = await sandbox.exec_stream("sh", ["-c", script])
            await running.recv()
            await sandbox.drain()
            with self.assertRaisesRegex(microsandbox.ExecFailedError, "stopping"):
                while True:
                    await sandbox.exec("true")
            await sandbox.fs.write("/go", b"")
            output = await running.collect()
            self.assertEqual((output.exit_code, output.stdout_text), (0, "ended\n"))
            self.assertEqual((await sandbox.wait_until_stopped()).reason, "stop_requested")

    async def test_wrong_arguments_are_errors_before_anything_runs(self) -> None:
        wrong: list[tuple[type[Exception], dict[str, Any]]] = [
            (ValueError, {}),
            (ValueError, {"image": IMAGE, "snapshot": "s"}),
            (ValueError, {"image": IMAGE, "cpus": True}),
            (ValueError, {"image": IMAGE, "max_duration": float("nan")}),
            (ValueError, {"image": IMAGE, "pull_policy": "daily"}),
            (ValueError, {"image": IMAGE, "ports": {0: 80}}),
            (TypeError, {"image": IMAGE, "entrypoint": "sh"}),
            (TypeError, {"image": IMAGE, "colour": "red"}),
        ]
        for error, given in wrong:
            with self.subTest(str(given)), self.assertRaises(error):
                await Sandbox.create("sdk-wrong", **given)
        with self.assertRaises(InvalidConfigError):
            await Sandbox.create("no/name", image=IMAGE)
        with self.assertRaises(ImageNotFoundError):
            await Sandbox.create("sdk-wrong", image="none:1", pull_policy="never")
        self.assertNotIn("sdk-wrong", [handle.name for handle in await Sandbox.list()])

    async def test_a_sandbox_is_stopped_started_and_removed(self) -> None:
        sandbox = await Sandbox.create("sdk-life", image=IMAGE, detached=True, replace=True)
        self.assertFalse(sandbox.owns_lifecycle)
        await sandbox.fs.write("/root/kept", b"kept")
        waiting = asyncio.ensure_future(sandbox.wait_until_stopped())
        call = asyncio.ensure_future(sandbox.exec("sleep", ["600"]))
        await asyncio.sleep(0.3)
        await sandbox.stop()
        self.assertEqual((await waiting).reason, "stop_requested")
        # A call to a sandbox that ends fails at once, not after its time.
        done, _ = await asyncio.wait([call], timeout=10)
        self.assertTrue(done)
        with self.assertRaises(SandboxNotRunningError):
            await sandbox.exec("true")
        handle = await Sandbox.get("sdk-life")
        self.assertEqual(handle.status, "stopped")
        logged = await handle.logs(sources=["system"])
        self.assertTrue(logged)
        async with await handle.start() as again:
            self.assertEqual(await again.fs.read("/root/kept"), b"kept")
        # What `async with` did not make is killed, and kept.
        self.assertEqual((await Sandbox.get("sdk-life")).status, "stopped")
        await handle.remove()
        with self.assertRaises(SandboxNotFoundError):
            await handle.refresh()

    async def test_the_death_of_a_maker_ends_its_sandbox_and_a_detached_one_stays(self) -> None:
        program = (
            "import asyncio, sys\n"
            "from microsandbox import Sandbox\n"
            "async def main():\n"
            f"    sandbox = await Sandbox.create('sdk-maker', image={IMAGE!r}, replace=True)\n"
            "    if sys.argv[1] == 'detach':\n"
            "        await sandbox.detach()\n"
            "    print('made', flush=True)\n"
            "    await asyncio.sleep(600)\n"
            "asyncio.run(main())\n"
        )
        for word, reason in (("stay", "client_gone"), ("detach", None)):
            maker = subprocess.Popen(
                [sys.executable, "-c", program, word], stdout=subprocess.PIPE
            )
            assert maker.stdout is not None
            self.assertEqual(await asyncio.to_thread(maker.stdout.readline), b"made\n")
            maker.kill()
            maker.wait()
            maker.stdout.close()
            handle = await Sandbox.get("sdk-maker")
            if reason is None:
                await asyncio.sleep(1)
                sandbox = await handle.connect()
                self.assertTrue((await sandbox.exec("true")).success)
                await sandbox.kill()
                await sandbox.close()
            else:
                ended = await handle.wait_until_stopped(timeout=30)
                self.assertEqual(ended.reason, reason)
            await handle.remove()

    async def test_a_cancelled_creation_leaves_nothing(self) -> None:
        for pause in (0, 0.02, 0.1):
            task = asyncio.ensure_future(Sandbox.create("sdk-cancelled", image=IMAGE))
            await asyncio.sleep(pause)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            with self.assertRaises(SandboxNotFoundError):
                await Sandbox.get("sdk-cancelled")

    async def test_a_sandbox_that_dies_during_reads_ends_them(self) -> None:
        async with await Sandbox.create("sdk-dying", image=IMAGE, replace=True) as sandbox:
            handle = await sandbox.shell_stream("yes", log=False)
            stream = await sandbox.fs.read_stream("/dev/zero")
            await stream.recv()
            await sandbox.kill()
            with self.assertRaises((SandboxNotRunningError, microsandbox.FilesystemError)):
                while await stream.recv() is not None:
                    pass
            with self.assertRaises(SandboxNotRunningError):
                await handle.collect()


class HostTests(unittest.IsolatedAsyncioTestCase):
    """Hosts that are not as expected."""

    async def test_a_path_without_programs_is_an_error_that_names_it(self) -> None:
        kept = os.environ["PATH"]
        os.environ["PATH"] = "/nonexistent"
        try:
            self.assertFalse(microsandbox.is_installed())
            with self.assertRaises(ProgramNotFoundError):
                await Sandbox.list()
        finally:
            os.environ["PATH"] = kept

    async def test_a_state_directory_with_a_long_path_works(self) -> None:
        kept = os.environ.get("MSB_HOME")
        with tempfile.TemporaryDirectory() as directory:
            home = Path(directory, "x" * 120)
            home.mkdir(mode=0o700)
            archive = Path(directory, "image.tar")
            await Image.save(archive, IMAGE)
            os.environ["MSB_HOME"] = str(home)
            try:
                await Image.load(archive)
                async with await Sandbox.create("sdk-long", image=IMAGE) as sandbox:
                    self.assertEqual((await sandbox.exec("echo", ["x"])).stdout_text, "x\n")
            finally:
                os.environ.pop("MSB_HOME")
                if kept is not None:
                    os.environ["MSB_HOME"] = kept


if __name__ == "__main__":
    unittest.main()
