"""Images in the store."""

from __future__ import annotations

import builtins
import os
from dataclasses import dataclass, field
from typing import Any

from . import types
from .config import ImageSource
from .errors import ImageNotFoundError
from .times import milliseconds
from .tool import Host, Json
from .types import StrPath


@dataclass(frozen=True)
class ImageConfigDetail:
    """Configuration of an image."""

    digest: str
    env: list[str]
    cmd: list[str]
    entrypoint: list[str]
    working_dir: str | None
    user: str | None
    labels: dict[str, Any]
    stop_signal: str | None


@dataclass(frozen=True)
class ImageLayerDetail:
    """A layer of an image."""

    diff_id: str
    blob_digest: str
    media_type: str | None
    compressed_size_bytes: int | None
    erofs_size_bytes: int | None
    position: int


@dataclass(frozen=True)
class ImagePruneReport:
    """Numbers of removed files, and the disk space that was freed."""

    image_refs_removed: int
    manifests_removed: int
    layers_removed: int
    fsmeta_removed: int
    vmdk_removed: int
    bytes_reclaimed: int | None
    references: list[str] = field(default_factory=list[str])
    """Names of the removed images."""


@dataclass(frozen=True)
class ImageHandle:
    """An image in the store."""

    reference: str
    """The reference as it was given; the full form in a list."""
    size_bytes: int
    manifest_digest: str
    architecture: str | None
    os: str | None
    layer_count: int
    created_at: float | None
    """Time at which the image was stored, in milliseconds since 1970."""
    last_used_at: float | None = None
    """Time of the last creation of a sandbox from it; `None` if the programs do not know it."""

    async def inspect(self) -> ImageDetail:
        """Returns the configuration and the layers."""
        return await Image.inspect(self.reference)

    async def remove(self, *, force: bool = False) -> None:
        """Removes the image."""
        await Image.remove(self.reference, force=force)


@dataclass(frozen=True)
class ImageDetail:
    """An image with its configuration and layers."""

    handle: ImageHandle
    config: ImageConfigDetail | None
    layers: list[ImageLayerDetail]


@dataclass(frozen=True)
class LoadedImage:
    """An image that was loaded or saved."""

    reference: str
    digest: str
    image_id: str
    layers: int
    size_bytes: int


def _handle(fields: Json, reference: str | None = None) -> ImageHandle:
    return ImageHandle(
        reference=reference or str(fields["reference"]),
        size_bytes=int(fields.get("size_bytes") or 0),
        manifest_digest=str(fields["digest"]),
        architecture=fields.get("architecture"),
        os=fields.get("os"),
        layer_count=int(fields.get("layer_count") or 0),
        created_at=milliseconds(fields.get("created_at")),
        last_used_at=milliseconds(fields.get("last_used_at")),
    )


def _config(fields: Json) -> ImageConfigDetail:
    return ImageConfigDetail(
        digest=str(fields.get("digest", "")),
        env=list(fields.get("env") or ()),
        cmd=list(fields.get("cmd") or ()),
        entrypoint=list(fields.get("entrypoint") or ()),
        working_dir=fields.get("working_dir"),
        user=fields.get("user"),
        labels=dict(fields.get("labels") or {}),
        stop_signal=fields.get("stop_signal"),
    )


def _layer(fields: Json) -> ImageLayerDetail:
    return ImageLayerDetail(
        diff_id=str(fields["diff_id"]),
        blob_digest=str(fields.get("blob_digest", "")),
        media_type=fields.get("media_type"),
        compressed_size_bytes=fields.get("compressed_size_bytes"),
        erofs_size_bytes=fields.get("erofs_size_bytes"),
        position=int(fields.get("position") or 0),
    )


def _loaded(document: Any) -> list[LoadedImage]:
    documents: list[Json] = document
    return [
        LoadedImage(
            reference=str(fields.get("reference", "")),
            digest=str(fields.get("digest", "")),
            image_id=str(fields.get("image_id", "")),
            layers=int(fields.get("layers") or 0),
            size_bytes=int(fields.get("size_bytes") or 0),
        )
        for fields in documents
    ]


class Image:
    """Images in the store, and makers of roots for `Sandbox.create`."""

    @staticmethod
    def oci(reference: str, *, upper_size_mib: int | None = None) -> ImageSource:
        """Returns an image as a root, with the size of the writable disk."""
        if upper_size_mib is not None:
            types.whole("upper_size_mib", upper_size_mib, 1)
        return ImageSource("oci", reference, upper_size_mib)

    @staticmethod
    def bind(path: StrPath) -> ImageSource:
        """Returns a directory of the host as a root."""
        return ImageSource("bind", os.fspath(path))

    @staticmethod
    def disk(path: StrPath, *, fstype: str | None = None) -> ImageSource:
        """Returns a disk image of the host as a root. The suffix names its format."""
        return ImageSource("disk", os.fspath(path), fstype=fstype)

    @staticmethod
    async def get(reference: str) -> ImageHandle:
        """Returns an image. Raises ImageNotFoundError."""
        fields = await Host.current().json("image", "inspect", "--format=json", "--", reference)
        return _handle(fields, reference)

    @staticmethod
    async def list() -> builtins.list[ImageHandle]:
        """Returns all images, the newest first."""
        rows: list[Json] = await Host.current().json("image", "list", "--format=json")
        return sorted(map(_handle, rows), key=lambda image: -(image.created_at or 0))

    @staticmethod
    async def inspect(reference: str) -> ImageDetail:
        """Returns an image with its configuration and layers. Raises ImageNotFoundError."""
        fields = await Host.current().json("image", "inspect", "--format=json", "--", reference)
        config: Json | None = fields.get("config")
        return ImageDetail(
            handle=_handle(fields, reference),
            config=None if config is None else _config(config),
            layers=[_layer(layer) for layer in fields.get("layers") or ()],
        )

    @staticmethod
    async def remove(reference: str, *, force: bool = False) -> None:
        """Removes an image. Raises ImageInUseError; `force` removes it nevertheless."""
        options = ["--force"] if force else []
        await Host.current().run("image", "remove", "--quiet", *options, "--", reference)

    @staticmethod
    async def prune() -> ImagePruneReport:
        """Removes images that no sandbox uses, and files that no image needs."""
        report: Json = await Host.current().json("image", "prune", "--yes", "--format=json")
        names = ("image_refs", "manifests", "layers", "fsmeta", "vmdk")
        counts = {f"{name}_removed": int(report.get(f"{name}_removed") or 0) for name in names}
        return ImagePruneReport(
            **counts,
            bytes_reclaimed=report.get("bytes_reclaimed"),
            references=list(report.get("references") or ()),
        )

    @staticmethod
    async def gc_layers() -> int:
        """Removes files that no image needs. Returns the number of removed layers."""
        args = ("image", "prune", "--yes", "--dangling", "--format=json")
        return int((await Host.current().json(*args)).get("layers_removed") or 0)

    @staticmethod
    async def gc() -> int:
        """Removes unused images. Returns the number of removed layers."""
        return (await Image.prune()).layers_removed

    @staticmethod
    async def load(path: StrPath, *, tag: str | None = None) -> builtins.list[LoadedImage]:
        """Loads the images of an archive of docker, podman, skopeo or buildah."""
        options = [] if tag is None else [f"--tag={tag}"]
        source = f"--input={os.fspath(path)}"
        output = await Host.current().run("image", "load", "--format=json", source, *options)
        return _loaded(_documents(output))

    @staticmethod
    async def save(path: StrPath, *references: str) -> None:
        """Saves images as an archive that docker and `load` read."""
        if not references:
            raise ValueError("give at least one image")
        target = f"--output={os.fspath(path)}"
        await Host.current().run("image", "save", "--quiet", target, "--", *references)

    @staticmethod
    async def exists(reference: str) -> bool:
        """Returns whether the store has an image."""
        try:
            await Image.get(reference)
        except ImageNotFoundError:
            return False
        return True


def _documents(output: bytes) -> Any:
    """Parses JSON documents that follow each other."""
    import json

    decoder = json.JSONDecoder()
    text, found = output.decode(), list[Any]()
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        found += value if isinstance(value, list) else [value]
        text = text[end:]
    return found
