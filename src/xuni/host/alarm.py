"""An interruption of one thread's system call, at a time or at once: how a processor that executes a guest is called back.

The signal is SIGURG, blocked in the thread for good and let through only inside the call (KVM_SET_SIGNAL_MASK, ppoll): a
signal that comes a moment too early waits and ends the next call. No handler ever runs; should it reach a thread that
does not block it, its default action is nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from typing import Final

SIGNAL: Final = signal.SIGURG
CLOCK_MONOTONIC: Final = 1
SIGEV_THREAD_ID: Final = 4
TIMER_ABSTIME: Final = 1
NEVER: Final = (1 << 63) - 1
SECOND: Final = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


class _SigEvent(ctypes.Structure):
    _fields_ = [("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int), ("tid", ctypes.c_int),
                ("pad", ctypes.c_int * 11)]  # fmt: skip


class _ITimerSpec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")]


class Alarm:
    """Belongs to the thread that makes it. `set` and `ring` may be called from any thread, and from a signal handler."""

    def __init__(self) -> None:
        self.thread = threading.get_native_id()
        self._timer = ctypes.c_void_p()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
        self.blocked = frozenset(int(number) for number in before) - {int(SIGNAL)}
        """The signals that the thread blocks besides, for the call that lets this one through."""
        event = _SigEvent(None, SIGNAL, SIGEV_THREAD_ID, self.thread)
        if _libc.timer_create(CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)):
            number = ctypes.get_errno()
            raise OSError(number, f"timer_create: {os.strerror(number)}")
        self._spec = _ITimerSpec()
        self.silence()  # what came for an alarm that this thread had before

    def set(self, nanoseconds: int) -> None:
        """Interrupt when CLOCK_MONOTONIC reaches this, at once if it has; replaces the former time. `NEVER`: do not."""
        spec = self._spec
        if nanoseconds >= NEVER:
            spec.value_s = spec.value_ns = 0
        else:
            spec.value_s, spec.value_ns = divmod(max(nanoseconds, 1), SECOND)
        _libc.timer_settime(self._timer, TIMER_ABSTIME, ctypes.byref(spec), None)

    def ring(self) -> None:
        """Interrupt now."""
        if self.thread:
            _libc.tgkill(os.getpid(), self.thread, SIGNAL)

    def silence(self) -> None:
        """In its own thread: forget interruptions that have come."""
        while signal.sigtimedwait((SIGNAL,), 0):
            pass

    def close(self) -> None:
        """No more interruptions; no-op when repeated."""
        if self.thread:
            _libc.timer_delete(self._timer)
            if self.thread == threading.get_native_id():
                self.silence()
            self.thread = 0

    def __del__(self) -> None:
        self.close()
