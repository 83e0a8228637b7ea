"""What a container's start needs of `os`, which takes 1.4 ms to import (most of it for the abstract classes behind
`os.environ`): the same functions, by the same names, from `posix`, where `os` has them from.

Modules on the path of a start say `from xuni.host.linux import system as os`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import *  # noqa: F403
    from os import _exit as _exit
    from os import path as path
else:
    from posix import *  # noqa: F403
    from posix import _exit as _exit
    from posix import _path_normpath, environ, getcwd, lstat, stat

    SEEK_SET, SEEK_CUR, SEEK_END = 0, 1, 2

    class path:
        """`os.path`, for text."""

        def dirname(name: str) -> str:
            head = name[: name.rfind("/") + 1]
            return head.rstrip("/") or head

        def basename(name: str) -> str:
            return name[name.rfind("/") + 1 :]

        def normpath(name: str) -> str:
            return _path_normpath(name) or "."

        def abspath(name: str) -> str:
            return _path_normpath(name if name.startswith("/") else f"{getcwd()}/{name}")

        def realpath(name: str) -> str:
            from posixpath import realpath

            return realpath(name)

        def exists(name: str) -> bool:
            try:
                stat(name)
            except (OSError, ValueError):
                return False
            return True

        def lexists(name: str) -> bool:
            try:
                lstat(name)
            except (OSError, ValueError):
                return False
            return True

        def isdir(name: str) -> bool:
            return _kind(name) == 0o040000

        def isfile(name: str) -> bool:
            return _kind(name) == 0o100000

    def _kind(name: str) -> int:
        try:
            return stat(name).st_mode & 0o170000
        except (OSError, ValueError):
            return 0

    def getenv(name: str, default: str | None = None) -> str | None:
        found = environ.get(name.encode(errors="surrogateescape"))
        return default if found is None else found.decode(errors="surrogateescape")

    def makedirs(name: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        from os import makedirs

        makedirs(name, mode, exist_ok)
