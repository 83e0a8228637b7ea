"""A directory becomes a layer: a tar file in pax format, the same bytes for the same files."""

from __future__ import annotations

import errno
import gzip
import os
import stat
import tarfile
from typing import IO, Final

XATTR: Final = "SCHILY.xattr."
DEEPEST: Final = 256  # directories, as many as an image may have (extract.py)


def pack(directory: str, into: IO[bytes]) -> None:
    """Write the tree as a gzip-compressed layer. overlayfs's whiteouts become .wh. entries. Sockets are left out.

    Raises OSError.
    """
    with (gzip.GzipFile(fileobj=into, mode="wb", compresslevel=6, mtime=0) as compressed,
          tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as archive):  # fmt: skip
        write(directory, archive)


def write(directory: str, archive: tarfile.TarFile, below: str = "") -> None:
    """The tree's files, named as if they were below `below`.

    Whoever else may change the tree meanwhile, as a container that runs may, leads nowhere out of it: each entry is looked at
    and read through one descriptor, and nothing but files and directories is opened.
    """
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _write(top, archive, below, {}, DEEPEST)
    finally:
        os.close(top)


def _write(directory: int, archive: tarfile.TarFile, below: str, seen: dict[tuple[int, int], str], deeper: int) -> None:
    for last in sorted(os.listdir(directory)):
        name = f"{below}/{last}".lstrip("/")
        try:
            place = os.open(last, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            continue  # gone meanwhile
        try:
            _entry(place, archive, name, seen, deeper)
        finally:
            os.close(place)


def _entry(place: int, archive: tarfile.TarFile, name: str, seen: dict[tuple[int, int], str], deeper: int) -> None:
    status, path = os.fstat(place), f"/proc/self/fd/{place}"
    if stat.S_ISSOCK(status.st_mode):
        return
    parent, _, last = name.rpartition("/")
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        archive.addfile(tarfile.TarInfo(f"{parent}/.wh.{last}".lstrip("/")))
        return
    member = _member(place, path, name, status)
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        first = seen.setdefault((status.st_dev, status.st_ino), name)
        if first != name:
            member.type, member.linkname, member.size = tarfile.LNKTYPE, first, 0
    if member.isreg():
        add_file(archive, member, path)
        return
    archive.addfile(member)
    if not stat.S_ISDIR(status.st_mode):
        return
    if _attribute(path, "trusted.overlay.opaque", "user.overlay.opaque") == b"y":
        archive.addfile(tarfile.TarInfo(f"{name}/.wh..wh..opq"))
    if not deeper:
        raise OSError(errno.ENAMETOOLONG, f"directories are nested more than {DEEPEST} deep", name)
    inner = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _write(inner, archive, name, seen, deeper - 1)
    finally:
        os.close(inner)


def add_file(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    """A regular file that may grow or shrink while it is read. Raises OSError if it shrinks."""
    with open(path, "rb") as content:
        member.size = os.fstat(content.fileno()).st_size
        archive.addfile(member, content)


def _member(place: int, path: str, name: str, status: os.stat_result) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.uid, member.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    member.mtime = int(status.st_mtime)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        member.size = status.st_size
    elif kind == stat.S_IFDIR:
        member.type = tarfile.DIRTYPE
    elif kind == stat.S_IFLNK:
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink("", dir_fd=place)
    elif kind == stat.S_IFIFO:
        member.type = tarfile.FIFOTYPE
    else:
        member.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
        member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    headers: dict[str, str] = {}
    if kind in (stat.S_IFREG, stat.S_IFDIR):
        for attribute in _attributes(path):
            headers[XATTR + attribute] = os.getxattr(path, attribute).decode("utf-8", "surrogateescape")
    member.pax_headers = headers
    return member


def _attributes(path: str) -> list[str]:
    try:
        names = os.listxattr(path)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []
    own = [each for each in names if each.startswith("user.") and not each.startswith("user.overlay.")]
    return sorted([*own, *(each for each in names if each == "security.capability")])


def _attribute(path: str, *names: str) -> bytes:
    for name in names:
        try:
            return os.getxattr(path, name)
        except OSError:
            pass
    return b""
