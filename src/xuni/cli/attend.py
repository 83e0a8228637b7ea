"""What the command does while a guest runs: the machine has a thread of its own, this one attends to the keyboard.

Standard input reaches the guest in one of three ways (`Input`): key by key from a terminal in raw mode, as a plain
stream into the first serial port, or in frames for a command in the guest that asks for them (`xuni.guest.session`).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Final, Protocol

from xuni.guest.session import MAX_FRAME, frame
from xuni.host import terminal

if TYPE_CHECKING:
    from xuni.machine.stopped import Stopped

STDIN: Final = 0
CHUNK: Final = 4096  # bytes read at once
ENOUGH: Final = 1 << 16  # bytes that wait for the guest before we stop reading
RECHECK: Final = 0.05  # seconds until we look again whether the guest took them
PATIENCE: Final = 3.0  # seconds in which a second Ctrl-C counts, and a machine told to stop must have stopped


class Stuck(Exception):
    """The machine was told to stop and does not. Its thread still runs: only `os._exit` is safe now."""


class Controlled(Protocol):
    """What runs: a machine, or its controller."""

    def run(self, timeout: float | None = None, /) -> Stopped:
        """To its end."""
        ...

    def interrupt(self) -> None:
        """End it, from another thread."""
        ...


class Input(Enum):
    """How standard input reaches the guest."""

    NONE = "none"
    KEYS = "keys"
    STREAM = "stream"
    FRAMES = "frames"


@dataclass(slots=True)
class Attendant:
    """Runs a machine to its end. `feed` hands bytes to the serial line that takes the input, where `backlog` wait.

    After `run`, `left` says that the user left by the escape key, and `signal` which signal ended it.
    """

    machine: Controlled
    input: Input
    feed: Callable[[bytes], None]
    backlog: Callable[[], int]
    patient: bool = True
    """A first SIGINT only warns."""
    left: bool = False
    signal: int = 0
    _wanted: bool = False
    _open: bool = True
    _interrupted_at: float = -PATIENCE
    _told_at: float | None = None
    _wake: tuple[int, int] = (-1, -1)
    _keys: terminal.Keys = field(default_factory=terminal.Keys)
    _outcome: Stopped | BaseException | None = None

    def want_input(self) -> None:
        """The guest asks for a frame; called from the machine's thread."""
        self._wanted = True
        self._poke()

    def run(self, timeout: float | None = None) -> Stopped:
        """Until the machine stops. What it raises is raised here."""
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with self._signals(), terminal.raw(STDIN) if self.input is Input.KEYS else nullcontext():
                runner = Thread(target=self._run_machine, args=(timeout,), name="machine", daemon=True)
                runner.start()
                while runner.is_alive():
                    self._turn()
                    if self._told_at is not None and time.monotonic() - self._told_at > PATIENCE:
                        raise Stuck
                runner.join()
        finally:
            for descriptor in self._wake:
                os.close(descriptor)
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def stop(self) -> None:
        """End the machine; `run` returns soon."""
        if self._told_at is None:
            self._told_at = time.monotonic()
            # In a thread of its own: the machine's lock may be held by one that waits for whoever reads our output.
            Thread(target=self.machine.interrupt, name="stop", daemon=True).start()

    def _run_machine(self, timeout: float | None) -> None:
        try:
            self._outcome = self.machine.run(timeout)
        except BaseException as error:
            self._outcome = error
        finally:
            self._poke()

    def _turn(self) -> None:
        """Wait for something to do and do it."""
        listen = [self._wake[0]]
        held = self.backlog() >= ENOUGH
        if self._reads_input() and not held:
            listen.append(STDIN)
        ready, _, _ = select.select(listen, [], [], RECHECK if held or self._told_at is not None else 1.0)
        if self._wake[0] in ready:
            os.read(self._wake[0], CHUNK)
        if STDIN in ready:
            self._read_input()

    def _reads_input(self) -> bool:
        if not self._open or self._told_at is not None:
            return False
        match self.input:
            case Input.NONE: return False
            case Input.FRAMES if not self._wanted: return False
        # Reading the terminal from the background would stop this process (SIGTTIN).
        return not os.isatty(STDIN) or terminal.is_interactive(STDIN)

    def _read_input(self) -> None:
        try:
            data = os.read(STDIN, MAX_FRAME if self.input is Input.FRAMES else CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # the terminal has gone
        self._open = bool(data)
        match self.input:
            case Input.FRAMES:
                self._wanted = False
                self.feed(frame(data))
            case Input.KEYS if data:
                self._type(data)
            case Input.KEYS:
                self.left = True
                self.stop()
            case _:
                self.feed(data)

    def _type(self, typed: bytes) -> None:
        for piece in self._keys.split(typed):
            match piece:
                case bytes():
                    self.feed(piece)
                case terminal.Key.HELP:
                    sys.stderr.write(terminal.HELP)
                    sys.stderr.flush()
                case terminal.Key.LEAVE:
                    self.left = True
                    self.stop()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT twice, SIGTERM or SIGHUP once, end the machine."""

        def on_signal(number: int, at: FrameType | None) -> None:
            now = time.monotonic()
            if self.patient and number == signal.SIGINT and now - self._interrupted_at > PATIENCE:
                self._interrupted_at = now
                os.write(2, b"\nxuni: press Ctrl-C again to end the guest\n")
                return
            self.signal = number
            self.stop()

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        # A handler runs only when select returns; the byte written here makes it return.
        wakeup = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _poke(self) -> None:
        try:
            os.write(self._wake[1], b"\0")
        except BlockingIOError:
            pass  # a full pipe wakes as well
