from __future__ import annotations

import json
from pathlib import Path

import pytest

from xuni.guest import catalogue, initramfs
from xuni.guest.catalogue import GuestError

from .conftest import BUSYBOX, Publish


@pytest.fixture
def debian(publish: Publish) -> Publish:
    """Sources with what the guest debian is made of."""
    publish("linux-image-cloud-amd64", {}, depends="linux-image-6.1-cloud-amd64 (= 1.0)")
    files = {"boot/config-6.1": b"no", "boot/vmlinuz-6.1": b"the kernel"}
    publish("linux-image-6.1-cloud-amd64", files, depends="kmod")
    publish("busybox-static", {"bin/busybox": BUSYBOX}, version="1.35")
    return publish


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_guest_is_made_of_its_packages(debian: Publish) -> None:
    guest = catalogue.ensure("debian")
    assert names(guest.kernel.parent) == ["about.json", "busybox", "initrd", "kernel"]
    assert guest.kernel.read_bytes() == b"the kernel"
    assert guest.initrd and guest.initrd.read_bytes() == initramfs.build(BUSYBOX, ["bin/sh", "usr/bin/env"])
    assert guest.packages == {"linux-image-6.1-cloud-amd64": "1.0", "busybox-static": "1.35"}
    assert guest.takes_commands
    assert catalogue.kept() == [guest]


def test_a_guest_that_is_kept_needs_no_source(debian: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = catalogue.ensure("debian")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert catalogue.ensure("debian") == guest


def test_a_new_initramfs_recipe_needs_no_source_either(debian: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = catalogue.ensure("debian")
    assert guest.initrd
    guest.initrd.write_bytes(b"made by an older recipe")
    about = guest.kernel.parent / "about.json"
    about.write_text(about.read_text().replace(initramfs.recipe(), "older"))
    monkeypatch.setenv("DEBS", "/nonexistent")
    again = catalogue.ensure("debian")
    assert again.initrd and again.initrd.read_bytes() == initramfs.build(BUSYBOX, ["bin/sh", "usr/bin/env"])
    assert again.initramfs == initramfs.recipe()


def test_any_kernel_by_the_name_of_its_package(debian: Publish) -> None:
    debian("linux-image-9-rt", {"boot/vmlinuz-9": b"another"})
    assert catalogue.ensure("linux-image-9-rt").kernel.read_bytes() == b"another"
    assert [guest.name for guest in catalogue.kept()] == ["linux-image-9-rt"]


@pytest.mark.parametrize("path", ["boot/memtest86+x64.bin", "boot/mt86+x64"])
def test_memtest_by_its_old_and_new_path(publish: Publish, path: str) -> None:
    publish("memtest86+", {"boot/memtest86+ia32.bin": b"32", path: b"64"})
    guest = catalogue.ensure("memtest86+")
    assert (guest.kernel.read_bytes(), guest.initrd, guest.takes_commands) == (b"64", None, False)


def test_a_package_without_a_kernel_is_refused_and_leaves_nothing(debian: Publish) -> None:
    debian("linux-image-6.1-cloud-amd64", {"boot/config-6.1": b"only"})
    with pytest.raises(GuestError, match=r"linux-image-6\.1-cloud-amd64 1\.0 has no boot/vmlinuz-\*"):
        catalogue.ensure("debian")
    assert catalogue.kept() == []
    assert [name for name in names(catalogue.folder("debian").parent) if not name.endswith(".lock")] == []


def test_a_failed_fetch_keeps_the_guest_that_was_there(debian: Publish) -> None:
    guest = catalogue.ensure("debian")
    debian("busybox-static", {})
    with pytest.raises(GuestError):
        catalogue.fetch("debian")
    assert catalogue.find("debian") == guest


@pytest.mark.parametrize("content", [
    "", "{", "[]", "null", '{"append": "x"}', '{"append":1,"packages":3,"initramfs":0}',
])
def test_a_damaged_guest_counts_as_absent(debian: Publish, content: str) -> None:
    place = catalogue.ensure("debian").kernel.parent
    (place / "about.json").write_text(content)
    assert catalogue.find("debian") is None
    assert catalogue.ensure("debian").kernel.read_bytes() == b"the kernel"


@pytest.mark.parametrize("name", [
    "", "nosuch", "../debian", "linux-image-", "linux-image-../x", "linux-image-x\n", "a/b",
])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(GuestError, match="there is no guest named"):
        catalogue.ensure(name)
    assert catalogue.find(name) is None


def test_the_description_is_plain_json(debian: Publish) -> None:
    about = json.loads((catalogue.ensure("debian").kernel.parent / "about.json").read_text())
    assert set(about) == {"append", "packages", "initramfs"}
