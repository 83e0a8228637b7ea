"""A store of its own for each test, and tar files made to measure."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from xuni.image.content import Store

Entry = tuple[str, bytes, dict[str, object]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def tar(*entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for each in entries:
            member, content = each if isinstance(each, tuple) else (each, b"")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode = kind, mode
    for key, value in fields.items():
        setattr(member, key, value)
    return member


@pytest.fixture
def docker_archive(tmp_path: Path) -> Callable[..., Path]:
    """A `docker save` of layers given as tar files."""
    import hashlib

    def make(*layers: bytes, name: str = "made:1", diff_ids: list[str] | None = None) -> Path:
        found = diff_ids or ["sha256:" + hashlib.sha256(each).hexdigest() for each in layers]
        config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"], "Env": ["A=b"]},
                             "rootfs": {"type": "layers", "diff_ids": found}}).encode()  # fmt: skip
        manifest = [{"Config": "c.json", "RepoTags": [name], "Layers": [f"{at}/layer.tar" for at in range(len(layers))]}]
        path = tmp_path / f"{name.replace(':', '-').replace('/', '-')}.tar"
        path.write_bytes(tar((entry("c.json"), config), (entry("manifest.json"), json.dumps(manifest).encode()),
                             *((entry(f"{at}/layer.tar"), each) for at, each in enumerate(layers))))  # fmt: skip
        return path

    return make
