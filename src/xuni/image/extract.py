"""A layer's tar file becomes files below a directory (layer.md), whatever the tar file was made to do.

Nothing is named by a path of the host: each entry's directory is opened inside the root (openat2 with RESOLVE_IN_ROOT, so
no link leads out, whoever races with us), and the entry is made by its last name in it. What belongs to overlayfs
itself does not come from an image.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from xuni.host.linux import userns
from xuni.host.linux.calls import CallError
from xuni.host.linux.kernel import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, Linux
from xuni.image import ImageError
from xuni.image.compression import TarStream

WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
PIECE: Final = 1 << 20
MAX_ENTRIES: Final = 4_000_000
MAX_DEPTH: Final = 256  # directories; a tree that is deeper can be made by tar, and then not be removed by most tools
# What the kernel says of names that contradict each other; all else is the host's trouble.
IMAGES_FAULT: Final = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EXDEV,
                       errno.EINVAL, errno.EMLINK)
XATTR: Final = "SCHILY.xattr."


@dataclass(slots=True)
class Report:
    """What was not done as the archive says, and why that is fine."""

    entries: int = 0
    devices_left_out: list[str] = field(default_factory=list)
    owners_left_out: bool = False


class Extractor:
    """Unpacks into `root`, a directory of ours.

    `stacked`: whiteouts become overlayfs's, for a layer that lies over others; else they delete what is there, from
    earlier calls on the same root. `privileged`: owners, device nodes and capabilities are made; without, they are left out.
    `keeping`: no layer, but files that go where somebody else has files: names mean themselves, and no directory gives way.
    """

    def __init__(self, root: str, *, stacked: bool, privileged: bool | None = None, keeping: bool = False) -> None:
        self.kernel = Linux()
        self.root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.stacked, self.keeping = stacked, keeping
        self.privileged = os.geteuid() == 0 if privileged is None else privileged
        self.report = Report()
        self._confined = userns.inside()
        self._directories: dict[str, tuple[int, float]] = {}  # mode and time, set last: both change as files come in
        self._new: set[str] = set()  # what this layer made; its whiteouts speak of the layers below only
        self._parent: tuple[str, int] | None = None

    def close(self) -> None:
        self._forget_parent()
        os.close(self.root)

    def layer(self, stream: TarStream) -> Report:
        """Unpack one. Raises ImageError for what no honest layer has, OSError; half a layer is left then."""
        self._directories, self._new = {}, set()
        try:
            with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[call-overload]
                for member in _members(archive):
                    self.report.entries += 1
                    if self.report.entries > MAX_ENTRIES:
                        raise ImageError(f"the layer has more than {MAX_ENTRIES} entries")
                    try:
                        self._entry(archive, member)
                    except OSError as error:
                        if error.errno not in IMAGES_FAULT:
                            raise OSError(error.errno, error.strerror, member.name) from error
                        raise ImageError(f"{member.name!r}: {error}") from error
        except tarfile.TarError as error:
            raise ImageError(f"not a tar file, or a damaged one: {error}") from None
        self._forget_parent()
        for name in sorted(self._directories, reverse=True):  # children first
            mode, time = self._directories[name]
            with self._directory(name) as place:
                os.fchmod(place, mode)
                os.utime(place, (time, time))
        return self.report

    # ---- one entry

    def _entry(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = _inside(member.name)
        parent, _, last = name.rpartition("/")
        if last.startswith(WHITEOUT) and not self.keeping:
            self._whiteout(parent, last)
            return
        if not name:
            if member.isdir():
                self._attributes(member, self.root)
                self._directories[""] = (member.mode & 0o7777, float(member.mtime))
            return
        here = self._in(parent)
        if member.isdir():
            self._make_directory(member, here, name, last)
            return
        self._clear(here, last)
        self._note(name)
        if member.isreg():
            self._file(archive, member, here, last)
        elif member.issym():
            if not member.linkname or "\0" in member.linkname or len(member.linkname) > 4095:
                raise ImageError(f"{member.name!r} is a symbolic link to nowhere")
            os.symlink(member.linkname, last, dir_fd=here)
            self._owner_and_time(member, here, last)
        elif member.islnk():
            self._hard_link(member, here, last)
        elif member.isfifo():
            os.mkfifo(last, 0o600, dir_fd=here)
            self._owner_and_time(member, here, last, member.mode)
        elif member.ischr() or member.isblk():
            self._device(member, here, last)
        else:
            raise ImageError(f"{member.name!r} is of a type that layers do not have ({member.type!r})")

    def _make_directory(self, member: tarfile.TarInfo, here: int, name: str, last: str) -> None:
        try:
            os.mkdir(last, 0o700, dir_fd=here)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(last, dir_fd=here).st_mode):
                if self.keeping:
                    raise ImageError(f"{name!r} is there already, and is no directory: it would be lost") from None
                os.unlink(last, dir_fd=here)
                os.mkdir(last, 0o700, dir_fd=here)
        place = os.open(last, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        try:
            self._attributes(member, place)
        finally:
            os.close(place)
        self._note(name)
        self._directories[name] = (member.mode & 0o7777, float(member.mtime))

    def _file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, here: int, last: str) -> None:
        descriptor = os.open(last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=here)
        try:
            content = archive.extractfile(member)
            assert content is not None
            for offset, size in _pieces(member):
                content.seek(offset)
                os.lseek(descriptor, offset, os.SEEK_SET)
                while size:
                    piece = content.read(min(size, PIECE))
                    if not piece:
                        raise ImageError(f"{member.name!r}: the archive ends in the middle of it")
                    size -= len(piece)
                    _write(descriptor, piece)
            os.ftruncate(descriptor, member.size)  # a hole at the end
            self._attributes(member, descriptor)
            os.fchmod(descriptor, member.mode & 0o7777)  # after the owner, whose change clears set-user-id
            os.utime(descriptor, (float(member.mtime), float(member.mtime)))
        finally:
            os.close(descriptor)

    def _hard_link(self, member: tarfile.TarInfo, here: int, last: str) -> None:
        """To a file of this layer or, on the same root, of one before; its directory is looked up in the root too."""
        source = _inside(member.linkname)
        parent, _, name = source.rpartition("/")
        if not name:
            raise ImageError(f"{member.name!r} is a hard link to the root directory")
        with self._directory(parent) as there:
            os.link(name, last, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)

    def _device(self, member: tarfile.TarInfo, here: int, last: str) -> None:
        if member.ischr() and member.devmajor == member.devminor == 0:
            raise ImageError(f"{member.name!r} is character device 0:0, overlayfs's deletion; layers say .wh.NAME")
        if not self.privileged:
            self.report.devices_left_out.append(member.name)
            return
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        try:
            os.mknod(last, kind | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=here)
        except PermissionError:
            self.report.devices_left_out.append(member.name)  # root of a user namespace only
            return
        self._owner_and_time(member, here, last, member.mode)

    # ---- whiteouts

    def _whiteout(self, parent: str, last: str) -> None:
        if last == OPAQUE:
            if self.stacked:
                with self._made(parent) as place:
                    os.setxattr(place, self._overlay("opaque"), b"y")
            else:
                self._empty(parent)
            return
        if last.startswith(WHITEOUT + WHITEOUT):
            return  # aufs's own books, in old images
        name = last.removeprefix(WHITEOUT)
        if name in ("", ".", ".."):
            raise ImageError(f"{last!r} deletes nothing that has a name")
        full = f"{parent}/{name}".lstrip("/")
        if full in self._new:
            return
        if self.stacked:
            here = self._in(parent)
            self._clear(here, name)
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=here)  # anyone may make this one
            return
        try:
            with self._directory(parent) as place:
                self._clear(place, name)
        except CallError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise

    def _empty(self, name: str) -> None:
        """Delete what earlier layers put there."""
        try:
            with self._directory(name) as place:
                for each in os.listdir(place):
                    below = f"{name}/{each}".lstrip("/")
                    if below not in self._new:
                        self._clear(place, each)
                    elif stat.S_ISDIR(os.lstat(each, dir_fd=place).st_mode):
                        self._empty(below)
        except CallError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise

    def _note(self, name: str) -> None:
        """This layer made it: it, and the directories it is in, are not what the layer's whiteouts mean."""
        while name and name not in self._new:
            self._new.add(name)
            name = name.rpartition("/")[0]

    def _overlay(self, name: str) -> str:
        return f"{'trusted' if os.geteuid() == 0 and not self._confined else 'user'}.overlay.{name}"

    # ---- attributes

    def _attributes(self, member: tarfile.TarInfo, descriptor: int) -> None:
        if self.privileged:
            self._own(member, lambda: os.fchown(descriptor, member.uid, member.gid))
        else:
            self.report.owners_left_out |= (member.uid, member.gid) != (os.geteuid(), os.getegid())
        for key, value in member.pax_headers.items():
            if not key.startswith(XATTR):
                continue
            name = key.removeprefix(XATTR)
            # overlayfs's own would redirect lookups to other directories; labels of the build host mean nothing here.
            if not (name.startswith("user.") and not name.startswith("user.overlay.") or name == "security.capability"):
                continue
            try:
                os.setxattr(descriptor, name, value.encode("utf-8", "surrogateescape"))
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
                    raise

    def _own(self, member: tarfile.TarInfo, change: Callable[[], None]) -> None:
        """Who is not mapped into our user namespace can own nothing in it."""
        try:
            change()
        except OSError as error:
            if error.errno != errno.EINVAL or not self._confined:
                raise
            self.report.owners_left_out = True

    def _owner_and_time(self, member: tarfile.TarInfo, here: int, last: str, mode: int | None = None) -> None:
        if self.privileged:
            self._own(member, lambda: os.chown(last, member.uid, member.gid, dir_fd=here, follow_symlinks=False))
        if mode is not None:
            os.chmod(last, mode & 0o7777, dir_fd=here)  # we just made it, and nobody else has the directory open for writing
        os.utime(last, (float(member.mtime), float(member.mtime)), dir_fd=here, follow_symlinks=False)

    # ---- places

    def _in(self, parent: str) -> int:
        """The directory, made if need be; the last one is kept open, as entries of one directory follow each other."""
        if self._parent and self._parent[0] == parent:
            return self._parent[1]
        self._forget_parent()
        try:
            descriptor = self._open(parent)
        except CallError as error:
            if error.errno != errno.ENOENT:
                raise
            descriptor = self._make(parent)
        self._parent = (parent, descriptor)
        return descriptor

    def _forget_parent(self) -> None:
        if self._parent:
            os.close(self._parent[1])
            self._parent = None

    @contextmanager
    def _directory(self, name: str) -> Iterator[int]:
        descriptor = self._open(name)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _made(self, name: str) -> Iterator[int]:
        descriptor = os.dup(self._in(name))
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, name: str) -> int:
        flags, resolve = os.O_RDONLY | os.O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        return self.kernel.openat2(self.root, name or ".", flags, 0, resolve)

    def _make(self, name: str) -> int:
        """Level by level; a link on the way that leads to nothing stays one and is an error."""
        made = ""
        for part in name.split("/"):
            parent, made = made, f"{made}/{part}".lstrip("/")
            try:
                os.close(self._open(made))
            except CallError as error:
                if error.errno != errno.ENOENT:
                    raise
                with self._directory(parent) as here:
                    os.mkdir(part, 0o755, dir_fd=here)
                self._note(made)
        return self._open(name)

    def _clear(self, here: int, name: str) -> None:
        """Remove what has the name, all of it, without following anything."""
        try:
            os.unlink(name, dir_fd=here)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError) as error:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=here).st_mode):
                raise error from None
            if self.keeping:
                raise ImageError(f"{name!r} is there already, and is a directory: it would be lost") from None
            shutil.rmtree(name, dir_fd=here)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while True:
        try:
            member = archive.next()
        except (ValueError, OverflowError, KeyError, IndexError, AttributeError) as error:
            raise ImageError(f"a damaged tar header: {error}") from None
        if member is None:
            return
        if member.size < 0 or not 0 <= member.uid < 1 << 32 or not 0 <= member.gid < 1 << 32 or not abs(member.mtime) < 1 << 40:
            raise ImageError(f"{member.name!r}: size, owner or time out of range")
        yield member
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header of the archive


def _inside(name: str) -> str:
    """Relative to the root, without `.`: an absolute name means the image's root. Raises ImageError for `..`."""
    parts = [each for each in name.split("/") if each not in ("", ".")]
    if ".." in parts:
        raise ImageError(f"{name!r} has `..` in it, which leads out of the image")
    if "\0" in name or len(name) > 4095 or any(len(os.fsencode(each)) > 255 for each in parts) or len(parts) > MAX_DEPTH:
        raise ImageError(f"{name[:80]!r}… is no name for a file: too long, too deep, or with a NUL in it")
    return "/".join(parts)


def _pieces(member: tarfile.TarInfo) -> Iterator[tuple[int, int]]:
    """Where a file has data: all of it, or what the map of a sparse one says."""
    if not member.issparse():
        yield 0, member.size
        return
    end = 0
    pieces: Any = member.sparse  # (offset, size) of each piece of data
    for offset, size in pieces or ():
        if size == 0:
            continue  # the end of the map, and what fills its last block
        if size < 0 or offset < end or offset + size > member.size:
            raise ImageError(f"{member.name!r}: the map of this sparse file contradicts itself")
        end = offset + size
        yield offset, size


def _write(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


