"""Snapshots: copies of the disk of a sandbox at one moment, with its image pinned by digest."""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import types
from .errors import MicrosandboxError, SnapshotNotFoundError
from .times import milliseconds
from .tool import Host, Json
from .types import StrPath


def _place(path: StrPath) -> str:
    """Returns a path with a slash, which tells it from a name."""
    return os.path.abspath(path)


@dataclass(frozen=True)
class SnapshotHandle:
    """An entry of the index of snapshots."""

    digest: str
    name: str | None = None
    parent_digest: str | None = None
    image_ref: str = ""
    format: str = ""
    size_bytes: int | None = None
    created_at: float | None = None
    """Time of the creation, in milliseconds since 1970."""
    path: str = ""

    async def open(self) -> Snapshot:
        """Opens the snapshot."""
        return await Snapshot.open(self.path)

    async def remove(self, *, force: bool = False) -> None:
        """Removes the snapshot."""
        await Snapshot.remove(self.path, force=force)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of the disk of a sandbox."""

    path: str
    digest: str
    size_bytes: int
    image_ref: str
    image_manifest_digest: str
    format: str
    fstype: str
    parent: str | None
    created_at: str
    """Time of the creation, RFC 3339."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    source_sandbox: str | None = None

    async def verify(self) -> dict[str, Any]:
        """Compares the disk with its recorded digest. Raises SnapshotIntegrityError.

        `verification` of the result is `verified`, `not_recorded` or `unsupported`.
        """
        return await _document(self.path, "--verify")

    @staticmethod
    async def create(
        source: str,
        *,
        name: str | None = None,
        path: StrPath | None = None,
        labels: Mapping[str, str] | None = None,
        force: bool = False,
        record_integrity: bool = False,
    ) -> Snapshot:
        """Creates a snapshot of a sandbox, with a name or in a directory at `path`.

        The guest of a running sandbox is frozen for the copy. `force` replaces a snapshot of that
        name.
        """
        if (name is None) == (path is None):
            raise ValueError("give exactly one of name and path")
        place = types.text("name", name or "") if path is None else _place(path)
        options = [f"--from={types.text('source', source)}"]
        for key, value in (labels or {}).items():
            options.append(f"--label={types.text('labels', key)}={types.text('labels', value)}")
        options += ["--force"] if force else []
        options += ["--integrity"] if record_integrity else []
        await Host.current().run("snapshot", "create", "--quiet", *options, "--", place)
        return await Snapshot.open(place)

    @staticmethod
    async def open(name_or_path: str) -> Snapshot:
        """Opens a snapshot by its name, its digest, or a path that contains a slash."""
        return _snapshot(await _document(name_or_path))

    @staticmethod
    async def get(name: str) -> SnapshotHandle:
        """Returns an entry of the index. Raises SnapshotNotFoundError."""
        return _handle(await _document(name))

    @staticmethod
    async def list() -> builtins.list[SnapshotHandle]:
        """Returns the index, the newest snapshot first."""
        rows: builtins.list[Json] = await Host.current().json("snapshot", "list", "--format=json")
        return [_handle(row) for row in rows]

    @staticmethod
    async def list_dir(directory: StrPath) -> builtins.list[Snapshot]:
        """Returns the snapshots in a directory, sorted by name. They need not be in the index."""
        found: builtins.list[Snapshot] = []
        for entry in sorted(Path(_place(directory)).iterdir()):
            if not entry.is_dir():
                continue
            try:
                found.append(await Snapshot.open(str(entry)))
            except SnapshotNotFoundError:
                # Another directory, or a snapshot that was removed meanwhile.
                continue
        return found

    @staticmethod
    async def remove(name_or_path: str, *, force: bool = False) -> None:
        """Removes a snapshot; with `force` also the parent of others, or a damaged one."""
        options = ["--force"] if force else []
        name = types.text("name_or_path", name_or_path)
        await Host.current().run("snapshot", "remove", "--quiet", *options, "--", name)

    @staticmethod
    async def reindex(directory: StrPath) -> int:
        """Adds the snapshots in a directory to the index. Returns their number."""
        output = await Host.current().run("snapshot", "reindex", "--", _place(directory))
        words = output.decode("utf-8", "replace").split()
        if len(words) < 2 or not words[1].isdecimal():
            raise MicrosandboxError("'msb snapshot reindex' printed no number")
        return int(words[1])

    @staticmethod
    async def export(
        name: str,
        out: StrPath,
        *,
        with_parents: bool = False,
        with_image: bool = False,
        plain_tar: bool = False,
    ) -> None:
        """Writes a snapshot as an archive, which appears when it is complete."""
        given = {"parents": with_parents, "image": with_image}
        options = [f"--with-{option}" for option, is_given in given.items() if is_given]
        options += ["--plain-tar"] if plain_tar else []
        names = (types.text("name", name), _place(out))
        await Host.current().run("snapshot", "export", *options, "--", *names)

    @staticmethod
    async def import_(archive: StrPath, *, dest: StrPath | None = None) -> SnapshotHandle:
        """Reads the snapshots of an archive. Returns the last one, which has the others as parents.
        """
        names = [_place(archive)] + ([] if dest is None else [_place(dest)])
        output = await Host.current().run("snapshot", "import", "--", *names)
        lines = os.fsdecode(output).splitlines()
        if not lines:
            raise MicrosandboxError("'msb snapshot import' printed no snapshot")
        return await Snapshot.get(lines[-1])


async def _document(snapshot: str, *options: str) -> Json:
    name = types.text("snapshot", snapshot)
    args = ("snapshot", "inspect", "--format=json", *options, "--", name)
    document: Json = await Host.current().json(*args)
    return document


def _handle(fields: Json) -> SnapshotHandle:
    return SnapshotHandle(
        digest=str(fields["digest"]),
        name=fields.get("name"),
        parent_digest=fields.get("parent_digest"),
        image_ref=str(fields.get("image_ref") or ""),
        format=str(fields.get("format") or ""),
        size_bytes=fields.get("size_bytes"),
        created_at=milliseconds(fields.get("created_at")),
        path=str(fields.get("artifact_path") or ""),
    )


def _snapshot(fields: Json) -> Snapshot:
    return Snapshot(
        path=str(fields.get("artifact_path") or ""),
        digest=str(fields["digest"]),
        size_bytes=int(fields.get("size_bytes") or 0),
        image_ref=str(fields.get("image_ref") or ""),
        image_manifest_digest=str(fields.get("image_manifest_digest") or ""),
        format=str(fields.get("format") or ""),
        fstype=str(fields.get("fstype") or ""),
        parent=fields.get("parent_digest"),
        created_at=str(fields.get("created_at") or ""),
        labels=dict(fields.get("labels") or {}),
        source_sandbox=fields.get("source_sandbox"),
    )
