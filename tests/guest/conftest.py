"""A host whose package sources hold what a test puts there; the tools are shell scripts in front of the real ones."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Publish = Callable[..., None]
BUSYBOX = b"#!/bin/sh\necho bin/sh\necho usr/bin/env\n"
TOOLS = {
    "apt-cache": 'for name; do :; done; cat "$DEBS/$name.stanza" 2>/dev/null || exit 100',
    "apt-get": 'for last; do :; done; n=${last%%=*}\n'
               'case " $* " in *" download "*) cp "$DEBS/$n.tar" "${n}_1_amd64.deb";; esac',
    "dpkg-deb": 'cat "$2"',
}


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """`publish("name", {"boot/vmlinuz-1": b"..."}, depends="other")` puts a package into the sources."""
    debs, tools = tmp_path / "debs", tmp_path / "tools"
    debs.mkdir()
    tools.mkdir()
    for name, script in TOOLS.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("DEBS", str(debs))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def add(name: str, files: Mapping[str, bytes], depends: str = "", version: str = "1.0") -> None:
        with tarfile.open(debs / f"{name}.tar", "w") as archive:
            for path, content in files.items():
                entry = tarfile.TarInfo(f"./{path}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        stanza = f"Package: {name}\nVersion: {version}\nDepends: {depends}\nSize: 1000\nSHA256: 0\n"
        (debs / f"{name}.stanza").write_text(stanza)

    return add
