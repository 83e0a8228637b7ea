"""Images in, out, and gone: layouts, archives, digests, roots."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from xuni.image import ImageError, archive, rootfs, spec
from xuni.image.content import Store
from xuni.image.spec import Descriptor

ROOT = os.geteuid() == 0


def layer(**files: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tree:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "/").replace("WH_", ".wh."))
            member.size = len(content)
            tree.addfile(member, io.BytesIO(content.encode()))
    return made.getvalue()


def test_docker_archive_in_and_out(store: Store, docker_archive: Callable[..., Path], tmp_path: Path) -> None:
    names = archive.import_any(store, docker_archive(layer(a="1"), layer(b="2"), name="registry.example/library/two:3"), None)
    assert names == ("two:3",)
    image = store.find("two:3")
    assert image.config.cmd == ("sh",) and image.config.env == ("A=b",) and len(image.manifest.layers) == 2
    out = io.BytesIO()
    archive.save_docker(store, ("two:3",), out)
    again = Store(tmp_path / "second")
    out.seek(0)
    assert archive.import_stream(again, out, None, "-") == ("two:3",)
    assert again.find("two:3").id == image.id


@pytest.mark.parametrize("as_file", [True, False])
def test_oci_layout_in_and_out(store: Store, docker_archive: Callable[..., Path], tmp_path: Path, as_file: bool) -> None:
    archive.import_any(store, docker_archive(layer(a="1")), None)
    place = tmp_path / "out"
    if as_file:
        with open(place, "wb") as file:
            archive.save_oci(store, ("made:1",), file)
    else:
        archive.save_oci(store, ("made:1",), place)
    again = Store(tmp_path / "second")
    assert archive.import_any(again, place, None) == ("made:1",)
    assert again.find("made:1").descriptor.digest == store.find("made:1").descriptor.digest
    assert archive.verify(again).wrong == ()


def test_a_directory_becomes_an_image(store: Store, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_text("x")
    os.link(tree / "sub/file", tree / "second")
    assert archive.import_any(store, tree, "mine") == ("mine:latest",)
    (place,) = rootfs.layers(store, store.find("mine"))
    assert (place / "sub/file").samefile(place / "second")
    with pytest.raises(ImageError, match="needs a name"):
        archive.import_any(store, tree, None)


def test_a_damaged_layer_is_refused_and_leaves_nothing(store: Store, docker_archive: Callable[..., Path]) -> None:
    with pytest.raises(ImageError, match="should be sha256:00"):
        archive.import_any(store, docker_archive(layer(a="1"), diff_ids=["sha256:" + "00" * 32]), None)
    assert store.images() == ()


def test_a_layout_with_a_changed_blob(store: Store, docker_archive: Callable[..., Path], tmp_path: Path) -> None:
    archive.import_any(store, docker_archive(layer(a="1")), None)
    place = tmp_path / "layout"
    archive.save_oci(store, ("made:1",), place)
    blob = place / "blobs/sha256" / store.find("made:1").manifest.layers[0].digest[7:]
    blob.write_bytes(blob.read_bytes().replace(b"1", b"2"))
    with pytest.raises(ImageError, match="content should be sha256:"):
        archive.import_any(Store(tmp_path / "second"), place, None)


def test_hostile_layouts(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "layout"
    place.mkdir()
    (place / "oci-layout").write_text("{}")
    for index, said in (({"manifests": [{"digest": "sha256:../../etc/passwd", "size": 1}]}, "not sha256:"),
                        ({"manifests": [{"digest": "sha256:" + "0" * 64, "size": -1}]}, "not a size"),
                        ({"manifests": []}, "no manifests"), ([], "object belongs")):  # fmt: skip
        (place / "index.json").write_text(json.dumps(index))
        with pytest.raises(ImageError, match=said):
            archive.import_any(store, place, "x")


def test_an_archive_that_names_files_of_the_host(store: Store, tmp_path: Path) -> None:
    manifest = json.dumps([{"Config": "../../../../etc/passwd", "RepoTags": ["x:1"], "Layers": []}]).encode()
    member = tarfile.TarInfo("manifest.json")
    member.size = len(manifest)
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tree:
        tree.addfile(member, io.BytesIO(manifest))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tree.addfile(link)
    with pytest.raises(ImageError, match="the archive has no"):
        archive.import_any(store, path, None)


def test_content_is_what_it_says(store: Store) -> None:
    with pytest.raises(ImageError, match="longer than 3 bytes"):
        store.add(io.BytesIO(b"four"), "x", Descriptor("x", "sha256:" + "0" * 64, 3))
    assert not list((store.root / "blobs/sha256").iterdir())


def test_removal_keeps_what_others_have(store: Store, docker_archive: Callable[..., Path]) -> None:
    shared, own = layer(base="x"), layer(own="y")
    archive.import_any(store, docker_archive(shared, name="one:1"), None)
    archive.import_any(store, docker_archive(shared, own, name="two:1"), None)
    rootfs.layers(store, store.find("two:1"))
    base = store.find("one:1").manifest.layers[0].digest
    store.remove("two:1")
    assert store.has(base) and len(list((store.root / "blobs/sha256").iterdir())) == 3
    kept = [each.name for each in store.layers.iterdir() if not each.name.startswith(".")]
    assert kept == [store.find("one:1").config.diff_ids[0][7:]]
    store.remove(store.find("one:1").id[:19])
    assert not list((store.root / "blobs/sha256").iterdir())
    with pytest.raises(ImageError, match=r"no image one:1 here \(none yet\)"):
        store.find("one:1")


@pytest.mark.parametrize(("text", "name"), [
    ("busybox", "busybox:latest"), ("a/b:1.2_3", "a/b:1.2_3"), ("h:5000/x", "h:5000/x:latest"),
])  # fmt: skip
def test_names(text: str, name: str) -> None:
    assert spec.reference(text) == name


@pytest.mark.parametrize("text", ["", "Upper", "a b", "a:", ":1", "a//b", "-a", "a:x/", "../a", "a" * 300])
def test_wrong_names(text: str) -> None:
    with pytest.raises(ImageError, match="not an image's name"):
        spec.reference(text)


@pytest.mark.skipif(not ROOT, reason="mounting overlayfs takes root here")
def test_a_root_of_layers(store: Store, docker_archive: Callable[..., Path], tmp_path: Path) -> None:
    lower = layer(keep="1", gone="1", d__old="1")
    upper = layer(WH_gone="", keep="2", **{"d__.wh..wh..opq": "", "d__new": "2"})
    archive.import_any(store, docker_archive(lower, upper), None)
    for copying in (False, True):
        place = tmp_path / f"container-{copying}"
        place.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            if copying:
                from xuni.host.linux.calls import CallError

                def refuse(*_: object, **__: object) -> None:
                    raise CallError(1, "fsopen", ("overlay",))

                patch.setattr(rootfs, "mount", refuse)
            root = rootfs.make(store, store.find("made:1"), place)
        assert root.kind == ("copy" if copying else "overlay")
        try:
            assert sorted(each.name for each in root.path.iterdir()) == ["d", "keep"]
            assert [each.name for each in (root.path / "d").iterdir()] == ["new"]
            assert (root.path / "keep").read_text() == "2"
            (root.path / "keep").write_text("3")
        finally:
            rootfs.release(place)
        assert not place.exists()


def test_killed_while_it_imports_it_leaves_a_store_that_works(tmp_path: Path) -> None:
    """SIGKILL at some moment: the index is the old one or the new one, and another import succeeds."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(3 << 20))
    program = ("import sys; from pathlib import Path; from xuni.image import archive; from xuni.image.content import Store\n"
               "print(flush=True)\n"
               "archive.import_any(Store(Path(sys.argv[1])), Path(sys.argv[2]), 'x')")  # fmt: skip
    for milliseconds in (1, 40, 90, 150):
        with subprocess.Popen([sys.executable, "-c", program, tmp_path / "data", tree], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            try:
                child.wait(milliseconds / 1000)
            except subprocess.TimeoutExpired:
                child.kill()
        Store(tmp_path / "data").images()
    store = Store(tmp_path / "data")
    archive.import_any(store, tree, "x")
    assert archive.verify(store).wrong == ()
    store.remove("x")


