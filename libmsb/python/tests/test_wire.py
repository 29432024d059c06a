"""The wire protocol, against a peer that plays an older, a hostile and a dying supervisor."""

from __future__ import annotations

import asyncio
import unittest
from typing import Any

from microsandbox import (
    frames,
    ExecFailedError,
    ExecTimeoutError,
    ProtocolError,
    SandboxNotRunningError,
    UnsupportedOperationError,
)
from microsandbox.command import ExecHandle, run
from microsandbox.errors import FilesystemError
from microsandbox.exec_options import ExecOptions
from microsandbox.sftp import Session

from .peer import Peer, fixture


def options(**given: Any) -> ExecOptions:
    return ExecOptions.of("cmd", [], {"log": False, **given})


async def nothing(peer: Peer) -> None:
    await peer.reader.read()


class WireTests(unittest.IsolatedAsyncioTestCase):
    def test_frames_have_the_bytes_of_the_fixtures(self) -> None:
        for case in fixture("frames.json")["frames"]:
            payload = bytes.fromhex(case["payload"])
            fields = (case["stream"], case["kind"], payload, case["channel"], case["flags"])
            made = frames.frame(*fields)
            self.assertEqual(made.hex(), case["bytes"], case["what"])

    def test_a_long_message_is_split_and_a_longer_one_refused(self) -> None:
        sent = frames.message(3, frames.OPEN, {"op": "x" * 100_000})
        self.assertEqual(sent[:12].hex(), "000100000000000302000001")
        self.assertEqual(sent[12 + 65536 :][8:12].hex(), "02000000")
        with self.assertRaises(ValueError):
            frames.message(3, frames.OPEN, {"op": "x" * frames.MESSAGE_BYTES_MAX})

    async def test_each_violation_ends_the_connection_with_a_protocol_error(self) -> None:
        for case in fixture("frames.json")["violations"]:

            async def act(peer: Peer, frame: str = case["bytes"]) -> None:
                await peer.opened()
                peer.writer.write(bytes.fromhex(frame))
                await peer.reader.read()

            with self.subTest(case["what"]):
                async with Peer(act) as peer:
                    client = peer.client()
                    call = await client.call({"op": "exec"})
                    with self.assertRaises(ProtocolError):
                        while True:
                            await call.receive()

    async def test_random_bytes_raise_nothing_but_protocol_errors(self) -> None:
        import random

        rng = random.Random(26)
        for _ in range(60):
            noise = rng.randbytes(rng.randrange(1, 4000))

            async def act(peer: Peer, noise: bytes = noise) -> None:
                await peer.opened()
                peer.writer.write(noise)
                peer.writer.write_eof()
                await peer.reader.read()

            async with Peer(act) as peer:
                call = await peer.client().call({"op": "exec"})
                with self.assertRaises((ProtocolError, SandboxNotRunningError)):
                    while True:
                        await call.receive()

    async def test_an_older_peer_refuses_single_calls(self) -> None:
        async def act(peer: Peer) -> None:
            stream, _ = await peer.opened()
            peer.event(stream, {"type": "started", "pid": 5})
            peer.event(stream, {"type": "exited", "code": 0}, last=True)
            await peer.reader.read()

        async with Peer(act) as peer:
            client = peer.client()
            with self.assertRaises(UnsupportedOperationError) as raised:
                await client.call({"op": "connect"})
            self.assertEqual(raised.exception.fields, ("connect",))
            with self.assertRaises(UnsupportedOperationError) as raised:
                await run(client, ExecOptions.of("cmd", [], {}), "peer")
            self.assertEqual(raised.exception.fields, ("exec.log",))
            self.assertTrue((await run(client, options(), "peer")).success)
            client.close()

    async def test_a_peer_of_another_version_is_refused(self) -> None:
        async with Peer(nothing, fixture("frames.json")["refused_hello"]) as peer:
            with self.assertRaises(ProtocolError):
                await peer.client().call({"op": "exec"})

    async def test_more_data_than_credit_ends_the_connection(self) -> None:
        async def act(peer: Peer) -> None:
            stream, _ = await peer.opened()
            for _ in range(5):
                peer.data(stream, b"x" * 65536)
            await peer.reader.read()

        async with Peer(act) as peer:
            call = await peer.client().call({"op": "exec"})
            # A reader that takes nothing grants nothing: the fifth frame is beyond the window.
            self.assertTrue(await call.wait_ended(5))

    async def test_a_slow_reader_holds_one_window_and_the_peer_waits(self) -> None:
        sent = 0

        async def act(peer: Peer) -> None:
            nonlocal sent
            stream, _ = await peer.opened()
            peer.event(stream, {"type": "started", "pid": 1})
            credit = frames.WINDOW
            total = 20 << 20
            while sent < total:
                while credit < 65536:
                    _, kind, _, _, payload = await peer.receive()
                    if kind == frames.CREDIT:
                        credit += int.from_bytes(payload, "big")
                peer.data(stream, b"z" * 65536)
                credit -= 65536
                sent += 65536
            peer.event(stream, {"type": "exited", "code": 0}, last=True)
            await peer.reader.read()

        async with Peer(act) as peer:
            handle = await ExecHandle.start(peer.client(), options(), "peer")
            while sent < frames.WINDOW:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            self.assertEqual(sent, frames.WINDOW)
            received = 0
            async for event in handle:
                received += len(event.data or b"")
                self.assertLessEqual(sent - received, 2 * frames.WINDOW)
            self.assertEqual(received, 20 << 20)

    async def test_a_dying_peer_ends_all_calls_at_once_with_their_output(self) -> None:
        async def act(peer: Peer) -> None:
            for _ in range(3):
                stream, _ = await peer.opened()
                peer.event(stream, {"type": "started", "pid": 1})
                peer.data(stream, b"partial")
            await peer.writer.drain()

        async with Peer(act) as peer:
            client = peer.client()
            runs = [run(client, options(timeout=60), "peer") for _ in range(3)]
            results = await asyncio.wait_for(
                asyncio.gather(*runs, return_exceptions=True), timeout=10
            )
            for result in results:
                assert isinstance(result, SandboxNotRunningError), result
                self.assertEqual(result.stdout, b"partial")

    async def test_a_timeout_kills_and_a_deaf_peer_holds_no_caller(self) -> None:
        seen: list[Any] = []

        async def act(peer: Peer) -> None:
            stream, _ = await peer.opened()
            peer.event(stream, {"type": "started", "pid": 1})
            peer.data(stream, b"before")
            seen.append((await peer.receive())[4])
            await peer.reader.read()

        async with Peer(act) as peer:
            with self.assertRaises(ExecTimeoutError) as raised:
                await run(peer.client(), options(timeout=0.05), "peer")
            self.assertEqual(raised.exception.stdout, b"before")
            self.assertEqual(raised.exception.timeout, 0.05)
            self.assertEqual(seen, [b'{"type":"signal","signal":9}'])

    async def test_a_cancellation_closes_the_call_and_waits_for_its_end(self) -> None:
        opened, ended = asyncio.Event(), asyncio.Event()

        async def act(peer: Peer) -> None:
            stream, _ = await peer.opened()
            opened.set()
            peer.event(stream, {"type": "started", "pid": 1})
            while (await peer.receive())[1] != frames.CLOSE:
                pass
            await asyncio.sleep(0.05)
            ended.set()
            peer.event(stream, {"type": "exited", "signal": 9}, last=True)
            await peer.reader.read()

        async with Peer(act) as peer:
            task = asyncio.ensure_future(run(peer.client(), options(), "peer"))
            await opened.wait()
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertTrue(ended.is_set())

    async def test_a_command_that_was_not_started_has_a_kind(self) -> None:
        async def act(peer: Peer) -> None:
            stream, _ = await peer.opened()
            failed = {"type": "failed", "kind": "not_found", "message": "no such program"}
            peer.event(stream, failed, last=True)
            await peer.reader.read()

        async with Peer(act) as peer:
            with self.assertRaises(ExecFailedError) as raised:
                await run(peer.client(), options(), "peer")
            self.assertEqual((raised.exception.kind, raised.exception.errno), ("not_found", 2))

    async def test_hostile_answers_of_files_are_errors(self) -> None:
        for answer in ("ffffffff65", "0000000165", "0000000e69000000020000000548ffffffff00"):

            async def act(peer: Peer, answer: str = answer) -> None:
                stream, _ = await peer.opened()
                peer.event(stream, {"type": "started", "pid": 1})
                await peer.receive()
                peer.data(stream, bytes.fromhex("000000050200000003"))
                await peer.receive()
                peer.data(stream, bytes.fromhex(answer))
                peer.event(stream, {"type": "exited", "code": 0}, last=True)
                await peer.reader.read()

            async with Peer(act) as peer:
                session = await Session.open(peer.client())
                with self.assertRaises((ProtocolError, FilesystemError)):
                    await session.stat("/x")


if __name__ == "__main__":
    unittest.main()
