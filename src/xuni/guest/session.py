"""What the host tells a guest's init, and what the guest tells back.

The host adds a second cpio archive to the initramfs: `/xuni/session`, shell variables, and `/xuni/command`, a shell
script that executes the command. While the guest runs, COM1 is its console, COM2 the command's standard input and
output, COM3 its standard error, and COM4 the control channel, on which the guest writes one JSON object a line:

    {"event": "input"}               the command can take standard input: answer on COM2 with `frame`
    {"event": "exit", "status": 7}   the command ended; the guest powers off next
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from xuni.guest.cpio import Archive

MAX_FRAME = 2048  # bytes: a Linux terminal in raw mode keeps 4095
MAX_LINE = 4096  # bytes of a control message; longer ones come from no init of ours


@dataclass(frozen=True, slots=True)
class Command:
    """Run this and power off. `stdin`: whether the host has input for it."""

    argv: tuple[bytes, ...]
    stdin: bool = False

    def archive(self) -> bytes:
        if not self.argv:
            raise ValueError("the command is empty")
        # With exec, what a shell says of a missing program goes to the command's own standard error: 126 and 127.
        script = b"exec " + b" ".join(map(_quoted, self.argv)) + b"\n"
        return _archive({"task": "command", "stdin": "stream" if self.stdin else "none"}, script)


@dataclass(frozen=True, slots=True)
class Shell:
    """An interactive shell on the console; `size` is the terminal's (columns, rows)."""

    term: str = "linux"
    size: tuple[int, int] | None = None

    def archive(self) -> bytes:
        settings = {"task": "shell", "TERM": self.term}
        if self.size:
            settings |= {"columns": str(self.size[0]), "rows": str(self.size[1])}
        return _archive(settings)


Session = Command | Shell


def _archive(settings: dict[str, str], script: bytes = b"") -> bytes:
    archive = Archive()
    lines = (name.encode() + b"=" + _quoted(os.fsencode(value)) for name, value in settings.items())
    archive.file("xuni/session", b"".join(line + b"\n" for line in lines), 0o600)
    if script:
        archive.file("xuni/command", script, 0o600)
    return archive.to_bytes()


def _quoted(word: bytes) -> bytes:
    """One word for a POSIX shell, whatever bytes it has."""
    if b"\0" in word:
        raise ValueError("an argument cannot contain a NUL byte")
    return b"'" + word.replace(b"'", b"'\\''") + b"'"


def frame(data: bytes) -> bytes:
    """The answer to an `Input` event: up to `MAX_FRAME` bytes; none means the end of the input."""
    assert len(data) <= MAX_FRAME
    return b"%d\n" % len(data) + data


@dataclass(frozen=True, slots=True)
class Input:
    """The guest waits for a frame of standard input."""


@dataclass(frozen=True, slots=True)
class Exit:
    """The command's exit status, 0..255."""

    status: int


Event = Input | Exit


@dataclass(slots=True)
class Control:
    """Reads the control channel. What is no message of ours is ignored: a guest may write there what it likes."""

    _line: bytearray = field(default_factory=bytearray)

    def receive(self, data: bytes) -> Iterator[Event]:
        for byte in data:
            if byte != 0x0A:
                if len(self._line) <= MAX_LINE:
                    self._line.append(byte)
                continue
            line, self._line = bytes(self._line), bytearray()
            if event := _event(line):
                yield event


def _event(line: bytes) -> Event | None:
    if len(line) > MAX_LINE:
        return None
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match message:
        case {"event": "input"}: return Input()
        case {"event": "exit", "status": int(status)} if 0 <= status <= 255: return Exit(status)
        case _: return None


def words(arguments: Sequence[str]) -> tuple[bytes, ...]:
    """Command-line arguments as the bytes that the user typed."""
    return tuple(map(os.fsencode, arguments))
