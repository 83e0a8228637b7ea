"""The terminal that xuni was started on: raw mode, always put back, and the keys that are ours and not the guest's.

In raw mode every key goes to the guest, Ctrl-C too. Ctrl-A is ours: what follows it is a command (`Keys`).
"""

from __future__ import annotations

import atexit
import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

ESCAPE = 0x01  # Ctrl-A
HELP = (
    "\r\nCtrl-A x   leave: ends the guest"
    "\r\nCtrl-A a   send Ctrl-A to the guest"
    "\r\nCtrl-A h   this help\r\n"
)


class Key(Enum):
    """What the user asked xuni itself to do."""

    LEAVE = "x"
    HELP = "h"


@dataclass(slots=True)
class Keys:
    """Splits what is typed into what goes to the guest and what is meant for us."""

    _escaped: bool = False

    def split(self, typed: bytes) -> Iterator[bytes | Key]:
        plain = bytearray()
        for byte in typed:
            if not self._escaped:
                if byte == ESCAPE:
                    self._escaped = True
                else:
                    plain.append(byte)
                continue
            self._escaped = False
            match chr(byte).lower():
                case "a" | "\x01":
                    plain.append(ESCAPE)
                case "x":
                    if plain:
                        yield bytes(plain)
                    yield Key.LEAVE
                    return
                case "h" | "?":
                    yield Key.HELP
                case _:
                    pass  # not a command: swallowed, as QEMU does
        if plain:
            yield bytes(plain)


def is_interactive(descriptor: int = 0) -> bool:
    """Whether this is a terminal that we may read: one in whose foreground we are."""
    try:
        return os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False


def size(descriptor: int = 1) -> tuple[int, int] | None:
    """Columns and rows, if the terminal tells."""
    try:
        columns, rows = os.get_terminal_size(descriptor)
    except OSError:
        return None
    return (columns, rows) if columns and rows else None


@contextmanager
def raw(descriptor: int = 0) -> Iterator[None]:
    """Raw mode until the block ends, however it ends; also at the process's exit from elsewhere.

    A signal whose default action kills would leave the terminal raw: the caller handles SIGTERM and SIGHUP.
    """
    before = termios.tcgetattr(descriptor)

    def restore() -> None:
        # TCSAFLUSH drops what was typed ahead: it was meant for the guest, not for the shell that follows.
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)

    atexit.register(restore)
    try:
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        restore()
        atexit.unregister(restore)
