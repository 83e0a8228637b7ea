"""`xuni attach`: people who come to a container that runs by itself, and go again. A socket in the place of its attendant.

Each message of the socket (SOCK_SEQPACKET) is a letter and what belongs to it: from the visitor `i` input, `e` the end of
the input, `w` struct winsize; to the visitor `o` standard output, `r` standard error.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import struct
import sys
import termios
import tty
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from xuni.server import ContainerError

INPUT, END, SIZE, OUTPUT, ERROR = b"i", b"e", b"w", b"o", b"r"
PIECE: Final = 1 << 15
MOST_VISITORS: Final = 16
MOST_HELD: Final = 64  # pieces that a slow one has not taken; then it goes
LEAVE: Final = b"\x10\x11"  # Ctrl-P Ctrl-Q, docker's


@dataclass(slots=True)
class Visitor:
    made: socket.socket
    held: deque[bytes] = field(default_factory=deque)


class Visitors:
    """The attendant's end. `meet` says who takes input and sizes; `tell` gives output to everybody."""

    def __init__(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._path = path
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.setblocking(False)
        before = os.umask(0o077)
        try:
            self._listening.bind(path)
        finally:
            os.umask(before)
        self._listening.listen(MOST_VISITORS)
        self._visitors: list[Visitor] = []
        self._feed: Callable[..., None] = lambda piece, last=False: None
        self._resize: Callable[[bytes], None] = lambda size: None

    def join(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        selector.register(self._listening, selectors.EVENT_READ, self._enter)

    def meet(self, feed: Callable[..., None], resize: Callable[[bytes], None]) -> None:
        self._feed, self._resize = feed, resize

    def close(self) -> None:
        for visitor in self._visitors:
            visitor.made.setblocking(True)
            visitor.made.settimeout(1)
            with contextlib.suppress(OSError):
                for piece in visitor.held:
                    visitor.made.send(piece)
            visitor.made.close()
        self._listening.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def tell(self, stream: str, piece: bytes) -> None:
        letter = ERROR if stream == "stderr" else OUTPUT
        for visitor in self._visitors[:]:
            for start in range(0, len(piece), PIECE):
                visitor.held.append(letter + piece[start : start + PIECE])
            self._send(visitor)

    def _enter(self) -> None:
        try:
            made, _ = self._listening.accept()
        except OSError:
            return
        if len(self._visitors) >= MOST_VISITORS:
            made.close()
            return
        made.setblocking(False)
        visitor = Visitor(made)
        self._visitors.append(visitor)
        self._selector.register(made, selectors.EVENT_READ, lambda: self._turn(visitor))

    def _turn(self, visitor: Visitor) -> None:
        if visitor not in self._visitors:
            return
        self._send(visitor)
        try:
            said = visitor.made.recv(PIECE + 1)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        match said[:1]:
            case b"i": self._feed(said[1:])
            case b"e": self._feed(b"", last=True)
            case b"w" if len(said) == 9: self._resize(said[1:])
            case _: self._leave(visitor)

    def _send(self, visitor: Visitor) -> None:
        if visitor not in self._visitors:
            return
        try:
            while visitor.held:
                visitor.made.send(visitor.held[0])
                visitor.held.popleft()
        except BlockingIOError:
            if len(visitor.held) > MOST_HELD:
                self._leave(visitor)
                return
        except OSError:
            self._leave(visitor)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if visitor.held else 0)
        self._selector.modify(visitor.made, wanted, lambda: self._turn(visitor))

    def _leave(self, visitor: Visitor) -> None:
        self._visitors.remove(visitor)
        self._selector.unregister(visitor.made)
        visitor.made.close()


def visit(path: str, *, terminal: bool, interactive: bool, passed_on: Callable[[int], None]) -> bool:
    """Our standard streams are the container's until it ends, or until Ctrl-P Ctrl-Q: then the answer is False.

    `passed_on` is told the signals that come meanwhile. Raises ContainerError.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        made.connect(path)
    except OSError as error:
        raise ContainerError(f"nobody attends this container: {error.strerror}; `xuni logs` shows what it has said", 1) from None
    raw = terminal and interactive and sys.stdin.isatty()
    before = termios.tcgetattr(0) if raw else None
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
    handlers = {each: signal.signal(each, lambda *_: None) for each in numbers}
    wakeup = signal.set_wakeup_fd(write_end)
    try:
        if raw:
            tty.setraw(0, termios.TCSADRAIN)
            made.send(SIZE + _size())
        return _converse(made, read_end, interactive=interactive, raw=raw, passed_on=passed_on)
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in (read_end, write_end):
            os.close(each)
        made.close()


def _converse(made: socket.socket, signals: int, *, interactive: bool, raw: bool, passed_on: Callable[[int], None]) -> bool:
    selector = selectors.DefaultSelector()
    selector.register(made, selectors.EVENT_READ)
    selector.register(signals, selectors.EVENT_READ)
    if interactive:
        try:
            selector.register(0, selectors.EVENT_READ)
        except PermissionError:  # an ordinary file
            for piece in iter(lambda: os.read(0, PIECE), b""):
                made.send(INPUT + piece)
            made.send(END)
    halfway = False  # after Ctrl-P
    while True:
        for key, _ in selector.select():
            if key.fd == signals:
                for number in os.read(signals, 64):
                    if number == signal.SIGWINCH:
                        made.send(SIZE + _size())
                    else:
                        passed_on(number)
            elif key.fd == 0:
                piece = os.read(0, PIECE)
                if raw:
                    piece, halfway, leaving = leave(piece, halfway)
                    if leaving:
                        return False
                elif not piece:
                    selector.unregister(0)
                with contextlib.suppress(OSError):  # it has ended: its last words are still to be read
                    if piece or not raw:
                        made.send(INPUT + piece if piece else END)
            else:
                said = made.recv(PIECE + 1)
                if not said:
                    return True
                view = memoryview(said)[1:]
                while view:
                    view = view[os.write(2 if said[:1] == ERROR else 1, view) :]


def leave(piece: bytes, halfway: bool) -> tuple[bytes, bool, bool]:
    """What of it is typed to the container, whether Ctrl-P is held back, and whether Ctrl-Q came after it."""
    text = (LEAVE[:1] if halfway else b"") + piece
    before, found, _ = text.partition(LEAVE)
    if found:
        return before, False, True
    if text.endswith(LEAVE[:1]):
        return text[:-1], True, False
    return text, False, False


def _size() -> bytes:
    try:
        return fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return struct.pack("HHHH", 24, 80, 0, 0)
