"""Copying a tree between two open directories: what tmpcopyup puts into a new tmpfs."""

from __future__ import annotations

import errno
import os
import stat


def copy_tree(source: int, target: int, depth: int = 0) -> None:
    """Everything in `source` with owners, modes and extended attributes. Links stay links; nothing is followed."""
    if depth > 64:
        raise OSError(errno.ELOOP, "tmpcopyup: directories are nested more than 64 deep")
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listdir(source):
        entry = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind, mode = stat.S_IFMT(entry.st_mode), stat.S_IMODE(entry.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner, outer = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=target)
            try:
                copy_tree(inner, outer, depth + 1)
            finally:
                os.close(inner)
                os.close(outer)
        elif kind == stat.S_IFREG:
            _copy_file(source, target, name, entry)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, entry.st_uid, entry.st_gid, dir_fd=target, follow_symlinks=False)
        else:
            os.mknod(name, kind | mode, entry.st_rdev, dir_fd=target)
            os.chown(name, entry.st_uid, entry.st_gid, dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, target: int, name: str, entry: os.stat_result) -> None:
    inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    outer = -1
    try:
        outer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        left = entry.st_size
        while left > 0 and (done := os.sendfile(outer, inner, None, min(left, 1 << 30))):
            left -= done
        for attribute in os.listxattr(inner):
            try:
                os.setxattr(outer, attribute, os.getxattr(inner, attribute))
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
        os.fchown(outer, entry.st_uid, entry.st_gid)
        os.fchmod(outer, stat.S_IMODE(entry.st_mode))
        os.utime(outer, ns=(entry.st_atime_ns, entry.st_mtime_ns))
    finally:
        os.close(inner)
        if outer >= 0:
            os.close(outer)
