"""Who stays with a container from its birth to its end: passes on its output, its input, signals, and keeps its log.

In the foreground that is `xuni run` itself, with --detach a process of its own. It is the subreaper of what it starts, so
the container's first process becomes its child once the runtime has gone, and its status comes here.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import struct
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from xuni.host.linux.kernel import Linux
from xuni.server import ContainerError, where
from xuni.server.kept import now
from xuni.server.runtime import Runtime

if TYPE_CHECKING:
    from xuni.server.visitors import Visitors

PR_SET_CHILD_SUBREAPER: Final = 36
TIOCGPTPEER: Final = 0x5441
PASSED_ON: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
PIECE: Final = 1 << 16
LONGEST_LINE: Final = 1 << 14  # bytes; a longer one is split in the log, as docker does it


class Log:
    """log.json: output by lines, each with its stream and time."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)
        self._partial = {"stdout": b"", "stderr": b""}

    def add(self, stream: str, data: bytes) -> None:
        lines = (self._partial[stream] + data).splitlines(keepends=True)
        self._partial[stream] = b""
        if lines and not lines[-1].endswith(b"\n") and len(lines[-1]) < LONGEST_LINE:
            self._partial[stream] = lines.pop()
        for line in lines:
            self._line(stream, line)

    def _line(self, stream: str, line: bytes) -> None:
        text = {"log": line.decode(errors="replace"), "stream": stream, "time": now()}
        with contextlib.suppress(OSError):  # a full disk must not stop the container's output
            self._file.write(json.dumps(text).encode() + b"\n")

    def close(self) -> None:
        for stream, rest in self._partial.items():
            if rest:
                self._line(stream, rest)
        self._file.close()


@dataclass(slots=True)
class Streams:
    """What the runtime is given, and our ends of it."""

    child: tuple[int, int, int]
    stdin: int = -1
    outputs: dict[int, str] = field(default_factory=dict)
    console: socket.socket | None = None
    path: str = ""
    held: int = -1  # the container's end of its console, kept open


@dataclass(frozen=True, slots=True)
class Attendance:
    """How to be with one container. `foreground`: our own standard streams are its, otherwise `socket` is where visitors come."""

    runtime: Runtime
    container: str
    place: Path
    terminal: bool
    interactive: bool
    foreground: bool
    socket: str = ""
    system: bool = False  # its terminal is a console, which processes open, close and hang up as they come and go


class Company(Protocol):
    """Who else is served while the container lives."""

    def join(self, selector: selectors.BaseSelector) -> None:
        """Register what is waited for, each with the function to call as its data."""
        ...

    def close(self) -> None: ...


def run(what: Attendance, created: Callable[[int], tuple[Company, ...]], started: Callable[[int], None],
        ended: Callable[[], None] | None = None) -> int:  # fmt: skip
    """Create, start, and stay until the end; the exit status. `created` and `started` are told the pid; when `ended` is
    called, its control groups are still there.

    Raises ContainerError after the runtime's state has been removed.
    """
    Linux().prctl(PR_SET_CHILD_SUBREAPER, 1)
    streams = _streams(what)
    signals = _Signals() if what.foreground else None
    log = Log(what.place / "log.json")
    company: list[Company] = []
    visitors = None
    try:
        if what.socket:
            from xuni.server.visitors import Visitors

            visitors = Visitors(what.socket)
            company.append(visitors)
        pid = _create(what, streams)
        try:
            if streams.console is not None:
                _receive_terminal(streams)
            company += created(pid)
            what.runtime.start(what.container)
        except BaseException:
            _delete(what)
            raise
        started(pid)
        pidfd = os.pidfd_open(pid)
        with _raw_terminal(what, streams) if what.terminal and what.foreground else contextlib.nullcontext():
            relay = _Relay(what, streams, log, pidfd, signals, visitors)
            for each in company:
                each.join(relay.selector)
            relay.run()
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        if ended is not None:
            ended()
        _delete(what)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
    finally:
        log.close()
        for each in company:
            each.close()
        if signals:
            signals.restore()
        for descriptor in (*streams.outputs, *([streams.held] if streams.held >= 0 else ())):
            os.close(descriptor)


def _streams(what: Attendance) -> Streams:
    if what.terminal:
        place = f"{where.run_directory()}/console-{what.container[:16]}"
        listening = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)
        listening.bind(place)
        listening.listen(1)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        return Streams((null, null, null), console=listening, path=place)
    out, err = os.pipe(), os.pipe()
    ours = -1
    if what.interactive:
        stdin, ours = os.pipe()
        os.set_blocking(ours, False)
    else:
        stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    return Streams((stdin, out[1], err[1]), ours, {out[0]: "stdout", err[0]: "stderr"})


def _create(what: Attendance, streams: Streams) -> int:
    try:
        return what.runtime.create(what.container, what.place, streams.path if what.terminal else "", streams.child)
    finally:
        for each in set(streams.child):
            os.close(each)


def _delete(what: Attendance) -> None:
    with contextlib.suppress(ContainerError):
        what.runtime.delete(what.container)


def _receive_terminal(streams: Streams) -> None:
    assert streams.console is not None
    streams.console.settimeout(10)
    connection, _ = streams.console.accept()
    with connection:
        _, control, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
        descriptors = array.array("i")
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: descriptors.itemsize])
    streams.console.close()
    os.unlink(streams.path)
    if not descriptors:
        raise ContainerError("the runtime sent no terminal over --console-socket")
    streams.outputs[descriptors[0]] = "stdout"
    streams.stdin = os.dup(descriptors[0])
    os.set_blocking(streams.stdin, False)


class _Signals:
    """Signals as bytes in a pipe, so that they are served between two other events."""

    def __init__(self) -> None:
        self.read_end, write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        os.set_blocking(write_end, False)
        self._write_end = write_end
        self._wakeup = signal.set_wakeup_fd(write_end)
        self._before = {each: signal.signal(each, lambda *_: None) for each in (*PASSED_ON, signal.SIGWINCH)}

    def take(self) -> bytes:
        try:
            return os.read(self.read_end, 64)
        except BlockingIOError:
            return b""

    def restore(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.read_end)
        os.close(self._write_end)


@contextlib.contextmanager
def _raw_terminal(what: Attendance, streams: Streams) -> Iterator[None]:
    """The user's terminal passes on every key; the container's has its size."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # what was typed already is not lost
    _resize(streams)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _resize(streams: Streams) -> None:
    with contextlib.suppress(OSError):
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        for descriptor in streams.outputs:
            fcntl.ioctl(descriptor, termios.TIOCSWINSZ, size)


class _Relay:
    """Passes on, until the first process has ended and its output is here."""

    def __init__(self, what: Attendance, streams: Streams, log: Log, pidfd: int, signals: _Signals | None,
                 visitors: Visitors | None) -> None:  # fmt: skip
        self.what, self.streams, self.log, self.pidfd, self.signals, self.visitors = what, streams, log, pidfd, signals, visitors
        self.selector = selectors.DefaultSelector()
        self.waiting = bytearray()  # for the container's standard input
        self.last = False  # nothing more comes after that
        self.ended = False

    def run(self) -> None:
        what, streams, selector = self.what, self.streams, self.selector
        for descriptor in streams.outputs:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        selector.register(self.pidfd, selectors.EVENT_READ)
        if self.signals:
            selector.register(self.signals.read_end, selectors.EVENT_READ)
        if self.visitors:
            self.visitors.meet(self.feed, self.resize)
        if what.interactive and what.foreground:
            try:
                selector.register(0, selectors.EVENT_READ)
            except PermissionError:  # an ordinary file is always readable, and epoll does not take it
                self.feed(sys.stdin.buffer.read(), last=True)
        open_outputs = set(streams.outputs)
        while open_outputs or not self.ended:
            events = selector.select(0.05 if self.ended else None)
            if self.ended and not any(key.data is None for key, _ in events):
                break  # a process that it left behind holds the pipe; its output is not waited for
            for key, _ in events:
                if key.data is not None:
                    key.data()
                elif key.fd in streams.outputs:
                    if not self._copy(key.fd):
                        if what.system and what.terminal and not self.ended:
                            _hold(streams, key.fd)
                            continue
                        selector.unregister(key.fd)
                        open_outputs.discard(key.fd)
                else:
                    self._event(key.fd)
        selector.close()
        if streams.stdin >= 0:
            os.close(streams.stdin)
            streams.stdin = -1

    def _event(self, descriptor: int) -> None:
        if descriptor == self.pidfd:
            self.selector.unregister(self.pidfd)
            self.ended = True
        elif self.signals and descriptor == self.signals.read_end:
            for number in self.signals.take():
                if number == signal.SIGWINCH:
                    _resize(self.streams)
                else:
                    with contextlib.suppress(OSError):
                        signal.pidfd_send_signal(self.pidfd, number)
        elif descriptor == 0:
            try:
                piece = os.read(0, PIECE)
            except OSError:  # the terminal is gone
                piece = b""
            if not piece:
                self.selector.unregister(0)
            self.feed(piece, last=not piece)

    def resize(self, size: bytes) -> None:
        """struct winsize."""
        for descriptor in self.streams.outputs if self.what.terminal else ():
            with contextlib.suppress(OSError):
                fcntl.ioctl(descriptor, termios.TIOCSWINSZ, size)

    def _copy(self, descriptor: int) -> bool:
        try:
            piece = os.read(descriptor, PIECE)
        except BlockingIOError:
            return True
        except OSError:  # EIO: the other end of a terminal is closed
            return False
        if not piece:
            return False
        stream = self.streams.outputs[descriptor]
        self.log.add(stream, piece)
        if self.visitors:
            self.visitors.tell(stream, piece)
        if self.what.foreground:
            view = memoryview(piece)
            to = 2 if stream == "stderr" else 1
            while view:
                try:
                    view = view[os.write(to, view) :]
                except BrokenPipeError:
                    break
        return True

    def feed(self, piece: bytes, *, last: bool = False) -> None:
        """As much of the input as the container takes now; the rest when it takes more."""
        self.waiting += piece
        self.last = self.last or last
        self._feed()

    def _feed(self) -> None:
        streams, waiting = self.streams, self.waiting
        if streams.stdin < 0:
            waiting.clear()
            return
        while waiting:
            try:
                del waiting[: os.write(streams.stdin, waiting[:PIECE])]
            except BlockingIOError:
                if streams.stdin not in self.selector.get_map():
                    self.selector.register(streams.stdin, selectors.EVENT_WRITE, self._feed)
                return
            except OSError:  # it has closed its standard input
                waiting.clear()
                self.last = True
        if streams.stdin in self.selector.get_map():
            self.selector.unregister(streams.stdin)
        if self.last and streams.console is None:
            os.close(streams.stdin)
            streams.stdin = -1


def _hold(streams: Streams, terminal: int) -> None:
    """After the last process closed the console, or vhangup(2): with its other end open again, it can be read again."""
    if streams.held >= 0:
        os.close(streams.held)
    streams.held = fcntl.ioctl(terminal, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
