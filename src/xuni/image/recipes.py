"""Images that are made here of Debian packages, through the host's own apt configuration.

To add one: a function, its line in RECIPES, its row in README.md and README.zh-CN.md, tests/image/test_recipes.py.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from xuni.host import apt
from xuni.image import ImageError, archive
from xuni.image.content import Store

PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SOURCES: Final = Path("/etc/apt")


@dataclass(frozen=True, slots=True)
class Recipe:
    about: str
    build: Callable[[Store, str, tuple[str, ...]], None]


def build(store: Store, recipe: str, name: str | None, packages: tuple[str, ...] = ()) -> str:
    """Make the image and name it. `packages` are added to Debian's. Raises ImageError, OSError."""
    if recipe not in RECIPES:
        raise ImageError(f"there is no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    wanted = name or recipe
    try:
        RECIPES[recipe].build(store, wanted, packages)
    except apt.AptError as error:
        raise ImageError(f"cannot build {recipe}: {error}") from error
    return wanted


def busybox(store: Store, name: str, packages: tuple[str, ...]) -> None:
    """One static program under all its names."""
    if packages:
        raise ImageError("packages can be added to debian only; busybox has no package manager")
    with tempfile.TemporaryDirectory(prefix="xuni-image-") as scratch:
        program = Path(scratch) / "busybox"
        _, deb = apt.obtain(("busybox-static",), Path(scratch))
        with apt.files(deb) as members:
            for path, read in members:
                if path.match("bin/busybox"):
                    program.write_bytes(read())
                    break
            else:
                raise ImageError(f"the package {deb.name} has no bin/busybox")
        program.chmod(0o755)
        applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
        with tempfile.TemporaryFile() as file:
            _busybox_tree(file, program.read_bytes(), applets)
            file.seek(0)
            config: dict[str, Any] = {"Env": [PATH], "Cmd": ["sh"]}
            archive.from_tar(store, file, name, config)


def _busybox_tree(file: Any, program: bytes, applets: list[str]) -> None:
    """The same bytes each time, whoever builds."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tree:

        def add(path: str, kind: bytes, mode: int, content: bytes = b"", target: str = "") -> None:
            member = tarfile.TarInfo(path)
            member.type, member.mode, member.size, member.linkname = kind, mode, len(content), target
            tree.addfile(member, io.BytesIO(content))

        for folder in ("bin dev etc home proc root run sys usr usr/bin usr/sbin var var/tmp tmp").split():
            add(folder, tarfile.DIRTYPE, 0o1777 if folder.endswith("tmp") else 0o700 if folder == "root" else 0o755)
        add("sbin", tarfile.SYMTYPE, 0o777, target="bin")
        add("bin/busybox", tarfile.REGTYPE, 0o755, program)
        for applet in sorted(set(applets) - {"busybox"}):
            add(f"bin/{applet}", tarfile.LNKTYPE, 0o755, target="bin/busybox")
        add("usr/bin/env", tarfile.LNKTYPE, 0o755, target="bin/busybox")
        for path, text in (("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
                           ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
                           ("etc/nsswitch.conf", "hosts: files dns\n")):  # fmt: skip
            add(path, tarfile.REGTYPE, 0o644, text.encode())


def debian(store: Store, name: str, packages: tuple[str, ...]) -> None:
    """A minimal Debian, of the host's own suite and sources."""
    program = shutil.which("mmdebstrap")
    if program is None:
        raise ImageError("building debian takes mmdebstrap, which is not installed; `apt-get install mmdebstrap`")
    suite, sources = _suite()
    with tempfile.TemporaryDirectory(prefix="xuni-image-") as scratch:
        tree = Path(scratch) / "debian.tar"
        command = [program, "--variant=minbase", "--format=tar", "--quiet", *(f"--include={each}" for each in packages),
                   "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
                   "--dpkgopt=path-include=/usr/share/doc/*/copyright", suite, str(tree), *sources]  # fmt: skip
        done = subprocess.run(command, stdin=subprocess.DEVNULL, text=True, capture_output=True, check=False, errors="replace")
        if done.returncode or not tree.is_file():
            said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
            raise ImageError(f"mmdebstrap failed: {' '.join(said[-3:]) or 'it gave no reason'}")
        with open(tree, "rb") as file:
            archive.from_tar(store, file, name, {"Env": [PATH], "Cmd": ["bash"]})


def _suite() -> tuple[str, list[str]]:
    """The host's suite, and the files of its sources that speak of it: others are for programs of other makers."""
    suite = re.search(r"^VERSION_CODENAME=\"?([a-z]+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    if suite is None:
        raise ImageError("building debian takes a host whose /etc/os-release has a VERSION_CODENAME, as Debian's has")
    whole = re.compile(rf"(?<![\w-]){suite[1]}(?![\w])")
    files = [SOURCES / "sources.list", *sorted((SOURCES / "sources.list.d").glob("*.list")),
             *sorted((SOURCES / "sources.list.d").glob("*.sources"))]  # fmt: skip
    found = [str(file) for file in files if file.is_file() and whole.search(file.read_text(errors="replace"))]
    if not found:
        raise ImageError(f"no file of {SOURCES} names sources of {suite[1]}, the host's suite")
    return suite[1], found


RECIPES: Final[Mapping[str, Recipe]] = {
    "busybox": Recipe("one static program under 300 names, of the package busybox-static", busybox),
    "debian": Recipe("a minimal Debian of the host's suite, by mmdebstrap", debian),
}
