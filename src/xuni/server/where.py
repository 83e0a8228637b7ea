"""Where what lasts as long as the machine is kept: /run/xuni, or without root a directory of the user's own."""

from __future__ import annotations

import functools
import os
import stat


def rootless() -> bool:
    """Whether we are nobody special, or only the root of a user namespace of our own."""
    return run_directory() != "/run/xuni"


@functools.cache
def run_directory() -> str:
    """It is there afterwards. Who becomes root of a user namespace later has asked before. Raises OSError."""
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        os.makedirs("/run/xuni", mode=0o711, exist_ok=True)
        return "/run/xuni"
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    place = f"{named}/xuni" if named.startswith("/") and os.access(named, os.W_OK) else f"/tmp/xuni-{os.getuid()}"
    os.makedirs(place, mode=0o700, exist_ok=True)
    status = os.lstat(place)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(1, "it is not a directory that only we may write; set XDG_RUNTIME_DIR to one", place)
    return place
