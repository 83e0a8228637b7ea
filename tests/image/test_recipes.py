"""Images made of packages. That of BusyBox is built of a stand-in here; the real ones need the host's package sources."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pytest

from xuni.host import apt
from xuni.image import ImageError, recipes, rootfs
from xuni.image.content import Store

STANDIN = b"#!/bin/sh\necho sh\necho cat\necho busybox\n"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def files(deb: Path) -> Iterator[Iterator[tuple[PurePosixPath, Callable[[], bytes]]]]:
        yield iter([(PurePosixPath("bin/busybox"), lambda: STANDIN)])

    def obtain(names: Sequence[str], into: Path) -> tuple[str, Path]:
        return names[0], into / "package.deb"

    monkeypatch.setattr(apt, "obtain", obtain)
    monkeypatch.setattr(apt, "files", files)


def test_busybox(store: Store, package: None) -> None:
    assert recipes.build(store, "busybox", "tools/box:1") == "tools/box:1"
    image = store.find("tools/box:1")
    assert image.config.cmd == ("sh",)
    (layer,) = rootfs.layers(store, image)
    assert (layer / "bin/sh").samefile(layer / "bin/busybox") and (layer / "bin/cat").read_bytes() == STANDIN
    assert (layer / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_the_same_program_gives_the_same_layer() -> None:
    made = [io.BytesIO(), io.BytesIO()]
    for each in made:
        recipes._busybox_tree(each, STANDIN, ["sh", "cat"])
    assert made[0].getvalue() == made[1].getvalue()
    made[0].seek(0)
    assert "etc/passwd" in tarfile.open(fileobj=made[0]).getnames()


def test_refusals(store: Store, package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="no package manager"):
        recipes.build(store, "busybox", None, ("vim",))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ImageError, match="apt-get install mmdebstrap"):
        recipes.build(store, "debian", None)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(recipes, "SOURCES", Path("/nowhere"))
    with pytest.raises(ImageError, match=r"no file of /nowhere|VERSION_CODENAME"):
        recipes.build(store, "debian", None)
