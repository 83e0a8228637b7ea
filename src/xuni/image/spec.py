"""Descriptors, manifests and configurations (OCI image-spec 1.1), read with every bound checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from xuni.image import ImageError

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
REF_NAME: Final = "org.opencontainers.image.ref.name"

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")
MOST_LAYERS: Final = 500  # as many as overlayfs stacks
MAX_JSON: Final = 4 << 20  # bytes of a manifest or configuration; registries take as much
# [PATH/]NAME[:TAG], image-spec's grammar for names and distribution's for tags.
NAME: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:[/:][a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z")
TAG: Final = re.compile(r"[\w][\w.-]{0,127}\Z", re.ASCII)


def reference(text: str) -> str:
    """The name with its tag, "latest" if it has none. Raises ImageError."""
    name, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        name, tag = text, "latest"
    if not NAME.match(name) or len(name) > 255 or not TAG.match(tag):
        raise ImageError(f"{text!r} is not an image's name: lower-case letters, digits and . _ - between them, "
                         "then perhaps :TAG, like tools/busybox:1.36")
    return f"{name}:{tag}"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a piece of content is: its type, digest and size in bytes."""

    media: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: object, place: str) -> Descriptor:
        given = as_object(value, place)
        digest, size = given.get("digest"), given.get("size")
        if not isinstance(digest, str) or not DIGEST.match(digest):
            raise ImageError(f"{place}.digest: {str(digest)[:80]!r} is not sha256: and 64 hexadecimal digits")
        if type(size) is not int or not 0 <= size < 1 << 50:
            raise ImageError(f"{place}.size: {str(size)[:80]} is not a size in bytes")
        media, notes, platform = given.get("mediaType", ""), given.get("annotations"), given.get("platform")
        return cls(str(media), digest, size, _strings(notes), _strings(platform))

    def as_json(self) -> dict[str, Any]:
        said: dict[str, Any] = {"mediaType": self.media, "digest": self.digest, "size": self.size}
        if self.annotations:
            said["annotations"] = dict(self.annotations)
        if self.platform:
            said["platform"] = dict(self.platform)
        return said


@dataclass(frozen=True, slots=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @classmethod
    def parse(cls, data: bytes, place: str) -> Manifest:
        given = as_object(decode(data, place), place)
        layers = given.get("layers")
        if not isinstance(layers, list) or len(layers) > MOST_LAYERS:
            raise ImageError(f"{place}.layers: a list of at most {MOST_LAYERS} layers belongs there")
        return cls(Descriptor.parse(given.get("config"), f"{place}.config"),
                   tuple(Descriptor.parse(each, f"{place}.layers[{index}]") for index, each in enumerate(layers)))

    def as_json(self) -> dict[str, Any]:
        return {"schemaVersion": 2, "mediaType": MANIFEST, "config": self.config.as_json(),
                "layers": [each.as_json() for each in self.layers]}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Config:
    """What a container of the image runs (config.md). `diff_ids` are the digests of the layers' tar files."""

    diff_ids: tuple[str, ...]
    architecture: str = ""
    created: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes, place: str) -> Config:
        given = as_object(decode(data, place), place)
        run = as_object(given.get("config") or {}, f"{place}.config")
        diff_ids = as_object(given.get("rootfs"), f"{place}.rootfs").get("diff_ids")
        if not isinstance(diff_ids, list) or len(diff_ids) > MOST_LAYERS or not all(
            isinstance(each, str) and DIGEST.match(each) for each in diff_ids
        ):
            raise ImageError(f"{place}.rootfs.diff_ids: a list of at most {MOST_LAYERS} digests belongs there")

        def words(name: str) -> tuple[str, ...]:
            value = run.get(name) or []
            if not isinstance(value, list) or not all(isinstance(each, str) and "\0" not in each for each in value):
                raise ImageError(f"{place}.config.{name}: a list of strings belongs there")
            return tuple(value)

        def keys(name: str) -> tuple[str, ...]:
            return tuple(as_object(run.get(name) or {}, f"{place}.config.{name}"))

        return cls(tuple(diff_ids), str(given.get("architecture", "")), str(given.get("created", "")), words("Entrypoint"),
                   words("Cmd"), words("Env"), str(run.get("WorkingDir") or "/"), str(run.get("User") or ""),
                   str(run.get("StopSignal") or ""), keys("Volumes"), keys("ExposedPorts"),
                   _strings(run.get("Labels")))  # fmt: skip


def decode(data: bytes, place: str) -> object:
    if len(data) > MAX_JSON:
        raise ImageError(f"{place}: {len(data)} bytes of JSON; at most {MAX_JSON} are read")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{place} is not JSON: {error}") from None


def encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def as_object(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImageError(f"{place}: a JSON object belongs there")
    return value


def _strings(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {key: item for key, item in value.items() if isinstance(item, str)}
