"""Calls to one running sandbox: commands, files, jobs, logs, metrics, handles."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import tempfile
import unittest
from pathlib import Path
from typing import Any

import microsandbox
from microsandbox import (
    ExecFailedError,
    ExecTimeoutError,
    Job,
    PathNotFoundError,
    Rlimit,
    Sandbox,
    SandboxAlreadyExistsError,
    SandboxNotFoundError,
    SandboxStatus,
    SandboxStillRunningError,
    Secret,
    StdoutEvent,
    Stdin,
    UnsupportedOperationError,
)

from .real import IMAGE, needs_programs

NAME = "sdk-shared"


def setUpModule() -> None:
    needs_programs()
    from microsandbox.sync import Sandbox as SyncSandbox

    SyncSandbox.create(NAME, image=IMAGE, replace=True, detached=True)


def tearDownModule() -> None:
    from microsandbox.sync import Sandbox as SyncSandbox

    handle = SyncSandbox.get(NAME)
    handle.kill()
    handle.remove()


class SharedTests(unittest.IsolatedAsyncioTestCase):
    """Calls to one sandbox that no test changes."""

    async def asyncSetUp(self) -> None:
        # The debug mode of unittest records a stack for each task and callback.
        asyncio.get_running_loop().set_debug(False)
        self.sandbox = await Sandbox.connect(NAME)

    async def asyncTearDown(self) -> None:
        await self.sandbox.close()

    # ---- exec

    async def test_a_command_has_output_code_environment_directory_and_user(self) -> None:
        output = await self.sandbox.exec(
            "sh", ["-c", "echo $A; pwd; id -u; echo e >&2; exit 3"], env={"A": "ä"}, cwd="/bin",
            user="7",
        )
        self.assertEqual(output.stdout_text, "ä\n/bin\n7\n")
        self.assertEqual((output.exit_code, output.success, output.stderr_text), (3, False, "e\n"))

    async def test_options_can_be_a_mapping_and_unknown_ones_are_refused(self) -> None:
        output = await self.sandbox.exec("cat", {"args": ["-"], "stdin_data": b"x"})
        self.assertEqual(output.stdout_bytes, b"x")
        with self.assertRaises(TypeError):
            await self.sandbox.exec("cat", {"colour": "red"})
        with self.assertRaises(TypeError):
            await self.sandbox.exec("cat", "one text")
        for timeout in (-1, float("nan"), float("inf"), True):
            with self.assertRaises(ValueError):
                await self.sandbox.exec("cat", timeout=timeout)

    async def test_input_is_bytes_text_a_file_or_an_iterator(self) -> None:
        async def pieces() -> Any:
            yield b"one "
            yield b"two"

        with tempfile.TemporaryFile() as file:
            file.write(b"file")
            file.seek(0)
            sources: list[tuple[Any, bytes]] = [
                (b"b", b"b"),
                ("ä", "ä".encode()),
                (file, b"file"),
                (pieces(), b"one two"),
                (Stdin.bytes(b"s"), b"s"),
            ]
            for source, expected in sources:
                output = await self.sandbox.exec("cat", stdin=source)
                self.assertEqual(output.stdout_bytes, expected)

    async def test_a_pipe_is_written_while_output_is_read(self) -> None:
        async with await self.sandbox.exec_stream("cat", stdin=Stdin.pipe()) as handle:
            sink = handle.take_stdin()
            assert sink is not None
            self.assertIsNone(handle.take_stdin())
            await sink.write(b"ping")
            kinds = [(await handle.recv()).__class__.__name__ for _ in range(2)]
            self.assertEqual(kinds, ["StartedEvent", "StdoutEvent"])
            await sink.close()
            self.assertEqual(tuple(await handle.wait()), (0, True))

    async def test_a_signal_and_a_terminal(self) -> None:
        handle = await self.sandbox.exec_stream("sleep", ["60"])
        await handle.signal(signal.SIGTERM)
        self.assertEqual((await handle.wait()).code, 143)
        script = "test -t 0 && stty size"
        output = await self.sandbox.shell(script, tty=True, stdin=b"")
        self.assertEqual(output.stdout_text.split(), ["24", "80"])

    async def test_limits_hold_and_a_missing_program_has_a_kind(self) -> None:
        limits = [Rlimit.nofile(17)]
        output = await self.sandbox.shell("ulimit -n", rlimits=limits)
        self.assertEqual(output.stdout_text, "17\n")
        with self.assertRaises(ExecFailedError) as raised:
            await self.sandbox.exec("no-such-program")
        self.assertEqual(raised.exception.kind, "not_found")
        with self.assertRaises(ExecFailedError) as raised:
            await self.sandbox.exec("true", cwd="/none")
        self.assertEqual(raised.exception.stage, "cwd")

    async def test_a_timeout_keeps_the_output_and_kills_the_process_group(self) -> None:
        script = "echo before; sleep 1234 & sleep 1234"
        for call in (self.sandbox.shell, self.sandbox.shell_stream):
            with self.assertRaises(ExecTimeoutError) as raised:
                result = await call(script, timeout=3)
                if isinstance(result, microsandbox.ExecHandle):
                    await result.collect()
            self.assertEqual(raised.exception.stdout, b"before\n")
        self.assertEqual(await self.running("1234"), 0)

    async def test_a_cancellation_kills_the_command_in_the_guest(self) -> None:
        task = asyncio.ensure_future(self.sandbox.shell("sleep 2345 & sleep 2345"))
        while await self.running("2345") < 2:
            await asyncio.sleep(0.05)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertEqual(await self.running("2345"), 0)
        # And a call that is cancelled before it has started.
        early = asyncio.ensure_future(self.sandbox.exec("sleep", ["3456"]))
        await asyncio.sleep(0)
        early.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await early
        self.assertEqual(await self.running("3456"), 0)

    async def running(self, seconds: str) -> int:
        script = f"ps | grep -c '[s]leep {seconds}' || true"
        return int((await self.sandbox.shell(script)).stdout_text)

    async def test_a_hundred_commands_at_once_use_several_connections(self) -> None:
        async def one(number: int) -> bool:
            output = await self.sandbox.exec("echo", [str(number)], log=False)
            return output.stdout_text == f"{number}\n"

        self.assertEqual(await asyncio.gather(*map(one, range(100))), [True] * 100)

    async def test_much_output_to_a_slow_reader_stays_in_bounded_memory(self) -> None:
        total = 200 << 20
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        command = f"head -c {total} /dev/zero"
        handle = await self.sandbox.shell_stream(command, log=False)
        received = 0
        async for event in handle:
            if isinstance(event, StdoutEvent):
                received += len(event.data or b"")
                if received % (16 << 20) < 65536:
                    await asyncio.sleep(0.01)
        self.assertEqual(received, total)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        self.assertLess(grown, 16 << 10, "more than 16 MiB for 200 MiB of output")

    async def test_output_is_bounded_on_request(self) -> None:
        output = await self.sandbox.shell("yes | head -n 100000", max_output_bytes=10)
        self.assertEqual((output.stdout_bytes, output.truncated), (b"y\n" * 5, True))

    # ---- files

    async def test_files_are_written_read_listed_renamed_and_removed(self) -> None:
        fs = self.sandbox.fs
        await fs.mkdir("/root/f/a/b")
        await fs.mkdir("/root/f/a/b")
        big = os.urandom(700_001)
        await fs.write("/root/f/big", big, mode=0o600)
        await fs.write("/root/f/text", "täxt")
        self.assertEqual(await fs.read("/root/f/big"), big)
        self.assertEqual(await fs.read_text("/root/f/text"), "täxt")
        status = await fs.stat("/root/f/big")
        self.assertEqual((status.kind, status.size, status.mode), ("file", 700_001, 0o600))
        entries = [(entry.path, str(entry.kind)) for entry in await fs.list("/root/f")]
        self.assertEqual(
            entries,
            [("/root/f/a", "directory"), ("/root/f/big", "file"), ("/root/f/text", "file")],
        )
        await fs.copy("/root/f/big", "/root/f/copy")
        await fs.rename("/root/f/copy", "/root/f/text")
        self.assertEqual(await fs.read("/root/f/text"), big)
        await fs.symlink("big", "/root/f/link")
        self.assertEqual(await fs.read_link("/root/f/link"), "big")
        self.assertEqual(await fs.real_path("/root/f/link"), "/root/f/big")
        self.assertEqual((await fs.stat("/root/f/link", follow=False)).kind, "symlink")
        stream = await fs.read_stream("/root/f/big")
        self.assertEqual(b"".join([chunk async for chunk in stream]), big)
        await fs.remove("/root/f/link")
        await fs.remove_dir("/root/f")
        self.assertFalse(await fs.exists("/root/f"))
        with self.assertRaises(PathNotFoundError):
            await fs.read("/root/f/big")
        with self.assertRaises(microsandbox.FilesystemError):
            await fs.exists("/root/" + "x" * 300)
        self.assertIn("Linux", await fs.read_text("/proc/version"))

    async def test_files_and_trees_are_copied_between_host_and_guest(self) -> None:
        fs = self.sandbox.fs
        with tempfile.TemporaryDirectory() as directory:
            tree = Path(directory, "tree")
            (tree / "in").mkdir(parents=True)
            (tree / "in" / "f").write_bytes(b"tree")
            await fs.copy_from_host(tree, "/root/tree")
            self.assertEqual(await fs.read("/root/tree/in/f"), b"tree")
            await fs.copy_from_host(tree / "in" / "f", "/root/one")
            await fs.copy_to_host("/root/one", Path(directory, "one"))
            self.assertEqual(Path(directory, "one").read_bytes(), b"tree")
            await fs.copy_to_host("/root/tree", Path(directory, "back"))
            self.assertEqual(Path(directory, "back/in/f").read_bytes(), b"tree")
        await fs.remove_dir("/root/tree")

    async def test_a_thousand_files_at_once(self) -> None:
        fs = self.sandbox.fs
        await fs.mkdir("/root/many")
        for at in range(0, 1000, 50):
            writes = (fs.write(f"/root/many/{n}", str(n)) for n in range(at, at + 50))
            await asyncio.gather(*writes)
        self.assertEqual(len(await fs.list("/root/many")), 1000)
        self.assertEqual(await fs.read("/root/many/999"), b"999")
        await fs.remove_dir("/root/many")

    # ---- jobs, logs, metrics, ssh

    async def test_a_job_is_found_again_with_what_it_printed(self) -> None:
        job = await self.sandbox.start_job("sh", ["-c", "echo one; sleep 1; echo two; exit 4"])
        again = await Sandbox.connect(NAME)
        found = await again.job(job.id)
        self.assertIsInstance(found, Job)
        printed, cursor = b"", None
        async with await found.log_stream() as stream:
            async for entry in stream:
                printed += entry.data
                cursor = entry.cursor
                if printed.endswith(b"one\n"):
                    break
        self.assertEqual((await found.wait()).code, 4)
        async with await found.log_stream(from_cursor=cursor, follow=False) as stream:
            self.assertEqual(b"".join([entry.data async for entry in stream]), b"two\n")
        self.assertIn(job.id, [info.id for info in await again.jobs()])
        await again.close()

    async def test_commands_are_logged_unless_it_is_turned_off(self) -> None:
        await self.sandbox.exec("echo", ["logged-line"])
        await self.sandbox.exec("echo", ["hidden-line"], log=False)
        text = b"".join(entry.data for entry in await self.sandbox.logs())
        self.assertIn(b"logged-line", text)
        self.assertNotIn(b"hidden-line", text)
        last = await self.sandbox.logs(tail=1)
        self.assertEqual(len(last), 1)
        self.assertIsNotNone(last[0].timestamp_ms)
        with self.assertRaises(ValueError):
            await self.sandbox.log_stream(since_ms=1, from_cursor="x")

    async def test_metrics_are_read_and_streamed(self) -> None:
        sample = await self.sandbox.metrics()
        self.assertEqual(sample.memory_limit_bytes, 512 << 20)
        self.assertGreater(sample.uptime_ms, 0)
        async with await self.sandbox.metrics_stream(0.2) as stream:
            times = [(await stream.__anext__()).timestamp_ms for _ in range(2)]
        self.assertLess(times[0], times[1])
        self.assertIn(NAME, await microsandbox.all_sandbox_metrics())

    async def test_a_login_session_and_its_files(self) -> None:
        async with await self.sandbox.ssh().connect() as session:
            output = await session.exec("echo $HOME; exit 2")
            self.assertEqual((output.status, output.stdout_text), (2, "/root\n"))
            files = await session.sftp()
            await files.write("/root/s", b"sftp")
            self.assertEqual(await files.read("/root/s"), b"sftp")
            await files.remove_file("/root/s")
        with self.assertRaises(UnsupportedOperationError) as raised:
            await self.sandbox.ssh().server(user="x", sftp=False)
        self.assertEqual(raised.exception.fields, ("user", "sftp"))

    # ---- handles, names

    async def test_a_handle_has_the_configuration_and_lists_are_by_label(self) -> None:
        handle = await Sandbox.get(NAME)
        self.assertEqual(handle.status, SandboxStatus.RUNNING)
        config = json.loads(handle.config_json)
        self.assertEqual((config["name"], config["memory_mib"]), (NAME, 512))
        assert handle.created_at is not None and handle.updated_at is not None
        self.assertLessEqual(handle.created_at, handle.updated_at)
        self.assertIn(NAME, [each.name for each in await Sandbox.list()])
        self.assertEqual(await Sandbox.list_with(labels={"no": "label"}), [])
        self.assertEqual(await self.sandbox.name, NAME)
        self.assertFalse(await self.sandbox.owns_lifecycle)
        with self.assertRaises(SandboxNotFoundError):
            await Sandbox.get("sdk-none")
        with self.assertRaises(SandboxStillRunningError):
            await handle.remove()
        with self.assertRaises(SandboxAlreadyExistsError):
            await Sandbox.create(NAME, image=IMAGE)
        self.assertGreater(await self.sandbox.ping(), 0)

    async def test_it_works_in_a_child_after_a_fork(self) -> None:
        await self.sandbox.exec("true")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                loop = asyncio.new_event_loop()
                output = loop.run_until_complete(self.sandbox.exec("echo", ["child"]))
                code = 0 if output.stdout_text == "child\n" else 2
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        self.assertEqual(os.waitstatus_to_exitcode(status), 0)
        self.assertEqual((await self.sandbox.exec("echo", ["parent"])).stdout_text, "parent\n")

    async def test_a_secret_is_a_placeholder_in_the_guest(self) -> None:
        secret = Secret.env("KEY", value="hunter2", allow_hosts=["example.com"])
        async with await Sandbox.create("sdk-secret", image=IMAGE, secrets=[secret]) as sandbox:
            output = await sandbox.shell("echo $KEY; grep -rqs hunter2 /proc/self/environ; echo $?")
            self.assertEqual(output.stdout_text, "$MSB_KEY\n1\n")
            config = (await Sandbox.get("sdk-secret")).config_json
            self.assertIn("KEY", config)
            self.assertNotIn("hunter2", config)
            self.assertNotIn("hunter2", repr(secret))

    async def test_what_is_not_supported_is_named(self) -> None:
        secret = Secret.env("KEY", value="hunter2", allow_hosts=["example.com"], require_tls=False)
        with self.assertRaises(UnsupportedOperationError) as raised:
            await Sandbox.create("sdk-refused", image=IMAGE, secrets=[secret])
        self.assertEqual(raised.exception.fields, ("network.secrets.secrets.0",))
        self.assertNotIn("hunter2", str(raised.exception))
        with self.assertRaises(SandboxNotFoundError):
            await Sandbox.get("sdk-refused")


if __name__ == "__main__":
    unittest.main()
