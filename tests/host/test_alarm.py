"""Interruptions of a thread."""

from __future__ import annotations

import signal
import threading
import time

from xuni.host.alarm import NEVER, SIGNAL, Alarm


def in_thread(function) -> object:
    """In a thread of its own, whose signal mask nobody else has."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(10)
    assert found, "the thread did not end"
    return found[0]


def test_the_signal_waits_until_it_is_forgotten() -> None:
    def body() -> tuple[bool, bool, bool]:
        alarm = Alarm()
        before = SIGNAL in signal.sigpending()
        alarm.ring()
        alarm.ring()
        waiting = SIGNAL in signal.sigpending()
        alarm.silence()
        after = SIGNAL in signal.sigpending()
        alarm.close()
        return before, waiting, after

    assert in_thread(body) == (False, True, False)


def test_a_time() -> None:
    def body() -> list[bool]:
        alarm = Alarm()
        alarm.set(time.monotonic_ns() + 10_000_000)
        found = [signal.sigtimedwait((SIGNAL,), 5) is not None]
        alarm.set(time.monotonic_ns() - 1)  # has passed
        found.append(signal.sigtimedwait((SIGNAL,), 5) is not None)
        alarm.set(time.monotonic_ns() + 10_000_000)
        alarm.set(NEVER)
        found.append(signal.sigtimedwait((SIGNAL,), 0.05) is None)
        alarm.close()
        alarm.close()
        return found

    assert in_thread(body) == [True, True, True]


def test_from_another_thread() -> None:
    alarms: list[Alarm] = []
    ready, rung = threading.Event(), threading.Event()

    def body() -> bool:
        alarms.append(Alarm())
        ready.set()
        rung.wait(5)
        return signal.sigtimedwait((SIGNAL,), 5) is not None

    def ring() -> None:
        ready.wait(5)
        alarms[0].ring()
        rung.set()

    helper = threading.Thread(target=ring)
    helper.start()
    assert in_thread(body) is True
    helper.join(5)
    alarms[0].close()
    alarms[0].ring()  # nobody is there any more
