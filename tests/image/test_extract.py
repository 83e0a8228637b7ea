"""Layers, honest and hostile. Whatever a tar file says, nothing outside of the root is read, written or linked."""

from __future__ import annotations

import importlib.util
import io
import os
import stat
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xuni.image import ImageError
from xuni.image.compression import TarStream
from xuni.image.extract import Extractor, Report

spec = importlib.util.spec_from_file_location("image_conftest", Path(__file__).with_name("conftest.py"))
assert spec and spec.loader
made = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = made
spec.loader.exec_module(made)
tar, entry = made.tar, made.entry
ROOT = os.geteuid() == 0
LINK, HARD, FOLDER, CHARACTER = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE


def unpack(root: Path, *entries: object, stacked: bool = False, privileged: bool | None = None) -> Report:
    root.mkdir(exist_ok=True)
    extractor = Extractor(str(root), stacked=stacked, privileged=privileged)
    try:
        return extractor.layer(TarStream(io.BytesIO(tar(*entries))))
    finally:
        extractor.close()


def names(root: Path) -> list[str]:
    return sorted(str(each.relative_to(root)) for each in root.rglob("*"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_text("untouched")
    (tmp_path / "dir").mkdir()
    return tmp_path / "root"


def test_files_links_modes_and_times(root: Path) -> None:
    unpack(root, entry("d", FOLDER, 0o750, mtime=1000), (entry("d/f", mode=0o4755, mtime=2000), b"text"),
           entry("l", LINK, linkname="d/f"),
           entry("h", HARD, linkname="d/f"), entry("p", tarfile.FIFOTYPE, 0o600))  # fmt: skip
    assert names(root) == ["d", "d/f", "h", "l", "p"]
    assert stat.S_IMODE((root / "d/f").stat().st_mode) == 0o4755 and (root / "d/f").stat().st_mtime == 2000
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o750 and (root / "d").stat().st_mtime == 1000
    assert os.readlink(root / "l") == "d/f" and (root / "h").samefile(root / "d/f")
    assert stat.S_ISFIFO((root / "p").stat().st_mode)


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "..", "a/..", "/../outside"])
def test_dot_dot_is_refused(root: Path, name: str) -> None:
    with pytest.raises(ImageError, match=r"`\.\.`"):
        unpack(root, (entry(name), b"hit"))
    assert (root.parent / "outside").read_text() == "untouched"


def test_absolute_names_mean_the_image(root: Path) -> None:
    unpack(root, (entry("/etc/xuni-absolute"), b"in"), (entry("//./etc//two"), b"in"))
    assert names(root) == ["etc", "etc/two", "etc/xuni-absolute"] and not Path("/etc/xuni-absolute").exists()


@pytest.mark.parametrize("target", ["..", "../..", "/", "../dir", "/proc/self/root", "/proc/self/cwd"])
def test_links_do_not_lead_out(root: Path, target: str) -> None:
    """A link in the image, then a file through it: it lands in the image or is refused, never outside."""
    before = names(root.parent)
    try:
        unpack(root, entry("way", LINK, linkname=target), (entry("way/xuni-hit"), b"hit"), (entry("way/outside"), b"hit"))
    except ImageError:
        pass
    assert (root.parent / "outside").read_text() == "untouched"
    assert [each for each in names(root.parent) if not each.startswith("root")] == before
    assert not Path("/xuni-hit").exists() and not Path("xuni-hit").exists()


def test_a_link_as_the_last_name_is_replaced_not_followed(root: Path) -> None:
    unpack(root, entry("f", LINK, linkname=str(root.parent / "outside")), (entry("f"), b"mine"))
    assert (root / "f").read_text() == "mine" and not (root / "f").is_symlink()
    assert (root.parent / "outside").read_text() == "untouched"


def test_a_directory_entry_does_not_change_what_a_link_points_to(root: Path) -> None:
    mode = (root.parent / "dir").stat().st_mode
    unpack(root, entry("d", LINK, linkname=str(root.parent / "dir")), entry("d", FOLDER, 0o777), (entry("d/f"), b"x"))
    assert (root.parent / "dir").stat().st_mode == mode and names(root) == ["d", "d/f"] and not (root / "d").is_symlink()


@pytest.mark.parametrize("target", ["../outside", "/../outside", "way/outside"])
def test_hard_links_do_not_lead_out(root: Path, target: str) -> None:
    with pytest.raises(ImageError):
        unpack(root, entry("way", LINK, linkname=".."), entry("h", HARD, linkname=target))
    assert (root.parent / "outside").stat().st_nlink == 1


def test_a_hard_link_to_a_link_is_to_the_link(root: Path) -> None:
    unpack(root, entry("l", LINK, linkname=str(root.parent / "outside")), entry("h", HARD, linkname="l"), (entry("h"), b"mine"))
    assert (root.parent / "outside").read_text() == "untouched"


def test_devices(root: Path) -> None:
    report = unpack(root, entry("null", CHARACTER, 0o666, devmajor=1, devminor=3), privileged=False)
    assert report.devices_left_out == ["null"] and names(root) == []
    with pytest.raises(ImageError, match="0:0"):
        unpack(root, entry("white", CHARACTER, devmajor=0, devminor=0))


@pytest.mark.skipif(not ROOT, reason="device nodes take root")
def test_devices_for_root(root: Path) -> None:
    unpack(root, entry("null", CHARACTER, 0o666, devmajor=1, devminor=3))
    found = (root / "null").stat()
    assert stat.S_ISCHR(found.st_mode) and (os.major(found.st_rdev), os.minor(found.st_rdev)) == (1, 3)


def test_whiteouts_in_a_flat_root(root: Path) -> None:
    unpack(root, (entry("a"), b"1"), entry("d", FOLDER, 0o755), (entry("d/x"), b"1"), (entry("d/y"), b"1"),
           (entry("e/f/g"), b"1"))  # fmt: skip
    extractor = Extractor(str(root), stacked=False)
    extractor.layer(TarStream(io.BytesIO(tar(
        (entry("d/new"), b"2"), entry("d/.wh..wh..opq"), entry(".wh.a"), (entry("b"), b"2"), entry(".wh.b"), entry("gone/.wh.z"),
        (entry("e/f/h"), b"2"), entry("e/.wh..wh..opq"), entry(".wh..wh.aufs"),
    ))))  # fmt: skip
    extractor.close()
    assert names(root) == ["b", "d", "d/new", "e", "e/f", "e/f/h"]


@pytest.mark.parametrize("name", [".wh.", ".wh...", ".wh.."])
def test_whiteouts_of_nothing(root: Path, name: str) -> None:
    with pytest.raises(ImageError, match="deletes nothing"):
        unpack(root, entry(name))


@pytest.mark.skipif(not ROOT, reason="trusted attributes take root")
def test_whiteouts_for_overlayfs(root: Path) -> None:
    unpack(root, entry("d/.wh.x"), entry("o/.wh..wh..opq"), stacked=True)
    assert (root / "d/x").stat().st_rdev == 0 and stat.S_ISCHR((root / "d/x").stat().st_mode)
    assert os.getxattr(root / "o", "trusted.overlay.opaque") == b"y"


def test_attributes_of_overlayfs_are_not_an_images(root: Path) -> None:
    headers = {f"SCHILY.xattr.{name}": "y" for name in ("trusted.overlay.redirect", "user.overlay.opaque", "user.fine")}
    unpack(root, (entry("f", pax_headers=headers), b"x"))
    assert os.listxattr(root / "f") == ["user.fine"]


def test_sparse_files_stay_sparse(root: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with open(sparse, "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"middle")
    archive = tmp_path / "sparse.tar"
    if os.spawnlp(os.P_WAIT, "tar", "tar", "-C", str(tmp_path), "-S", "-cf", str(archive), "sparse"):
        pytest.skip("this host has no GNU tar")
    root.mkdir()
    extractor = Extractor(str(root), stacked=False)
    extractor.layer(TarStream(io.BytesIO(archive.read_bytes())))
    extractor.close()
    found = (root / "sparse").stat()
    assert found.st_size == 64 << 20 and found.st_blocks * 512 < 4 << 20
    with open(root / "sparse", "rb") as file:
        file.seek(32 << 20)
        assert file.read(7) == b"middle\0"


@pytest.mark.parametrize("damage", [b"not a tar file at all" * 100, b"\x1f\x8b" + bytes(100), b"\x28\xb5\x2f\xfd" + bytes(100)])
def test_no_tar_file(root: Path, damage: bytes) -> None:
    root.mkdir()
    extractor = Extractor(str(root), stacked=False)
    with pytest.raises(ImageError):
        extractor.layer(TarStream(io.BytesIO(damage)))
    extractor.close()


def test_truncated_in_every_place(root: Path) -> None:
    whole = tar(entry("d", FOLDER, 0o755), (entry("d/f"), b"x" * 3000), entry("l", LINK, linkname="d"))
    root.mkdir()
    for end in range(600, 4500, 333):
        extractor = Extractor(str(root), stacked=False)
        try:
            extractor.layer(TarStream(io.BytesIO(whole[:end])))
        except ImageError:
            pass
        finally:
            extractor.close()


def test_bounds(root: Path) -> None:
    with pytest.raises(ImageError, match="unpacks to more than 4096"):
        TarStream(io.BytesIO(bytes(10000)), most=4096).finish()
    with pytest.raises(ImageError, match="no name for a file"):
        unpack(root, (entry("x" * 300), b""))
    with pytest.raises(ImageError, match="no name for a file"):
        unpack(root, entry("/".join("d" * 300), FOLDER))
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 33
    with pytest.raises(ImageError, match="header of"):
        Extractor(str(root), stacked=False).layer(TarStream(io.BytesIO(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))))


def test_the_digest_of_compressed_layers_is_that_of_the_tar_file() -> None:
    import gzip
    import hashlib

    from xuni.image.compression import zstd

    plain = tar((entry("f"), b"x" * 5000))
    expected = "sha256:" + hashlib.sha256(plain).hexdigest()
    for data in (plain, gzip.compress(plain), gzip.compress(plain[:700]) + gzip.compress(plain[700:]), zstd().compress(plain)):
        assert TarStream(io.BytesIO(data)).finish() == expected


NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "/", "way", "outside", ".wh.a", ".wh..wh..opq", "dir"]), min_size=1,
                 max_size=4).map("/".join)  # fmt: skip
ENTRIES = st.lists(st.tuples(NAMES, st.sampled_from([tarfile.REGTYPE, LINK, HARD, FOLDER, tarfile.FIFOTYPE, CHARACTER]), NAMES,
                             st.integers(0, 0o7777)), max_size=12)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(entries=ENTRIES, stacked=st.booleans(), damage=st.lists(st.tuples(st.integers(0, 8191), st.integers(0, 255)), max_size=6))
def test_no_archive_gets_out(entries: list[tuple[str, bytes, str, int]], stacked: bool, damage: list[tuple[int, int]]) -> None:
    """Any entries in any order, and flipped bytes: the outside stays as it is, and errors are the two kinds there are."""
    with tempfile.TemporaryDirectory() as scratch:
        outside = Path(scratch)
        (outside / "outside").write_text("untouched")
        (outside / "dir").mkdir()
        before = sorted(outside.rglob("*"))
        data = bytearray(tar(*(entry(name, kind, mode, linkname=f"../{target}", devmajor=1, devminor=3)
                               for name, kind, target, mode in entries)))  # fmt: skip
        for at, value in damage:
            data[at % len(data)] = value
        (outside / "root").mkdir()
        extractor = Extractor(str(outside / "root"), stacked=stacked, privileged=False)
        try:
            extractor.layer(TarStream(io.BytesIO(bytes(data))))
        except (ImageError, OSError):
            pass
        finally:
            extractor.close()
        after = sorted(each for each in outside.rglob("*") if outside / "root" not in (each, *each.parents))
        assert after == before and (outside / "outside").read_text() == "untouched"
        assert (outside / "outside").stat().st_nlink == 1 and not list((outside / "dir").iterdir())
