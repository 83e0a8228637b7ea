"""The guests that xuni can make by itself, and where it keeps them: `guests/NAME` in the cache folder.

A guest is a kernel, perhaps an initrd, and a command line, made of packages that the host's own sources deliver. What
is needed only to fetch one is imported only then: a guest that is kept should start fast.

To add one: a line in `CATALOGUE`, with a recipe that fills a folder; and its row in README.md and README.zh-CN.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xuni.guest import initramfs
from xuni.host import cache
from xuni.host.progress import Progress

KERNEL_PACKAGE = re.compile(r"linux-image-[a-z0-9][a-z0-9+.~-]*\Z")
LINUX_CONSOLE = "console=ttyS0 panic=-1"  # a panic resets at once, so that the machine ends


class GuestError(Exception):
    """A guest cannot be had; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest on this disk. `initramfs` names the recipe of its initrd, if that is ours: it takes sessions then."""

    name: str
    kernel: Path
    initrd: Path | None
    append: str
    packages: Mapping[str, str]
    initramfs: str | None = None

    @property
    def takes_commands(self) -> bool:
        return self.initramfs is not None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make a guest. `fill` puts `kernel`, perhaps `initrd`, into a folder and returns the packages used."""

    about: str
    append: str
    fill: Callable[[Path], Mapping[str, str]]


def recipe(name: str) -> Recipe:
    """Raises `GuestError` for a name that is neither in the catalogue nor that of a kernel package."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    if KERNEL_PACKAGE.match(name):
        return _linux(f"the kernel of {name}", name)
    raise GuestError(f"there is no guest named {name!r}; there are {', '.join(CATALOGUE)}, and kernels by the name of "
                     "their Debian package (linux-image-...)")


def folder(name: str) -> Path:
    return cache.root() / "guests" / name


def kept() -> list[Guest]:
    """The guests on this disk, by name."""
    try:
        names = sorted(entry.name for entry in (cache.root() / "guests").iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    return [guest for name in names if (guest := find(name))]


def find(name: str) -> Guest | None:
    """The guest if it is on this disk, whole."""
    if name not in CATALOGUE and not KERNEL_PACKAGE.match(name):
        return None
    place = folder(name)
    try:
        about: dict[str, Any] = json.loads((place / "about.json").read_text())
        append, packages, made_by = about["append"], dict(about["packages"]), about["initramfs"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    kernel, initrd = place / "kernel", place / "initrd"
    if not kernel.is_file():
        return None
    return Guest(name, kernel, initrd if initrd.is_file() else None, append, packages, made_by)


def ensure(name: str) -> Guest:
    """The guest from this disk, or fetched now. Raises `GuestError`, `OSError`."""
    made = recipe(name)
    guest = find(name)
    if guest is None or guest.append != made.append:
        return fetch(name)
    if guest.initramfs not in (None, initramfs.recipe()):
        return _rebuild(guest)
    return guest


def fetch(name: str) -> Guest:
    """Make the guest from the newest packages, whether or not it is on this disk. Raises `GuestError`, `OSError`."""
    from xuni.host import apt

    made = recipe(name)
    place = folder(name)
    with cache.only_one(place):
        try:
            with cache.filling(place) as fresh:
                packages = made.fill(fresh)
                _describe(fresh, made.append, packages)
        except apt.AptError as error:
            raise GuestError(f"cannot make the guest {name}: {error}") from error
    guest = find(name)
    assert guest is not None  # it has just been filled
    return guest


def _describe(place: Path, append: str, packages: Mapping[str, str]) -> None:
    ours = initramfs.recipe() if (place / "busybox").exists() else None
    about = {"append": append, "packages": dict(packages), "initramfs": ours}
    cache.replace(place / "about.json", json.dumps(about, indent=2).encode() + b"\n")


def _rebuild(guest: Guest) -> Guest:
    """Make the initramfs again after a change of its recipe; nothing needs to be fetched."""
    place = folder(guest.name)
    with cache.only_one(place):
        _build_initramfs(place)
        _describe(place, guest.append, guest.packages)
    return replace(guest, initramfs=initramfs.recipe())


def _build_initramfs(place: Path) -> None:
    import subprocess

    busybox = place / "busybox"
    applets = subprocess.run([busybox, "--list-full"], capture_output=True, text=True, check=True).stdout.split()
    cache.replace(place / "initrd", initramfs.build(busybox.read_bytes(), applets))


def _linux(about: str, *packages: str) -> Recipe:
    """A kernel package (the first one there is) with our initramfs."""

    def fill(into: Path) -> dict[str, str]:
        modules = {"kernel/drivers/block/loop.ko": "loop.ko"}  # the only block devices that a guest without disks can have
        kernel = _take(into, packages, {"boot/vmlinuz-*": "kernel"}, _is_kernel, modules)
        busybox = _take(into, ("busybox-static",), {"bin/busybox": "busybox", "usr/bin/busybox": "busybox"})
        (into / "busybox").chmod(0o755)
        _build_initramfs(into)
        return {**kernel, **busybox}

    return Recipe(about, LINUX_CONSOLE, fill)


def _is_kernel(package: str) -> bool:
    return KERNEL_PACKAGE.match(package) is not None


def _memtest(into: Path) -> dict[str, str]:
    return _take(into, ("memtest86+",), {"boot/memtest86+x64.bin": "kernel", "boot/mt86+x64": "kernel"})


def _krun(into: Path) -> dict[str, str]:
    import subprocess
    from zipfile import BadZipFile, ZipFile

    from xuni.guest import libkrunfw

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "--only-binary=:all:",
               "--disable-pip-version-check", "--dest", str(into), "microsandbox"]
    with (Progress("fetching microsandbox (45 MB), which holds the kernel") as progress,
          subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as pip):
        try:
            while True:
                try:
                    _, errors = pip.communicate(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    progress()
        except BaseException:
            pip.kill()
            raise
    wheel = next(into.glob("microsandbox-*.whl"), None)
    if pip.returncode or wheel is None:
        reason = errors.decode(errors="replace").strip().splitlines()[-1:] or ["pip gave no reason"]
        raise GuestError(f"cannot make the guest krun: pip download microsandbox failed: {reason[0]}")
    library = into / "libkrunfw.so"
    try:
        with ZipFile(wheel) as archive:
            inside = next(name for name in archive.namelist() if "/libkrunfw.so" in name)
            library.write_bytes(archive.read(inside))
        (into / "kernel").write_bytes(libkrunfw.elf(library))
    except (BadZipFile, StopIteration, ValueError) as error:
        raise GuestError(f"cannot make the guest krun: {wheel.name} holds no kernel that we know: {error}") from error
    version = wheel.name.split("-")[1]
    wheel.unlink()
    library.unlink()
    return {"microsandbox": version}


def _take(into: Path, packages: tuple[str, ...], wanted: Mapping[str, str],
          follow: Callable[[str], bool] = lambda name: False, also: Mapping[str, str] | None = None) -> dict[str, str]:
    """Fetch a package and keep its first file whose path matches a pattern of `wanted`, under the name given there; those of
    `also` if they come after it."""
    from xuni.host import apt

    package, deb = apt.obtain(packages, into, follow)
    found = False
    more = dict(also or {})
    with apt.files(deb) as members:
        for path, read in members:
            searched = more if found else wanted
            pattern = next((pattern for pattern in searched if path.match(pattern)), None)
            if pattern:
                (into / searched[pattern]).write_bytes(read())
                more.pop(pattern, None)
                found = True
            if found and not more:
                break
    deb.unlink()
    if not found:
        raise GuestError(f"the package {package.name} {package.version} has no {' or '.join(wanted)}")
    return {package.name: package.version}


CATALOGUE: Mapping[str, Recipe] = {
    # The second name is Ubuntu's.
    "debian": _linux("Debian's cloud kernel with a BusyBox shell", "linux-image-cloud-amd64", "linux-image-virtual"),
    "memtest86+": Recipe("the memory tester, on the serial console", "console=ttyS0,115200", _memtest),
    "krun": Recipe("the small kernel of libkrun; mute until there is virtio", "console=hvc0 panic=-1", _krun),
}
