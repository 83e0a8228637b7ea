"""Between the user's terminal and the container's, for `run` and `exec` in the foreground."""

from __future__ import annotations

import _signal  # `signal` takes three milliseconds for its enums
import fcntl
import os
import select
import termios

from xuni.container.foreground import pass_on, reap
from xuni.container.step import Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_CHUNK: Final = 65536


def attend(made: Run) -> int:
    """Pass bytes, window sizes and signals until the process ends; the exit status."""
    mask = 0
    for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
        mask |= 1 << number - 1
    signals = made.kernel.signalfd(mask)
    saved = _raw(0) if os.isatty(0) else None
    _resize(made.console)
    try:
        return _pass(made, signals)
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)


def _pass(made: Run, signals: int) -> int:
    waiting = select.poll()
    for descriptor in (0, made.console, signals):
        waiting.register(descriptor, select.POLLIN)
    typed = b""  # what the container's terminal has not taken yet
    os.set_blocking(made.console, False)
    status = None
    while True:
        # Once the process has ended, what is left in its terminal is all that may still come.
        ready = dict(waiting.poll(None if status is None else 0))
        if made.console in ready and not _show(made.console):
            waiting.unregister(made.console)
            if status is not None:
                return status
            ready.pop(made.console)
        elif status is not None and made.console not in ready:
            return status
        if signals in ready:
            for number in _read_signals(signals):
                if number == _signal.SIGCHLD:
                    ended = reap(made.pid)
                    status = ended if ended is not None else status
                elif number == _signal.SIGWINCH:
                    _resize(made.console)
                else:
                    pass_on(made, number)
        if 0 in ready and not typed:
            try:
                typed = os.read(0, _CHUNK)
            except OSError:
                typed = b""
            if not typed:
                waiting.unregister(0)
        if typed:
            try:
                typed = typed[os.write(made.console, typed) :]
            except BlockingIOError:
                pass
            except OSError:
                typed = b""
            if typed:
                select.select([], [made.console], [], 0.05)


def _show(console: int) -> bool:
    """What the container wrote. False if nobody has its terminal open any more."""
    try:
        said = os.read(console, _CHUNK)
    except BlockingIOError:
        return True
    except OSError:  # EIO: the last one has closed it
        return False
    while said:
        said = said[os.write(1, said) :]
    return True


def _read_signals(descriptor: int) -> list[int]:
    """struct signalfd_siginfo: 128 bytes, the number first."""
    try:
        records = os.read(descriptor, 128 * 64)
    except BlockingIOError:
        return []
    return [int.from_bytes(records[at : at + 4], "little") for at in range(0, len(records), 128)]


def _resize(console: int) -> None:
    for descriptor in (0, 1, 2):
        try:
            size = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
        except OSError:
            continue
        if any(size):
            fcntl.ioctl(console, termios.TIOCSWINSZ, size)
        return


def _raw(descriptor: int) -> Any:
    """Raw mode, but for new lines, which the container's terminal leaves to this one; what was set before."""
    before = termios.tcgetattr(descriptor)
    mode = termios.tcgetattr(descriptor)
    mode[0] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL
                 | termios.IXON)  # fmt: skip
    mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
    return before
