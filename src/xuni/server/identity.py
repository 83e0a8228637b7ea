"""Who the process of a container is: names become numbers by the image's own /etc/passwd and /etc/group."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from xuni.host.linux.calls import CallError
from xuni.host.linux.kernel import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, Linux
from xuni.server import ContainerError
from xuni.server.bundle import Identity

MAX_PASSWD: Final = 4 << 20  # bytes that are read of each


def look_up(root: Path, user: str, added: Sequence[str] = ()) -> Identity:
    """USER[:GROUP], names or numbers, and groups that are `added`, by the image's own /etc/passwd and /etc/group.
    Raises ContainerError."""
    name, _, group_name = user.partition(":")
    people = [line.split(":") for line in _file(root, "etc/passwd") if line.count(":") >= 6]
    groups = [line.split(":") for line in _file(root, "etc/group") if line.count(":") >= 3]
    person = next((each for each in people if name in (each[0], each[2])), None) if name else None
    if not name:
        person = next((each for each in people if each[2] == "0"), None)
    if person is not None and _number(person[2]) and _number(person[3]):
        uid, gid, home, login = int(person[2]), int(person[3]), person[5] or "/", person[0]
    elif not name or _number(name):
        uid, gid, home, login = int(name or 0), 0, "/" if name else "/root", ""
    else:
        raise ContainerError(f"-u {user}: the image's /etc/passwd has no user {name!r}")
    more = tuple(int(each[2]) for each in groups if login and login in each[3].split(",") and _number(each[2]))
    if group_name:
        found = next((each[2] for each in groups if each[0] == group_name), group_name)
        if not _number(found):
            raise ContainerError(f"-u {user}: the image's /etc/group has no group {group_name!r}")
        gid, more = int(found), ()
    more = (gid, *(each for each in more if each != gid))  # else who gives its own group up would have it back (CVE-2022-2995)
    for each in added:
        number = next((line[2] for line in groups if line[0] == each), each)
        if not _number(number):
            raise ContainerError(f"--group-add {each}: the image's /etc/group has no group {each!r}")
        more += (int(number),)
    if max(uid, gid, *more) >= 1 << 32:
        raise ContainerError(f"-u {user}: ids are below 4294967296")
    return Identity(uid, gid, more, home)


def _file(root: Path, name: str) -> list[str]:
    """Of the image: no link of it leads out, and nothing but a file is opened (a device of an image may be a watchdog's)."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    place = -1
    try:
        place = Linux().openat2(directory, name, os.O_PATH, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        if not stat.S_ISREG(os.fstat(place).st_mode):
            return []
        with open(f"/proc/self/fd/{place}", "rb") as file:
            return file.read(MAX_PASSWD).decode(errors="replace").splitlines()
    except CallError:
        return []
    finally:
        os.close(directory)
        if place >= 0:
            os.close(place)


def _number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10
