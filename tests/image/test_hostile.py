"""Images and trees that mean harm, and whoever changes them while they are read."""

from __future__ import annotations

import importlib.util
import io
import json
import multiprocessing
import os
import socket
import stat
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xuni.host.linux import calls
from xuni.image import ImageError, archive, pack
from xuni.image.compression import TarStream
from xuni.image.content import Store
from xuni.image.extract import Extractor

spec = importlib.util.spec_from_file_location("image_conftest_hostile", Path(__file__).with_name("conftest.py"))
assert spec and spec.loader
made = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = made
spec.loader.exec_module(made)
tar, entry = made.tar, made.entry
LINK, HARD, FOLDER = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
ROOT = os.geteuid() == 0


class Place:
    """A root to unpack into, and what lies beside it."""

    def __init__(self, path: Path) -> None:
        self.root, self.outside = path / "root", path / "outside"
        self.root.mkdir()
        (self.outside / "tree/deep").mkdir(parents=True)
        for each in ("file", "tree/file", "tree/deep/file"):
            (self.outside / each).write_text("untouched")
        self.before = self.look()

    def look(self) -> list[tuple[str, int, int, float]]:
        found = [(str(each), each.lstat()) for each in (self.outside, *self.outside.rglob("*"))]
        return sorted((name, status.st_mode, status.st_nlink, status.st_mtime) for name, status in found)

    def unpack(self, *layers: bytes, stacked: bool = False, privileged: bool | None = None) -> list[str]:
        """What each layer was refused for."""
        said = []
        extractor = Extractor(str(self.root), stacked=stacked, privileged=privileged)
        for each in layers:
            try:
                extractor.layer(TarStream(io.BytesIO(each)))
            except ImageError as error:
                said.append(str(error))
        extractor.close()
        return said


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    assert found.look() == found.before


LEADS = ("{outside}", "../outside", "../../../../../../../../../../../..{outside}", "/proc/self/cwd/../outside")


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("stacked", [False, pytest.param(True, marks=pytest.mark.skipif(not ROOT, reason="takes root"))])
def test_a_link_of_one_layer_and_what_the_next_does_through_it(place: Place, lead: str, stacked: bool) -> None:
    """Files, directories, links, hard links, whiteouts: all of them through `way`."""
    first = tar(entry("way", LINK, linkname=lead.format(outside=place.outside)))
    seconds = [(entry("way/file"), b"hit"), entry("way/tree", FOLDER, 0o777, mtime=1), entry("way/new", FOLDER, 0o755),
               entry("way/link", LINK, linkname="/etc"), entry("way/hard", HARD, linkname="way/file"),
               entry("way/.wh.file"), entry("way/.wh..wh..opq"), entry("way/tree/.wh.deep"), entry("way/tree/.wh..wh..opq"),
               entry("way/pipe", tarfile.FIFOTYPE), entry("hard", HARD, linkname="way/file"), entry(".wh.way")]  # fmt: skip
    for each in seconds:
        place.unpack(first, tar(each), stacked=stacked)
    assert place.look() == place.before
    inside = {os.lstat(each).st_ino for each in place.root.rglob("*")}
    assert not inside & {os.lstat(each).st_ino for each in place.outside.rglob("*")}


@pytest.mark.skipif(not ROOT, reason="device nodes take root")
def test_nodes_of_an_image_without_the_right_to_make_them(place: Place) -> None:
    nodes = [entry(f"dev/{kind}{number}", tarfile.BLKTYPE if kind == "b" else tarfile.CHRTYPE, 0o666, devmajor=number, devminor=3)
             for kind in "bc" for number in (1, 8, 254)]  # fmt: skip
    assert not place.unpack(tar(*nodes, entry("dev/pipe", tarfile.FIFOTYPE, 0o600)), privileged=False)
    left = list((place.root / "dev").iterdir())
    assert [each.name for each in left] == ["pipe"] and not any(stat.S_ISBLK(each.stat().st_mode) for each in left)


@contextmanager
def exchanging(directory: Path, one: str, other: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody else who has the two names take turns, without a moment in between (renameat2, RENAME_EXCHANGE)."""
    monkeypatch.setitem(calls.NUMBERS, "renameat2", (316, 276))
    racer = multiprocessing.get_context("fork").Process(target=_exchange, args=(str(directory), one, other), daemon=True)
    racer.start()
    try:
        yield
    finally:
        racer.kill()
        racer.join()


def _exchange(directory: str, one: str, other: str) -> None:
    place = os.open(directory, os.O_PATH)
    while True:
        calls.call("renameat2", place, one.encode(), place, other.encode(), 2, shown=())


def test_a_directory_that_becomes_a_link_while_a_layer_is_unpacked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.root / "way").mkdir()
    (place.root / ".other").symlink_to(place.outside / "tree")
    layer = tar(*[(entry(f"way/deep/f{each}"), b"hit") for each in range(300)],
                *[entry(f"way/d{each}/e", FOLDER, 0o777) for each in range(200)], entry("way/.wh.file"))  # fmt: skip
    with exchanging(place.root, "way", ".other", monkeypatch):
        for _ in range(5):
            place.unpack(layer)


# ---- trees that are packed


def packed(directory: Path) -> dict[str, tuple[bytes, bytes]]:
    """Name: type and content."""
    spool = io.BytesIO()
    with tarfile.open(fileobj=spool, mode="w", format=tarfile.PAX_FORMAT) as into:
        pack.write(str(directory), into)
    spool.seek(0)
    with tarfile.open(fileobj=spool) as found:
        return {each.name: (each.type, file.read() if (file := found.extractfile(each) if each.isreg() else None) else b"")
                for each in found}  # fmt: skip


def test_what_is_packed_is_not_opened_unless_it_is_a_file(place: Place) -> None:
    """A named pipe would hold the reader for ever, a device does something when it is opened."""
    os.mkfifo(place.root / "pipe")
    (place.root / "link").symlink_to(place.outside / "file")
    (place.root / "tree").symlink_to(place.outside / "tree")
    (place.root / "file").write_text("inside")
    if ROOT:
        os.mknod(place.root / "device", stat.S_IFCHR | 0o600, os.makedev(10, 130))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.root / "socket"))
    found = packed(place.root)
    assert found["pipe"] == (tarfile.FIFOTYPE, b"") and found["file"] == (tarfile.REGTYPE, b"inside")
    assert found["link"] == found["tree"] == (LINK, b"")
    assert set(found) == {"pipe", "link", "tree", "file"} | ({"device"} if ROOT else set())


def test_a_file_that_becomes_a_link_while_it_is_packed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container can while `xuni cp` reads from it: what its link would lead to on the host is not read."""
    for at in range(40):
        (place.root / f"file{at:02}").write_text("inside")
    (place.root / "zlink").symlink_to(place.outside / "file")
    (place.root / "folder").mkdir()
    (place.root / "folder/file").write_text("inside")
    (place.root / "zother").symlink_to(place.outside / "tree")
    with exchanging(place.root, "file20", "zlink", monkeypatch), exchanging(place.root, "folder", "zother", monkeypatch):
        for _ in range(60):
            assert not [name for name, (_, content) in packed(place.root).items() if b"untouched" in content]


def test_a_tree_that_is_too_deep(place: Place) -> None:
    here = os.open(place.root, os.O_PATH)
    for _ in range(400):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_PATH, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(OSError, match="nested more than 256 deep"):
        packed(place.root)


# ---- layouts and archives


@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "loop"])
@pytest.mark.parametrize("which", ["index.json", "oci-layout"])
def test_a_layout_whose_files_are_none(tmp_path: Path, which: str, kind: str) -> None:
    layout = tmp_path / "layout"
    layout.mkdir()
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text('{"manifests": []}')
    (layout / which).unlink()
    if kind == "pipe":
        os.mkfifo(layout / which)
    elif kind == "device":
        (layout / which).symlink_to("/dev/zero")
    elif kind == "loop":
        (layout / which).symlink_to(which)
    else:
        (layout / which).mkdir()
    store = Store(tmp_path / "data")
    try:
        archive.import_any(store, layout, "x")
    except ImageError as error:
        assert str(layout) in str(error)
    assert not [each for each in store.images() if each.name == "x"] or which == "oci-layout"


def test_an_archive_whose_links_go_in_circles(tmp_path: Path) -> None:
    manifest = json.dumps([{"Config": "a", "RepoTags": ["x:1"], "Layers": ["b/../../../layer.tar"]}]).encode()
    path = tmp_path / "evil.tar"
    path.write_bytes(tar((entry("manifest.json"), manifest), entry("a", LINK, linkname="b"), entry("b", LINK, linkname="a")))
    store = Store(tmp_path / "data")
    with pytest.raises(ImageError, match="the archive has no 'a'"):
        archive.import_any(store, path, None)
    assert store.images() == ()
