"""The store: an OCI image layout (image-layout.md) under $XDG_DATA_HOME/xuni/images, which other tools can read as it is.

    images/index.json            names → manifests (annotation org.opencontainers.image.ref.name)
    images/blobs/sha256/HEX      content, written whole or not at all, and never changed
    images/layers/HEX/           layers as files, by the digest of their tar file, for overlayfs

Whoever changes names or removes content holds the lock; content may be added by several at once.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final, Protocol

from xuni.image import ImageError, spec
from xuni.image.spec import Config, Descriptor, Manifest

PIECE: Final = 1 << 20
MAX_BLOB: Final = 64 << 30  # bytes


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the store. `id` is the digest of its configuration, as docker has it."""

    name: str
    descriptor: Descriptor
    manifest: Manifest
    config: Config

    @property
    def id(self) -> str:
        return self.manifest.config.digest

    @property
    def size(self) -> int:
        return sum(each.size for each in self.manifest.layers)


def default_root() -> Path:
    """Where everything lies that is not to be made again by itself. A relative `XDG_DATA_HOME` is invalid, says its spec."""
    named = os.environ.get("XDG_DATA_HOME", "")
    return (Path(named) if named.startswith("/") else Path.home() / ".local" / "share") / "xuni"


class Store:
    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()) / "images"
        self.layers = self.root / "layers"
        self._blobs = self.root / "blobs" / "sha256"
        self._index = self.root / "index.json"

    # ---- content

    def path(self, digest: str) -> Path:
        assert spec.DIGEST.match(digest), digest
        return self._blobs / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def open(self, descriptor: Descriptor) -> IO[bytes]:
        """The content as it was verified when it came in. Raises ImageError if it is not here."""
        try:
            return open(self.path(descriptor.digest), "rb")
        except FileNotFoundError:
            raise ImageError(f"content {descriptor.digest} is not in the store {self.root}: the image came without it") from None

    def read(self, descriptor: Descriptor) -> bytes:
        with self.open(descriptor) as blob:
            return blob.read(spec.MAX_JSON + 1)

    def add(self, source: Readable, media: str, expected: Descriptor | None = None) -> Descriptor:
        """Take content in. Raises ImageError if it is not what `expected` says; nothing is left then."""
        import hashlib
        import tempfile

        self._blobs.mkdir(parents=True, exist_ok=True)
        most = expected.size if expected else MAX_BLOB
        digest, size = hashlib.sha256(), 0
        scratch = tempfile.NamedTemporaryFile(prefix=".new-", dir=self._blobs, delete=False)
        try:
            with scratch:
                while piece := source.read(PIECE):
                    size += len(piece)
                    if size > most:
                        raise ImageError(f"{expected.digest if expected else 'a blob'} is longer than {most} bytes")
                    digest.update(piece)
                    scratch.write(piece)
                found = Descriptor(media, f"sha256:{digest.hexdigest()}", size)
                if expected and (found.digest, size) != (expected.digest, expected.size):
                    raise ImageError(f"content should be {expected.digest} ({expected.size} bytes) and is {found.digest} "
                                     f"({size} bytes)")  # fmt: skip
                scratch.flush()
                os.fchmod(scratch.fileno(), 0o644)
                os.fsync(scratch.fileno())
            os.rename(scratch.name, self.path(found.digest))
        except BaseException:
            os.unlink(scratch.name)
            raise
        return found

    def add_bytes(self, data: bytes, media: str) -> Descriptor:
        import io

        return self.add(io.BytesIO(data), media)

    # ---- names

    @contextmanager
    def lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def adding(self, *, alone: bool = False) -> Iterator[None]:
        """While content comes in that no name leads to yet, nothing is collected; the collector is `alone`."""
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".content", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield

    def entries(self) -> tuple[Descriptor, ...]:
        """The descriptors of index.json."""
        try:
            data = self._index.read_bytes()
        except FileNotFoundError:
            return ()
        listed = spec.as_object(spec.decode(data, str(self._index)), str(self._index)).get("manifests", [])
        return tuple(Descriptor.parse(each, f"{self._index}: manifests[{index}]") for index, each in enumerate(listed))

    def _write(self, entries: Iterable[Descriptor]) -> None:
        value = {"schemaVersion": 2, "mediaType": spec.INDEX, "manifests": [each.as_json() for each in entries]}
        for place, data in ((self.root / "oci-layout", spec.encode({"imageLayoutVersion": "1.0.0"})),
                            (self._index, spec.encode(value))):  # fmt: skip
            scratch = place.with_name(f".{place.name}.{os.getpid()}")
            with open(scratch, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(scratch, place)

    def name(self, name: str, manifest: Descriptor) -> None:
        """Give the manifest a name; who had it loses it."""
        with self.lock():
            kept = [each for each in self.entries() if each.annotations.get(spec.REF_NAME) != name]
            self._write([*kept, replace(manifest, annotations={spec.REF_NAME: name})])

    def images(self) -> tuple[Image, ...]:
        """By name."""
        named = [(each.annotations.get(spec.REF_NAME, ""), each) for each in self.entries()]
        return tuple(self._image(name, each) for name, each in sorted(named, key=lambda pair: pair[0]) if name)

    def _image(self, name: str, descriptor: Descriptor) -> Image:
        manifest = Manifest.parse(self.read(descriptor), name)
        return Image(name, descriptor, manifest, Config.parse(self.read(manifest.config), f"{name}: configuration"))

    def find(self, wanted: str) -> Image:
        """By name, or by the beginning of its id. Raises ImageError."""
        images = self.images()
        hexadecimal = wanted.removeprefix("sha256:")
        if len(hexadecimal) >= 6 and not hexadecimal.strip("0123456789abcdef"):
            matching = {each.id: each for each in images if each.id.startswith(f"sha256:{hexadecimal}")}
            if len(matching) == 1:
                return next(iter(matching.values()))
            if matching:
                raise ImageError(f"{wanted!r} begins the ids of {len(matching)} images; write more of it")
        name = spec.reference(wanted)
        for each in images:
            if each.name == name:
                return each
        there = ", ".join(each.name for each in images) or "none yet"
        raise ImageError(f"there is no image {name} here ({there}); `xuni image build-rootfs busybox` makes one, `xuni image "
                         "import FILE` takes one in")  # fmt: skip

    def remove(self, wanted: str, in_use: Callable[[], set[str]] = set) -> tuple[str, int]:
        """Forget a name, then all content that no name leads to. `in_use` are digests of layers that containers hold.

        Returns the name and how many bytes became free. Raises ImageError.
        """
        image = self.find(wanted)
        with self.adding(alone=True), self.lock():
            self._write([each for each in self.entries() if each.annotations.get(spec.REF_NAME) != image.name])
            return image.name, self._collect(in_use())

    def _collect(self, in_use: set[str]) -> int:
        import shutil

        blobs, layers = set(), set(in_use)
        for image in self.images():
            blobs.update([image.descriptor.digest, image.id, *(each.digest for each in image.manifest.layers)])
            layers.update(image.config.diff_ids)
        freed = 0
        for path in self._blobs.iterdir() if self._blobs.is_dir() else ():
            if not path.name.startswith(".") and f"sha256:{path.name}" not in blobs:
                freed += path.stat().st_size
                path.unlink()
        for path in self.layers.iterdir() if self.layers.is_dir() else ():
            if not path.name.startswith(".") and f"sha256:{path.name}" not in layers:
                gone = path.with_name(f".gone-{path.name}")
                path.rename(gone)
                shutil.rmtree(gone)
        return freed
