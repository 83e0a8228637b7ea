"""Where images come from and go to: OCI layouts, OCI and docker archives, and trees of files.

Everything that comes in is verified: blobs by their digests, layers by their diff_ids. Names in archives are looked up in
a table of what the archive had, never in a file system.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import os
import platform
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from xuni.image import ImageError, pack, spec
from xuni.image.compression import TarStream
from xuni.image.content import PIECE, Store
from xuni.image.spec import Config, Descriptor, Manifest

ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "loongarch64": "loong64", "i686": "386"}
MOST_BYTES: Final = 128 << 30
MEDIA: Final = {"": spec.LAYER, "gzip": spec.LAYER + "+gzip", "zstd": spec.LAYER + "+zstd"}


def architecture() -> str:
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


def import_any(store: Store, source: Path, name: str | None) -> tuple[str, ...]:
    """Take images in from a directory (an OCI layout, or the files themselves) or a tar file (of an OCI layout, of `docker
    save`, or of files). Returns their names. `name` is for those that bring none. Raises ImageError, OSError."""
    with store.adding():
        return _import_any(store, source, name)


def _import_any(store: Store, source: Path, name: str | None) -> tuple[str, ...]:
    if source.is_dir():
        if (source / "oci-layout").is_file():
            return _from_layout(store, _Directory(source), name)
        return (_from_tree(store, source, _needed(name, source)),)
    try:
        file = open(source, "rb")
    except OSError as error:
        raise ImageError(f"{source}: {error.strerror}; name an image archive, a tar file or a directory") from None
    with file:
        return _import_stream(store, file, name, str(source))


def import_stream(store: Store, file: IO[bytes], name: str | None, called: str) -> tuple[str, ...]:
    """As `import_any`, from a file that can seek."""
    with store.adding():
        return _import_stream(store, file, name, called)


def _import_stream(store: Store, file: IO[bytes], name: str | None, called: str) -> tuple[str, ...]:
    with _members(file) as members:
        if "manifest.json" in members:
            return _from_docker(store, members, name)
        if "oci-layout" in members:
            return _from_layout(store, members, name)
    file.seek(0)
    return (_from_files(store, file, _needed(name, called)),)


def _needed(name: str | None, source: object) -> str:
    if not name:
        raise ImageError(f"{source} holds files and no image, so the image to make of it needs a name: "
                         f"`xuni image import {source} mine`")  # fmt: skip
    return spec.reference(name)


# ---- parts of an archive, by name


class _Parts:
    """The files of an archive of images."""

    def __contains__(self, name: object) -> bool:
        raise NotImplementedError

    def open(self, name: str) -> IO[bytes]:
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        with self.open(name) as part:
            return part.read(spec.MAX_JSON + 1)


class _Directory(_Parts):
    def __init__(self, root: Path) -> None:
        self.root = root

    def __contains__(self, name: object) -> bool:
        return (self.root / str(name)).is_file()

    def open(self, name: str) -> IO[bytes]:
        # The names asked for are ours (index.json) or made of digests; a link here leads where the user's own files lead.
        place = self.root / name
        try:
            if not place.is_file():
                raise ImageError(f"{place}: {'not a file' if place.exists() else 'no such file'}; the layout is not whole")
            return open(place, "rb")
        except OSError as error:
            raise ImageError(f"{place}: {error.strerror}; the layout is not whole") from None


class _Members(_Parts):
    """Those of a tar file, in a scratch directory under names of ours."""

    def __init__(self, scratch: str) -> None:
        self._scratch = scratch
        self._files: dict[str, str] = {}
        self._links: dict[str, str] = {}

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = os.path.normpath(member.name.lstrip("/"))
        if member.issym() or member.islnk():  # old archives hold a layer once, and link to it
            base = os.path.dirname(name) if member.issym() else ""
            self._links[name] = os.path.normpath(f"{base}/{member.linkname}".lstrip("/"))
            return
        if not member.isreg():
            return
        content = archive.extractfile(member)
        assert content is not None
        place = f"{self._scratch}/{len(self._files)}"
        with open(place, "xb") as file:
            while piece := content.read(PIECE):
                file.write(piece)
        self._files[name] = place

    def _place(self, name: str) -> str | None:
        name = os.path.normpath(name)
        for _ in range(8):
            if name in self._files:
                return self._files[name]
            name = self._links.get(name, "")
        return None

    def __contains__(self, name: object) -> bool:
        return self._place(str(name)) is not None

    def open(self, name: str) -> IO[bytes]:
        place = self._place(name)
        if place is None:
            raise ImageError(f"the archive has no {name[:200]!r}, which its manifest names")
        return open(place, "rb")


@contextmanager
def _members(file: IO[bytes]) -> Iterator[_Members]:
    """All files of an archive of images, or nothing if it is none: of other archives only the headers are read."""
    with tempfile.TemporaryDirectory(prefix="xuni-image-") as scratch:
        members = _Members(scratch)
        if _is_of_images(file):
            file.seek(0)
            with _reading(file) as archive:
                for member in _each(archive):
                    members.take(archive, member)
        yield members


def _is_of_images(file: IO[bytes]) -> bool:
    with _reading(file) as archive:
        telling = ("manifest.json", "oci-layout")
        return any(os.path.normpath(member.name) in telling and member.isreg() for member in _each(archive))


def _each(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    from xuni.image.extract import _members as bounded

    return bounded(archive)


@contextmanager
def _reading(file: IO[bytes]) -> Iterator[tarfile.TarFile]:
    stream = TarStream(file, MOST_BYTES)
    try:
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[call-overload]
            yield archive
    except tarfile.TarError as error:
        raise ImageError(f"{getattr(file, 'name', 'the input')} is neither an image archive nor a tar file: {error}") from None


# ---- in


def _from_layout(store: Store, parts: _Parts, name: str | None) -> tuple[str, ...]:
    index = spec.as_object(spec.decode(parts.read("index.json"), "index.json"), "index.json")
    listed = index.get("manifests")
    if not isinstance(listed, list) or not listed:
        raise ImageError("index.json lists no manifests")
    names = []
    for number, each in enumerate(listed[:1000]):
        descriptor = Descriptor.parse(each, f"index.json: manifests[{number}]")
        own = descriptor.annotations.get(spec.REF_NAME, "").removeprefix("localhost/")
        if ":" not in own and name and own:
            own = f"{name.rpartition(':')[0] or name}:{own}"  # image-spec's own use of it is the tag alone
        wanted = name if name and len(listed) == 1 else own or name
        if not wanted:
            raise ImageError("the layout's image has no name: add one, like `xuni image import FILE mine`")
        names.append(spec.reference(wanted))
        store.name(names[-1], _take_manifest(store, parts, descriptor))
    return tuple(names)


def _take_manifest(store: Store, parts: _Parts, descriptor: Descriptor, depth: int = 0) -> Descriptor:
    data = _take(store, parts, descriptor)
    if descriptor.media in (spec.INDEX, spec.DOCKER_LIST):
        listed = spec.as_object(spec.decode(data, descriptor.digest), descriptor.digest).get("manifests", [])
        choices = [Descriptor.parse(each, f"{descriptor.digest}: manifests[{at}]") for at, each in enumerate(listed)]
        fitting = [each for each in choices if each.platform.get("architecture") in (None, architecture())]
        if not fitting or depth > 3:
            there = ", ".join(sorted({each.platform.get("architecture", "?") for each in choices})) or "nothing"
            raise ImageError(f"the image is for {there}, and this machine is {architecture()}")
        return _take_manifest(store, parts, fitting[0], depth + 1)
    manifest = Manifest.parse(data, descriptor.digest)
    config = Config.parse(_take(store, parts, manifest.config), "configuration")
    if len(config.diff_ids) != len(manifest.layers):
        raise ImageError(f"{len(manifest.layers)} layers, but {len(config.diff_ids)} diff_ids")
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        if layer.media.removesuffix("+gzip").removesuffix("+zstd") != spec.LAYER and "docker.image.rootfs" not in layer.media:
            raise ImageError(f"layer {layer.digest} is of type {layer.media!r}, which is no file system layer")
        if not store.has(layer.digest):
            with parts.open(_blob(layer.digest)) as source:
                store.add(source, layer.media, layer)
        with store.open(layer) as blob:
            _verify(blob, diff_id)
    return replace(descriptor, annotations={}, platform={})


def _take(store: Store, parts: _Parts, descriptor: Descriptor) -> bytes:
    """A small blob: in the store, and here."""
    if not store.has(descriptor.digest):
        with parts.open(_blob(descriptor.digest)) as source:
            store.add(source, descriptor.media, descriptor)
    return store.read(descriptor)


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _verify(blob: IO[bytes], diff_id: str) -> None:
    found = TarStream(blob).finish()
    if found != diff_id:
        raise ImageError(f"a layer's tar file should be {diff_id} and is {found}")


def _from_docker(store: Store, parts: _Parts, name: str | None) -> tuple[str, ...]:
    """What `docker save` writes: manifest.json with the names of a configuration and of layers' tar files."""
    listed = spec.decode(parts.read("manifest.json"), "manifest.json")
    if not isinstance(listed, list) or not listed:
        raise ImageError("manifest.json: a list of images belongs there")
    names: list[str] = []
    for number, each in enumerate(listed[:1000]):
        entry = spec.as_object(each, f"manifest.json[{number}]")
        config_name, layer_names = entry.get("Config"), entry.get("Layers")
        if not isinstance(config_name, str) or not isinstance(layer_names, list) or len(layer_names) > spec.MOST_LAYERS:
            raise ImageError(f"manifest.json[{number}]: Config and a list of Layers belong there")
        config_data = parts.read(config_name)
        config = Config.parse(config_data, config_name)
        if len(config.diff_ids) != len(layer_names):
            raise ImageError(f"manifest.json[{number}]: {len(layer_names)} layers, but {len(config.diff_ids)} diff_ids")
        layers = []
        for layer_name, diff_id in zip(layer_names, config.diff_ids, strict=True):
            with parts.open(str(layer_name)) as source:
                stream = TarStream(source)
                if stream.finish() != diff_id:
                    raise ImageError(f"{str(layer_name)[:200]}: its tar file should be {diff_id}, and is another")
                source.seek(0)
                layers.append(store.add(source, MEDIA[stream.compression]))
        manifest = Manifest(store.add_bytes(config_data, spec.CONFIG), tuple(layers))
        descriptor = store.add_bytes(spec.encode(manifest.as_json()), spec.MANIFEST)
        tags = [str(tag) for tag in entry.get("RepoTags") or ()]
        if name and len(listed) == 1:
            tags = [name]
        for tag in tags or ([name] if name else [config_name.removesuffix(".json")[:12]]):
            names.append(spec.reference(_short(tag)))
            store.name(names[-1], descriptor)
    return tuple(names)


def _short(tag: str) -> str:
    """docker and podman write the registry that they would have asked before the name; there is no registry here."""
    host, slash, rest = tag.partition("/")
    if slash and ("." in host or ":" in host or host == "localhost"):
        tag = rest
    return tag.removeprefix("library/")


def _from_tree(store: Store, source: Path, name: str, config: dict[str, Any] | None = None) -> str:
    with tempfile.TemporaryFile() as packed:
        pack.pack(str(source), packed)
        packed.seek(0)
        return _from_files(store, packed, name, config)


def from_tar(store: Store, file: IO[bytes], name: str, config: dict[str, Any]) -> str:
    with store.adding():
        return _from_files(store, file, spec.reference(name), config)


def _from_files(store: Store, file: IO[bytes], name: str, config: dict[str, Any] | None = None) -> str:
    """A tar file of files is the one layer of an image."""
    stream = TarStream(file)
    diff_id = stream.finish()
    file.seek(0)
    if stream.compression in MEDIA:
        layer = store.add(file, MEDIA[stream.compression])
    else:  # xz, bzip2: not for layers
        layer = store.add(_Unpacked(TarStream(file)), spec.LAYER)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    described = {
        "created": now, "architecture": architecture(), "os": "linux",
        "config": config if config is not None else {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                                                     "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": now, "created_by": "xuni image import"}],
    }  # fmt: skip
    manifest = Manifest(store.add_bytes(spec.encode(described), spec.CONFIG), (layer,))
    store.name(name, store.add_bytes(spec.encode(manifest.as_json()), spec.MANIFEST))
    return name


class _Unpacked:
    def __init__(self, stream: TarStream) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        return self._stream.read(size)


# ---- out


def save_docker(store: Store, wanted: tuple[str, ...], into: IO[bytes]) -> None:
    """What `docker load` and `podman load` read. Raises ImageError."""
    entries: dict[str, dict[str, Any]] = {}
    with tarfile.open(fileobj=into, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        written: set[str] = set()
        for each in wanted:
            image = store.find(each)
            config_name = image.id.removeprefix("sha256:") + ".json"
            if image.id in entries:
                entries[image.id]["RepoTags"].append(image.name)
                continue
            _put(archive, config_name, store.read(image.manifest.config))
            names = []
            for layer, diff_id in zip(image.manifest.layers, image.config.diff_ids, strict=True):
                names.append(f"{diff_id.removeprefix('sha256:')}/layer.tar")
                if names[-1] not in written:
                    written.add(names[-1])
                    _put_layer(store, layer, archive, names[-1])
            entries[image.id] = {"Config": config_name, "RepoTags": [image.name], "Layers": names}
        _put(archive, "manifest.json", json.dumps(list(entries.values())).encode())


def _put_layer(store: Store, layer: Descriptor, archive: tarfile.TarFile, name: str) -> None:
    with tempfile.TemporaryFile() as plain, store.open(layer) as blob:
        stream = TarStream(blob)
        while piece := stream.read(PIECE):
            plain.write(piece)
        member = tarfile.TarInfo(name)
        member.size, member.mode = plain.tell(), 0o644
        plain.seek(0)
        archive.addfile(member, plain)


def save_oci(store: Store, wanted: tuple[str, ...], into: Path | IO[bytes]) -> None:
    """An OCI image layout: a new directory, or a tar file of one."""
    images = [store.find(each) for each in wanted]
    blobs: dict[str, Descriptor] = {}
    for image in images:
        for each in (image.descriptor, image.manifest.config, *image.manifest.layers):
            blobs[each.digest] = each
    index = {"schemaVersion": 2, "mediaType": spec.INDEX, "manifests": [image.descriptor.as_json() for image in images]}
    small = {"oci-layout": spec.encode({"imageLayoutVersion": "1.0.0"}), "index.json": spec.encode(index)}
    if isinstance(into, Path):
        (into / "blobs" / "sha256").mkdir(parents=True)
        for digest, descriptor in blobs.items():
            with store.open(descriptor) as blob, open(into / _blob(digest), "xb") as file:
                while piece := blob.read(PIECE):
                    file.write(piece)
        for name, data in small.items():
            (into / name).write_bytes(data)
        return
    with tarfile.open(fileobj=into, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name, data in small.items():
            _put(archive, name, data)
        for digest, descriptor in blobs.items():
            member = tarfile.TarInfo(_blob(digest))
            member.size, member.mode = descriptor.size, 0o644
            with store.open(descriptor) as blob:
                archive.addfile(member, blob)


def _put(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))


@dataclass(frozen=True, slots=True)
class Check:
    """What `verify` found."""

    blobs: int
    wrong: tuple[str, ...]


def verify(store: Store) -> Check:
    """Read all content of the store again and compare digests: disks err, too."""
    count, wrong = 0, []
    for image in store.images():
        for each in (image.descriptor, image.manifest.config, *image.manifest.layers):
            digest = hashlib.sha256()
            with store.open(each) as blob:
                while piece := blob.read(PIECE):
                    digest.update(piece)
            count += 1
            if f"sha256:{digest.hexdigest()}" != each.digest:
                wrong.append(each.digest)
    return Check(count, tuple(wrong))
