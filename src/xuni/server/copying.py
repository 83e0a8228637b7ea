"""`xuni cp`: files between host and container, as layers travel: packed into a tar stream, unpacked inside a root."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from xuni.host.linux.calls import CallError
from xuni.host.linux.kernel import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, Linux
from xuni.image import ImageError, pack, rootfs
from xuni.image.compression import TarStream
from xuni.image.content import Store
from xuni.image.extract import Extractor
from xuni.server import ContainerError, rootless
from xuni.server.kept import Containers, Record
from xuni.server.system import IDS, owner

NOBODY: Final = 65_534  # who owns what nobody in the container can be


@contextmanager
def root(record: Record) -> Iterator[int]:
    """A descriptor of its root directory: what its process sees, or what is left of it once it has ended."""
    rootless.enter()
    place = Containers().place(record.id)
    mounted = False
    path = Path(f"/proc/{record.pid}/root") if record.status == "running" else place / "rootfs"
    if record.status != "running":
        mounted = not os.path.ismount(path)
        rootfs.make(Store(), Store().find(record.image), place, owner=_base(record))
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        if mounted:
            rootfs.unmount(place)


def out(record: Record, source: str, target: Path, *, contents: bool = False) -> None:
    """CONTAINER:source to the host, or what is in it. Links in the container are looked up in the container.
    Raises ContainerError."""
    with root(record) as top:
        try:
            found = Linux().openat2(top, source.lstrip("/") or ".", os.O_PATH, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        except CallError as error:
            raise ContainerError(f"{record.name}:{source}: {error.strerror}", 1) from None
        try:
            name = os.path.basename(os.path.normpath("/" + source)) or record.name
            into, name = (str(target), "") if contents and target.is_dir() else _place(target, name)
            base = _base(record)
            copy(found, name, into, lambda each: each - base if base <= each < base + IDS else each)
        finally:
            os.close(found)


def into(record: Record, source: Path, target: str, *, contents: bool = False) -> None:
    """From the host to CONTAINER:target; with `contents` what is in a directory. Raises ContainerError."""
    try:
        found = os.open(source, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise ContainerError(f"{source}: {error.strerror}", 1) from None
    with root(record) as top:
        name = os.path.basename(os.path.abspath(source))
        try:
            at = _directory(top, target)
            name = "" if contents and os.path.isdir(source) else name
        except CallError:
            parent, _, name = os.path.normpath("/" + target).rpartition("/")
            try:
                at = _directory(top, parent)
            except CallError as error:
                raise ContainerError(f"{record.name}:{parent}: {error.strerror}", 1) from None
        try:
            base = _base(record)
            copy(found, name, f"/proc/self/fd/{at}", lambda each: base + min(each, NOBODY) if base else each)
        finally:
            os.close(at)
            os.close(found)


def _directory(top: int, path: str) -> int:
    flags, resolve = os.O_PATH | os.O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    return Linux().openat2(top, path.lstrip("/") or ".", flags, 0, resolve)


def _place(target: Path, name: str) -> tuple[str, str]:
    if target.is_dir():
        return str(target), name
    if not target.parent.is_dir():
        raise ContainerError(f"{target.parent} is not a directory of the host", 1)
    return str(target.parent), target.name


def _base(record: Record) -> int:
    return owner(record.request, record.id)


class _Archive(tarfile.TarFile):
    """Its members' owners are those of the other side."""

    moved: Callable[[int], int]

    def addfile(self, tarinfo: tarfile.TarInfo, fileobj: Any = None) -> None:
        tarinfo.uid, tarinfo.gid = self.moved(tarinfo.uid), self.moved(tarinfo.gid)
        super().addfile(tarinfo, fileobj)


def copy(source: int, name: str, directory: str, moved: Callable[[int], int]) -> None:
    """What the descriptor names becomes `name` in the directory, or what is in it if that is empty; `moved` says whose an id is
    there."""
    path = f"/proc/self/fd/{source}"
    try:
        _copy(path, name, directory, moved)
    except (OSError, tarfile.TarError) as error:
        raise ContainerError(f"{name}: {error}", 1) from None


def _copy(path: str, name: str, directory: str, moved: Callable[[int], int]) -> None:
    with tempfile.TemporaryFile() as spool:
        with _Archive(fileobj=spool, mode="w", format=tarfile.PAX_FORMAT) as archive:
            archive.moved = moved
            if not name:  # what is in it
                pack.write(path, archive)
            elif stat.S_ISDIR(os.stat(path).st_mode):
                member = tarfile.TarInfo(name)
                member.type, member.mode = tarfile.DIRTYPE, stat.S_IMODE(os.stat(path).st_mode)
                archive.addfile(member)
                pack.write(path, archive, name)
            elif stat.S_ISREG(os.stat(path).st_mode):
                status = os.stat(path)
                member = tarfile.TarInfo(name)
                member.mode, member.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
                pack.add_file(archive, member, path)
            else:  # opening a device does something already, and a named pipe never ends
                raise ContainerError(f"{name} is neither a file nor a directory", 1)
        spool.seek(0)
        extractor = Extractor(directory, stacked=False, keeping=True)
        try:
            extractor.layer(TarStream(spool))
        except ImageError as error:
            raise ContainerError(str(error), 1) from None
        finally:
            extractor.close()
