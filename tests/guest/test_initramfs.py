from __future__ import annotations

import subprocess
from importlib.resources import files

from xuni.guest import initramfs

from .test_cpio import read


def test_applets_are_links_to_busybox_once_each() -> None:
    entries = {name: (mode, content) for name, mode, content, _ in
               read(initramfs.build(b"\x7fELF", ["bin/sh", "usr/bin/env", "bin/busybox", "sbin/env"]))}
    assert entries["usr/bin/busybox"][1] == b"\x7fELF"
    assert entries["usr/bin/sh"][1] == b"busybox"
    assert entries["usr/bin/env"][1] == b"busybox"
    assert entries["sbin"][1] == b"usr/bin"
    assert entries["init"][0] & 0o111


def test_folders_come_before_what_is_in_them() -> None:
    seen: set[str] = set()
    for name, _, _, _ in read(initramfs.build(b"", ["bin/sh"], {"virtio.ko": b"m"})):
        parent = name.rpartition("/")[0]
        assert not parent or parent in seen, name
        seen.add(name)


def test_the_same_files_give_the_same_bytes() -> None:
    assert initramfs.build(b"x", ["bin/b", "bin/a"]) == initramfs.build(b"x", ["bin/a", "bin/b"])


def test_init_is_a_valid_posix_script() -> None:
    for name in ("init.sh", "profile.sh"):
        subprocess.run(["sh", "-n", str(files("xuni.guest").joinpath(name))], check=True)
