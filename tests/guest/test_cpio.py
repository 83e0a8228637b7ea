"""The archives are read back by the system's own cpio reader where there is one, and by a strict reader of ours."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from xuni.guest.cpio import TRAILER, Archive


def read(data: bytes) -> Iterator[tuple[str, int, bytes, tuple[int, int]]]:
    """Entries of one archive, with every rule of the format asserted."""
    at, last_inode = 0, 0
    while True:
        assert at % 4 == 0 and data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, size, device, name_size = fields[0], fields[1], fields[6], (fields[9], fields[10]), fields[11]
        assert inode > last_inode
        last_inode = inode
        name_end = at + 110 + name_size
        assert data[name_end - 1] == 0
        name = data[at + 110 : name_end - 1].decode()
        start = name_end + -name_end % 4
        if name == TRAILER:
            assert data[start:] == b""
            return
        yield name, mode, data[start : start + size], device
        at = start + size + -size % 4


def test_every_kind_of_entry_reads_back() -> None:
    archive = Archive()
    archive.folder("etc", 0o700)
    archive.file("/etc/five", b"12345", 0o600)
    archive.file("etc/empty", b"")
    archive.link("bin", "usr/bin")
    archive.device("dev/console", 5, 1)
    assert list(read(archive.to_bytes())) == [
        ("etc", stat.S_IFDIR | 0o700, b"", (0, 0)),
        ("etc/five", stat.S_IFREG | 0o600, b"12345", (0, 0)),
        ("etc/empty", stat.S_IFREG | 0o644, b"", (0, 0)),
        ("bin", stat.S_IFLNK | 0o777, b"usr/bin", (0, 0)),
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
    ]


def test_to_bytes_can_be_called_between_entries() -> None:
    archive = Archive()
    archive.file("a", b"1")
    first = archive.to_bytes()
    archive.file("b", b"2")
    assert [entry[0] for entry in read(first)] == ["a"]
    assert [entry[0] for entry in read(archive.to_bytes())] == ["a", "b"]
