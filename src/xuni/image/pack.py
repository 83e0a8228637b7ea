"""A directory becomes a layer: a tar file in pax format, the same bytes for the same files."""

from __future__ import annotations

import errno
import gzip
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import IO, Final

XATTR: Final = "SCHILY.xattr."


def pack(directory: str, into: IO[bytes]) -> None:
    """Write the tree as a gzip-compressed layer. overlayfs's whiteouts become .wh. entries. Sockets are left out.

    Raises OSError.
    """
    with (gzip.GzipFile(fileobj=into, mode="wb", compresslevel=6, mtime=0) as compressed,
          tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as archive):  # fmt: skip
        write(directory, archive)


def write(directory: str, archive: tarfile.TarFile, below: str = "") -> None:
    """The tree's files, named as if they were below `below`."""
    seen: dict[tuple[int, int], str] = {}
    for path, name in _walk(directory, below):
        status = os.lstat(path)
        if stat.S_ISSOCK(status.st_mode):
            continue
        parent, _, last = name.rpartition("/")
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            archive.addfile(tarfile.TarInfo(f"{parent}/.wh.{last}".lstrip("/")))
            continue
        member = _member(path, name, status)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            first = seen.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                member.type, member.linkname, member.size = tarfile.LNKTYPE, first, 0
        if member.isreg():
            with open(path, "rb") as content:
                archive.addfile(member, content)
        else:
            archive.addfile(member)
        if stat.S_ISDIR(status.st_mode) and _attribute(path, "trusted.overlay.opaque", "user.overlay.opaque") == b"y":
            archive.addfile(tarfile.TarInfo(f"{name}/.wh..wh..opq"))


def _walk(directory: str, name: str) -> Iterator[tuple[str, str]]:
    for each in sorted(os.listdir(directory)):
        path, below = f"{directory}/{each}", f"{name}/{each}".lstrip("/")
        yield path, below
        if stat.S_ISDIR(os.lstat(path).st_mode):
            yield from _walk(path, below)


def _member(path: str, name: str, status: os.stat_result) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.uid, member.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    member.mtime = int(status.st_mtime)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        member.size = status.st_size
    elif kind == stat.S_IFDIR:
        member.type = tarfile.DIRTYPE
    elif kind == stat.S_IFLNK:
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)
    elif kind == stat.S_IFIFO:
        member.type = tarfile.FIFOTYPE
    else:
        member.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
        member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    headers: dict[str, str] = {}
    if kind in (stat.S_IFREG, stat.S_IFDIR):
        for attribute in _attributes(path):
            value = os.getxattr(path, attribute, follow_symlinks=False)
            headers[XATTR + attribute] = value.decode("utf-8", "surrogateescape")
    member.pax_headers = headers
    return member


def _attributes(path: str) -> list[str]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []
    own = [each for each in names if each.startswith("user.") and not each.startswith("user.overlay.")]
    return sorted([*own, *(each for each in names if each == "security.capability")])


def _attribute(path: str, *names: str) -> bytes:
    for name in names:
        try:
            return os.getxattr(path, name, follow_symlinks=False)
        except OSError:
            pass
    return b""
