"""Debian packages through the host's own apt configuration, as any user: resolve a name, download, take files out.

Nothing is installed and nothing of the system's is changed. apt verifies each package against its signed lists. When
the system's lists lack a package (a fresh container has none, and old ones name files that are gone), a second set is
read into xuni's cache; that needs no root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xuni.host import cache
from xuni.host.progress import Progress

LIST_AGE = 24 * 3600.0  # seconds after which our own lists are read again
MAX_FILE = 1 << 30  # bytes: no file that we take out of a package is larger

MAX_META = 4  # meta-packages followed in a row


class AptError(Exception):
    """apt could not do what was asked; the message says what, why and what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """One version of one binary package. `size` is that of the .deb, in bytes."""

    name: str
    version: str
    size: int
    sha256: str
    depends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lists:
    """A set of package lists: apt options that select it, and what to call it."""

    options: tuple[str, ...]

    def run(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        command = [tool, *self.options, *arguments]
        done = subprocess.run(command, cwd=cwd, env=_environment(), text=True, capture_output=True,
                              stdin=subprocess.DEVNULL, errors="replace", check=False)
        if done.returncode:
            raise AptError(f"`{tool} {' '.join(arguments)}` failed: {_last_lines(done.stderr)}")
        return done.stdout


SYSTEM = Lists(())


def available() -> bool:
    """Whether this host has apt at all."""
    return all(shutil.which(tool) for tool in ("apt-get", "apt-cache", "dpkg-deb"))


def obtain(names: Sequence[str], into: Path,
           follow: Callable[[str], bool] = lambda name: False) -> tuple[Package, Path]:
    """Download the newest version of the first of `names` that the host's sources offer; the path is the .deb's.

    A package with a dependency that `follow` accepts stands for that dependency (a meta-package for the real one).
    Raises `AptError` when no source has any of them, or none can deliver.
    """
    if not available():
        raise AptError("guests are made of Debian packages and this host has no apt-get; on Debian or Ubuntu it is "
                       "there, elsewhere boot a kernel of your own: xuni vm run --kernel FILE")
    failure = AptError(f"no package source of this host has {' or '.join(names)}; "
                       "`apt-cache search linux-image` lists the kernels that it has")
    for lists in _sets():
        try:
            if package := _resolve(lists, names, follow):
                return package, _download(lists, package, into)
        except AptError as error:
            failure = error
    raise failure


def _resolve(lists: Lists, names: Sequence[str], follow: Callable[[str], bool]) -> Package | None:
    for name in names:
        package = _show(lists, name)
        for _ in range(MAX_META):
            real = next(filter(follow, package.depends), None) if package else None
            if real is None:
                break
            package = _show(lists, real)
        if package:
            return package
    return None


def _download(lists: Lists, package: Package, into: Path) -> Path:
    read_end, write_end = os.pipe()
    command = ["apt-get", *lists.options, "-qq", "-o", f"APT::Status-Fd={write_end}",
               "-o", "APT::Sandbox::User=root",  # _apt cannot write into a private folder
               "download", f"{package.name}={package.version}"]
    with open(read_end, encoding="utf-8", errors="replace") as status:
        try:
            process = subprocess.Popen(command, cwd=into, env=_environment(), stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=[write_end])
        finally:
            os.close(write_end)
        with process, Progress(f"fetching {package.name} {package.version}") as progress:
            assert process.stderr is not None
            try:
                for line in status:  # "dlstatus:1:37.5:Retrieving file 1 of 1 (2s remaining)"
                    fields = line.split(":")
                    if fields[0] == "dlstatus" and len(fields) > 2:
                        progress(_fraction(fields[2]), f"of {package.size / 1e6:.0f} MB")
                message = process.stderr.read().decode(errors="replace")
            except BaseException:
                process.kill()
                raise
    found = sorted(into.glob(f"{package.name}_*.deb"))
    if process.returncode or not found:
        raise AptError(f"cannot download {package.name} {package.version}: {_last_lines(message)}")
    return found[0]


@contextmanager
def files(deb: Path) -> Iterator[Iterator[tuple[PurePosixPath, Callable[[], bytes]]]]:
    """The regular files of a package in order: a path relative to the root, and a function that reads it."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                yield _members(archive)
        except tarfile.TarError as error:
            raise AptError(f"{deb.name} is not a package that dpkg-deb can read: {error}") from error
        finally:
            process.kill()


def _members(archive: tarfile.TarFile) -> Iterator[tuple[PurePosixPath, Callable[[], bytes]]]:
    for member in archive:
        if not member.isreg():
            continue

        def read(member: tarfile.TarInfo = member) -> bytes:
            if member.size > MAX_FILE:
                raise AptError(f"{member.name} in the package is too large: {member.size} bytes")
            content = archive.extractfile(member)
            assert content is not None  # it is a regular file
            return content.read()

        yield PurePosixPath(member.name.removeprefix("./")), read


def _sets() -> Iterator[Lists]:
    """The system's lists, then our own: kept for a day, then read again once."""
    yield SYSTEM
    yield _own_lists()


def _own_lists() -> Lists:
    folder = cache.root() / "apt"
    lists = Lists((
        "-o", f"Dir::State::Lists={folder}/lists",
        "-o", f"Dir::Cache={folder}/cache",
        "-o", "APT::Sandbox::User=root",
    ))
    stamp = folder / "read"
    with cache.only_one(folder):
        if not _fresh(stamp):
            for part in ("lists/partial", "cache/archives/partial"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            print("reading the package lists of this host's sources ...", file=sys.stderr, flush=True)
            try:
                lists.run("apt-get", "-qq", "update")
            except AptError as error:
                raise AptError(f"cannot read the package lists of this host's sources; {error}") from error
            stamp.touch()
    return lists


def _fresh(stamp: Path) -> bool:
    try:
        return time.time() - stamp.stat().st_mtime < LIST_AGE
    except FileNotFoundError:
        return False


def _show(lists: Lists, name: str) -> Package | None:
    """The candidate version of a package: what `apt-get install` would take."""
    try:
        text = lists.run("apt-cache", "--no-all-versions", "show", f"{name}")
    except AptError:
        return None
    fields = dict(_fields(text.split("\n\n")[0].splitlines()))
    if fields.get("Package") != name or not fields.get("Size", "").isdecimal():
        return None
    return Package(name, fields["Version"], int(fields["Size"]), fields.get("SHA256", ""),
                   tuple(_alternatives(fields.get("Depends", ""))))


def _fields(stanza: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in stanza:
        key, colon, value = line.partition(": ")
        if colon and not line.startswith(" "):
            yield key, value


def _alternatives(depends: str) -> Iterator[str]:
    """The names in a Depends field (Debian policy, section 7.1), the first of each `a | b`."""
    for clause in depends.split(","):
        name = clause.split("|")[0].split("(")[0].strip()
        if name:
            yield name.split(":")[0]


def _fraction(text: str) -> float | None:
    try:
        return float(text) / 100
    except ValueError:
        return None


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _last_lines(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("W: Download is performed")]
    return "; ".join(lines[-3:]) or "no reason given"
