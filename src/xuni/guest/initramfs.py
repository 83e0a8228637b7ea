"""The root file system that xuni gives a Linux kernel: BusyBox, an init of ours, nothing else.

It is not compressed: a guest copies faster than it inflates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from xuni.guest.cpio import Archive

FOLDERS = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "usr/lib", "usr/lib/modules",
           "usr/lib/modules/load", "var", "xuni")
MERGED = {"bin": "usr/bin", "sbin": "usr/bin", "lib": "usr/lib", "usr/sbin": "bin"}  # as Debian has it
PASSWD = b"root:x:0:0:root:/root:/bin/sh\n"
HOSTS = b"127.0.0.1\tlocalhost xuni\n"


def build(busybox: bytes, applets: Iterable[str], modules: Mapping[str, bytes] | None = None) -> bytes:
    """The initramfs as a cpio archive.

    `applets` are the paths that `busybox --list-full` prints. `modules` are kernel modules by file name; init inserts
    them in the order of their names.
    """
    archive = Archive()
    for folder in FOLDERS:
        archive.folder(folder, 0o1777 if folder == "tmp" else 0o755)
    for path, target in MERGED.items():
        archive.link(path, target)
    archive.device("dev/console", 5, 1)  # the kernel opens it for init, before init can mount /dev
    archive.device("dev/null", 1, 3, 0o666)
    archive.file("usr/bin/busybox", busybox, 0o755)
    for name in sorted({PurePosixPath(applet).name for applet in applets} - {"busybox", ""}):
        archive.link(f"usr/bin/{name}", "busybox")
    archive.file("init", _resource("init.sh"), 0o755)
    archive.file("etc/profile", _resource("profile.sh"))
    archive.file("etc/passwd", PASSWD)
    archive.file("etc/group", b"root:x:0:\n")
    archive.file("etc/hosts", HOSTS)
    for name, content in (modules or {}).items():
        archive.file(f"usr/lib/modules/load/{PurePosixPath(name).name}", content)
    return archive.to_bytes()


def recipe() -> str:
    """Changes whenever `build` would make something else of the same files; a kept initramfs remembers it."""
    digest = hashlib.sha256()
    for name in ("init.sh", "profile.sh", "initramfs.py", "cpio.py"):
        digest.update(_resource(name))
    return digest.hexdigest()[:16]


def _resource(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()
