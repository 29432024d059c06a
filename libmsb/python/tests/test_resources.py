"""Ports, snapshots, volumes and images."""

from __future__ import annotations

import asyncio
import tempfile
import time
import unittest
from pathlib import Path

import microsandbox
from microsandbox import (
    Image,
    ImageNotFoundError,
    Network,
    PortBinding,
    Rule,
    Sandbox,
    Snapshot,
    Volume,
    VolumeAlreadyExistsError,
    VolumeNotFoundError,
)

from .real import IMAGE, needs_programs


def setUpModule() -> None:
    needs_programs()


class ResourceTests(unittest.IsolatedAsyncioTestCase):
    """What sandboxes are made from, and what they share with the host."""

    async def test_a_published_port_is_reached_and_denied_traffic_is_not(self) -> None:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        async with await Sandbox.create(
            "sdk-ports",
            image=IMAGE,
            ports=[PortBinding.tcp(port, 8000)],
            network=Network(policy=microsandbox.NetworkPolicy(rules=(Rule.allow_dns()[0],))),
            replace=True,
        ) as sandbox:
            server = await sandbox.start_job("nc", ["-l", "-p", "8000", "-e", "echo", "served"])
            deadline = time.monotonic() + 20
            answer = b""
            while not answer and time.monotonic() < deadline:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    answer = await reader.read()
                    writer.close()
                except ConnectionError:
                    await asyncio.sleep(0.1)
            self.assertEqual(answer, b"served\n")
            await server.wait()

    async def test_a_snapshot_is_taken_started_listed_moved_and_removed(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            sandbox = await Sandbox.create("sdk-snap", image=IMAGE, detached=True, replace=True)
            try:
                await sandbox.fs.write("/root/kept", b"kept")
                await sandbox.stop()
                handle = await Sandbox.get("sdk-snap")
                taken = await handle.snapshot("sdk-base")
                other = await Snapshot.create(
                    "sdk-snap", path=Path(directory, "other"), labels={"a": "b"},
                    record_integrity=True,
                )
                with self.assertRaises(microsandbox.SnapshotAlreadyExistsError):
                    await Snapshot.create("sdk-snap", name="sdk-base")
            finally:
                await (await Sandbox.get("sdk-snap")).remove()
            self.assertEqual((taken.source_sandbox, taken.image_ref.split("/")[-1]),
                             ("sdk-snap", IMAGE))
            self.assertEqual((other.labels, other.parent), ({"a": "b"}, taken.digest))
            self.assertEqual((await other.verify())["verification"], "verified")
            listed = {entry.digest: entry for entry in await Snapshot.list()}
            self.assertEqual(listed[taken.digest].name, "sdk-base")
            self.assertEqual([found.digest for found in await Snapshot.list_dir(directory)],
                             [other.digest])
            async with await Sandbox.create("sdk-from", snapshot="sdk-base") as again:
                self.assertEqual(await again.fs.read("/root/kept"), b"kept")
            await self.find_again(taken.path, directory, taken.digest)
            archive = Path(directory, "archive")
            await Snapshot.export("sdk-base", archive)
            await Snapshot.remove(str(other.path))
            await (await Snapshot.get("sdk-base")).remove(force=True)
            with self.assertRaises(microsandbox.SnapshotNotFoundError):
                await Snapshot.open("sdk-base")
            imported = await Snapshot.import_(archive)
            self.assertEqual(imported.digest, taken.digest)
            self.assertEqual((await imported.open()).size_bytes, taken.size_bytes)
            await imported.remove()
            with self.assertRaises(microsandbox.SnapshotNotFoundError):
                await Sandbox.create("sdk-from", snapshot="sdk-base")

    async def find_again(self, path: str, elsewhere: str, digest: str) -> None:
        """Adds the snapshots of two directories to the index."""
        # The directory of the index has a link to the snapshot in the other one.
        self.assertEqual(await Snapshot.reindex(Path(path).parent), 2)
        self.assertEqual((await Snapshot.get("sdk-base")).digest, digest)
        self.assertEqual(await Snapshot.reindex(elsewhere), 1)
        self.assertEqual((await Snapshot.get("other")).parent_digest, digest)
        with tempfile.TemporaryDirectory() as empty:
            self.assertEqual(await Snapshot.reindex(empty), 0)
            with self.assertRaises(microsandbox.MicrosandboxError):
                await Snapshot.reindex(Path(empty, "missing"))

    async def test_volumes_keep_files_and_never_leave_their_root(self) -> None:
        await Volume.create("sdk-volume", labels={"a": "b"})
        try:
            with self.assertRaises(VolumeAlreadyExistsError):
                await Volume.create("sdk-volume")
            handle = await Volume.get("sdk-volume")
            self.assertEqual((handle.labels, handle.quota_mib), ({"a": "b"}, None))
            await handle.fs.mkdir("/d/e")
            await handle.fs.write("/d/e/f", "host")
            async with await Sandbox.create(
                "sdk-volumes",
                image=IMAGE,
                volumes={"/data": Volume.named("sdk-volume")},
                replace=True,
            ) as sandbox:
                output = await sandbox.shell("cat /data/d/e/f; ln -s /etc/passwd /data/out")
                self.assertEqual(output.stdout_text, "host")
            with self.assertRaises(microsandbox.FilesystemError):
                await handle.fs.read("/out")
            with self.assertRaises(microsandbox.FilesystemError):
                await handle.fs.read("/../volume.json")
            self.assertEqual(len(await handle.fs.list()), 2)
            await handle.fs.remove_dir("/d")
        finally:
            await Volume.remove("sdk-volume")
        with self.assertRaises(VolumeNotFoundError):
            await Volume.get("sdk-volume")

    async def test_images_are_listed_inspected_saved_and_loaded(self) -> None:
        image = await Image.get(IMAGE)
        self.assertEqual(image.reference, IMAGE)
        before = time.time() * 1000
        async with await Sandbox.create("sdk-used", image=IMAGE, replace=True):
            used_at = (await Image.get(IMAGE)).last_used_at
        assert used_at is not None
        self.assertTrue(before - 1 <= used_at <= time.time() * 1000 + 1)
        detail = await image.inspect()
        assert detail.config is not None
        self.assertEqual(len(detail.layers), image.layer_count)
        self.assertTrue(detail.config.digest.startswith("sha256:"))
        self.assertIn(image.manifest_digest, [each.manifest_digest for each in await Image.list()])
        with tempfile.TemporaryDirectory() as directory:
            archive = Path(directory, "image.tar")
            await Image.save(archive, IMAGE)
            loaded = await Image.load(archive, tag="sdk-copy:1")
            self.assertEqual(loaded[0].layers, image.layer_count)
        await Image.remove("sdk-copy:1")
        with self.assertRaises(ImageNotFoundError):
            await Image.get("sdk-copy:1")
        self.assertIsInstance(await Image.gc_layers(), int)

    async def test_a_pull_without_a_registry_reports_its_error(self) -> None:
        session = Sandbox.create_with_progress("sdk-pulled", image="127.0.0.1:9/none:1")
        events = [event.event_type async for event in session.progress]
        self.assertEqual(events, ["resolving"])
        with self.assertRaises(microsandbox.ImagePullFailedError):
            await session.result()
        with self.assertRaises(RuntimeError):
            await session.result()
        async with Sandbox.create_with_progress(
            "sdk-pulled", image=IMAGE, pull_policy="never", replace=True
        ) as session:
            async with await session.result() as sandbox:
                self.assertTrue((await sandbox.exec("true")).success)


if __name__ == "__main__":
    unittest.main()
