from __future__ import annotations

import os
import pty
import termios

import pytest

from xuni.host import terminal
from xuni.host.terminal import Key, Keys


@pytest.mark.parametrize(("typed", "expected"), [
    (b"ls\r", [b"ls\r"]),
    (b"\x03\x04", [b"\x03\x04"]),  # Ctrl-C and Ctrl-D are the guest's
    (b"\x01x", [Key.LEAVE]),
    (b"\x01X", [Key.LEAVE]),
    (b"ab\x01xcd", [b"ab", Key.LEAVE]),
    (b"\x01a", [b"\x01"]),
    (b"\x01\x01", [b"\x01"]),
    (b"\x01h", [Key.HELP]),
    (b"\x01qz", [b"z"]),  # unknown: swallowed
    (b"", []),
])
@pytest.mark.parametrize("whole", [True, False])
def test_keys(typed: bytes, expected: list[bytes | Key], whole: bool) -> None:
    keys = Keys()
    pieces = [typed] if whole else [typed[i : i + 1] for i in range(len(typed))]
    got = list[bytes | Key]()
    for piece in pieces:
        got += keys.split(piece)
        if Key.LEAVE in got:
            break
    joined = list[bytes | Key]()
    for item in got:
        if isinstance(item, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += item
        else:
            joined.append(item)
    assert joined == expected


def test_raw_mode_ends_with_its_block() -> None:
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        with pytest.raises(ValueError), terminal.raw(slave):
            assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
            raise ValueError
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


def test_a_pipe_is_not_interactive_and_has_no_size() -> None:
    reader, writer = os.pipe()
    try:
        assert not terminal.is_interactive(reader)
        assert terminal.size(writer) is None
    finally:
        os.close(reader)
        os.close(writer)
