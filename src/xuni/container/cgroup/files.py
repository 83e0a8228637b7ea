"""The files of a group: one value each, in the few shapes that the kernel uses (cgroup-v2.rst, "Interface Files")."""

from __future__ import annotations

import errno

from xuni.host.linux import system as os
from xuni.host.linux.calls import CallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

MAX = 1 << 20  # bytes that we read of one file; memory.numa_stat of a large host is the longest
UNLIMITED = (1 << 64) - 1  # how runc's statistics say "max"


def read(directory: str, name: str) -> str:
    """The content without the last newline. Raises CallError."""
    path = f"{directory}/{name}"
    call = "openat"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            call = "read"
            content = b""
            while len(content) < MAX and (piece := os.read(descriptor, 1 << 16)):
                content += piece
        finally:
            os.close(descriptor)
    except OSError as error:
        _fail(error, call, path)
    return content.decode(errors="replace").rstrip("\n")


def read_or(directory: str, name: str, default: str) -> str:
    """The content, or `default` where this kernel, or this place in the tree, has no such file."""
    try:
        return read(directory, name)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
            return default
        raise


def write(directory: str, name: str, *values: str | int) -> None:
    """One write(2) for each value, as the kernel wants it. Raises CallError with the value and the file."""
    path = f"{directory}/{name}"
    call, value = "openat", values[0]
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            call = "write"
            for value in values:
                os.write(descriptor, str(value).encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        _fail(error, call, path, str(value))


def exists(directory: str, name: str) -> bool:
    return os.access(f"{directory}/{name}", os.F_OK)


def number(text: str) -> int | None:
    """None for "max" and for v1's way of saying so: the largest multiple of a page in 63 bits."""
    if text in ("max", "-1", ""):
        return None
    value = int(text)
    return None if value >= 0x7FFFFFFFFFFF0000 else value


def flat(text: str) -> dict[str, int]:
    """Lines of `KEY VALUE`; values that are no numbers are left out."""
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.lstrip("-").isdecimal():
            found[key] = int(value)
    return found


def nested(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Lines of `KEY SUB=VALUE SUB=VALUE …`."""
    for line in text.splitlines():
        key, *pairs = line.split()
        yield key, {name: value for name, _, value in [each.partition("=") for each in pairs]}


def numbers(text: str) -> tuple[int, ...]:
    """A list of CPUs or memory nodes: "0-2,7" (cpuset(7), "List format"). Raises ValueError."""
    found: list[int] = []
    for part in text.split(","):
        if part.strip():
            first, dash, last = part.strip().partition("-")
            low, high = int(first), int(last) if dash else int(first)
            if high - low > 65536:
                raise ValueError(f"{part} is too long a range")
            found += range(low, high + 1)
    return tuple(found)


def _fail(error: OSError, call: str, path: str, *value: str) -> NoReturn:
    failed = CallError(error.errno or 0, call, (path, *value))
    failed.filename = path
    raise failed from None
