"""bpf(2): a device program is loaded and put on a group of the unified hierarchy."""

from __future__ import annotations

import os

from xuni.host.linux.calls import CallError, address, call, space

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PROG_LOAD, PROG_ATTACH, PROG_DETACH, PROG_GET_FD_BY_ID, PROG_QUERY = 5, 8, 9, 13, 16
PROG_TYPE_CGROUP_DEVICE: Final = 15
CGROUP_DEVICE: Final = 6
ALLOW_MULTI, REPLACE = 2, 4
LOG: Final = 64 << 10
MOST: Final = 64  # programs on one group: the kernel's own limit


def replace(directory: str, code: bytes) -> None:
    """Put the program on the group in place of what it has; at no moment is it without one. Raises CallError.

    Programs of groups above stay in force: a device must be allowed by all of them.
    """
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        before = attached(group)
        new = load(code)
        try:
            if len(before) == 1:
                old = _by_id(before[0])
                try:
                    _attach(group, new, ALLOW_MULTI | REPLACE, old, directory)
                finally:
                    os.close(old)
                return
            _attach(group, new, ALLOW_MULTI, 0, directory)
            for each in before:
                old = _by_id(each)
                try:
                    _bpf(PROG_DETACH, _words(group, old, CGROUP_DEVICE), ("BPF_PROG_DETACH", directory))
                finally:
                    os.close(old)
        finally:
            os.close(new)
    finally:
        os.close(group)


def load(code: bytes) -> int:
    """A descriptor of the program. Raises CallError with the verifier's last words."""
    instructions, licence, log = space(len(code), code), space(16, b"Apache-2.0"), space(LOG)
    try:
        return _load(len(code) // 8, address(instructions), address(licence), 0, 0)
    except CallError as error:
        try:
            return _load(len(code) // 8, address(instructions), address(licence), address(log), LOG)
        except CallError:
            said = bytes(log).partition(b"\0")[0].decode(errors="replace").strip().splitlines()
            if said:
                error.strerror = f"{error.strerror} ({said[-1]})"
            raise error from None


def _load(count: int, instructions: int, licence: int, log: int, size: int) -> int:
    attributes = b"".join([
        _words(PROG_TYPE_CGROUP_DEVICE, count), instructions.to_bytes(8, "little"), licence.to_bytes(8, "little"),
        _words(1 if log else 0, size), log.to_bytes(8, "little"), bytes(8), b"xuni_devices".ljust(16, b"\0"),
    ])  # fmt: skip
    # SAFETY: the addresses are of memory that `load` holds until this returns; the kernel copies what it needs.
    return _bpf(PROG_LOAD, attributes, ("BPF_PROG_LOAD", "BPF_PROG_TYPE_CGROUP_DEVICE", f"{count} instructions"))


def attached(group: int) -> list[int]:
    """The ids of the device programs on the group itself."""
    ids = space(4 * MOST)
    query = space(64, _words(group, CGROUP_DEVICE, 0, 0) + address(ids).to_bytes(8, "little") + _words(MOST))
    # SAFETY: `ids` has room for MOST ids, as prog_cnt says, and outlives the call.
    call("bpf", PROG_QUERY, query, 64, shown=("BPF_PROG_QUERY", group))
    count = int.from_bytes(query.raw[24:28], "little")
    return [int.from_bytes(ids.raw[4 * index : 4 * index + 4], "little") for index in range(count)]


def _by_id(number: int) -> int:
    return _bpf(PROG_GET_FD_BY_ID, _words(number), ("BPF_PROG_GET_FD_BY_ID", number))


def _attach(group: int, new: int, flags: int, old: int, directory: str) -> None:
    _bpf(PROG_ATTACH, _words(group, new, CGROUP_DEVICE, flags, old), ("BPF_PROG_ATTACH", directory, "BPF_CGROUP_DEVICE"))


def _bpf(command: int, attributes: bytes, shown: tuple[object, ...]) -> int:
    return call("bpf", command, attributes, len(attributes), shown=shown)


def _words(*values: int) -> bytes:
    return b"".join([each.to_bytes(4, "little") for each in values])
