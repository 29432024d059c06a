"""The face without `await`: threads, running loops, forks, KeyboardInterrupt."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from microsandbox import ExecTimeoutError, StdoutEvent, Stdin
from microsandbox.sync import Image, Sandbox

from .real import IMAGE, needs_programs

NAME = "sdk-sync"


def setUpModule() -> None:
    needs_programs()
    Sandbox.create(NAME, image=IMAGE, replace=True, detached=True)


def tearDownModule() -> None:
    handle = Sandbox.get(NAME)
    handle.kill()
    handle.remove()


class SyncTests(unittest.TestCase):
    def setUp(self) -> None:
        self.sandbox = Sandbox.connect(NAME)

    def tearDown(self) -> None:
        self.sandbox.close()

    def test_calls_have_results_and_errors(self) -> None:
        self.assertEqual(self.sandbox.exec("echo", ["x"]).stdout_text, "x\n")
        self.assertEqual(self.sandbox.name, NAME)
        with self.assertRaises(ExecTimeoutError):
            self.sandbox.exec("sleep", ["60"], timeout=0.3)
        self.assertEqual(Image.get(IMAGE).reference, IMAGE)

    def test_streams_are_iterators_and_contexts(self) -> None:
        with self.sandbox.exec_stream("cat", stdin=Stdin.pipe()) as handle:
            sink = handle.take_stdin()
            assert sink is not None
            with sink:
                sink.write("text")
            output = b"".join(e.data or b"" for e in handle if isinstance(e, StdoutEvent))
        self.assertEqual(output, b"text")
        with self.sandbox.fs.write_stream("/root/s") as file:
            file.write(b"ab")
        with self.sandbox.fs.read_stream("/root/s") as stream:
            self.assertEqual(b"".join(stream), b"ab")

    def test_it_works_in_threads_and_in_a_running_loop(self) -> None:
        def one(number: int) -> str:
            return self.sandbox.exec("echo", [str(number)]).stdout_text

        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(one, range(16)))
        self.assertEqual(found, [f"{number}\n" for number in range(16)])

        async def cell() -> str:
            return one(7)

        self.assertEqual(asyncio.run(cell()), "7\n")

    def test_it_works_in_a_child_after_a_fork(self) -> None:
        self.sandbox.exec("true")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if self.sandbox.exec("echo", ["c"]).stdout_text == "c\n" else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        self.assertEqual(os.waitstatus_to_exitcode(status), 0)
        self.assertTrue(self.sandbox.exec("true").success)

    def test_a_keyboard_interrupt_cancels_the_call(self) -> None:
        program = (
            "from microsandbox.sync import Sandbox\n"
            f"sandbox = Sandbox.connect({NAME!r})\n"
            "print('ready', flush=True)\n"
            "try:\n"
            "    sandbox.exec('sleep', ['4567'])\n"
            "except KeyboardInterrupt:\n"
            "    print('interrupted', flush=True)\n"
        )
        source = Path(__file__).resolve().parents[1] / "src"
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(source)},
        ) as process:
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(), b"ready\n")
            while self.running("4567") == 0:
                threading.Event().wait(0.05)
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.stdout.readline(), b"interrupted\n")
        self.assertEqual(self.running("4567"), 0)

    def running(self, seconds: str) -> int:
        script = f"ps | grep -c '[s]leep {seconds}' || true"
        return int(self.sandbox.shell(script).stdout_text)


if __name__ == "__main__":
    unittest.main()
