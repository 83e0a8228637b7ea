"""The function made of machine code that enters a guest."""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests.host.kvm.conftest import CODE, Box
from xuni.host.alarm import Alarm
from xuni.host.kvm import reasons
from xuni.host.kvm.entry import FAILED, Entry, port_access


@pytest.fixture
def entry(box: Box) -> Iterator[Entry]:
    made = Entry(box.vcpu)
    alarm = Alarm()
    box.vcpu.set_signal_mask(alarm.blocked)
    alarm.set(time.monotonic_ns() + 5_000_000_000)
    yield made
    alarm.close()
    made.close()
    assert made.call() == FAILED


def test_port_accesses(box: Box, entry: Entry) -> None:
    box.load("b8 34 12 e7 42 ba 00 ff ef ec f4")  # mov ax, 0x1234; out 0x42, ax; mov dx, 0xff00; out dx, ax; in al, dx; hlt
    assert port_access(entry.call()) == (True, 0x42, 2, 0x1234)
    assert port_access(entry.call()) == (True, 0xFF00, 2, 0x1234)
    out, port, size, _ = port_access(entry.call())
    assert (out, port, size) == (False, 0xFF00, 1)
    assert entry.call() == 0 and reasons.reason(box.vcpu.run_page) == reasons.Hlt()


def test_another_task_priority_has_to_be_looked_at(box: Box, entry: Entry) -> None:
    box.load("e6 42 e6 43 f4")
    entry.cr8 = 3
    assert entry.call() == 0
    assert reasons.reason(box.vcpu.run_page) == reasons.Io(True, 1, 0x42, 1, 4096)
    box.vcpu.run_page.cr8 = 3
    assert port_access(entry.call()) == (True, 0x43, 1, 0) and entry.cr8 == 3


def test_an_interruption_is_an_error_number(box: Box, entry: Entry) -> None:
    box.load("eb fe")
    box.vcpu.run_page.immediate_exit = 1
    assert (1 << 64) - entry.call() == errno.EINTR


def test_others_run_meanwhile(box: Box, entry: Entry) -> None:
    """The GIL is released: else this thread's guest would never be interrupted by the other thread."""
    box.load("eb fe")
    alarm = Alarm()
    ringer = threading.Thread(target=lambda: (time.sleep(0.05), alarm.ring()))
    ringer.start()
    assert (1 << 64) - entry.call() == errno.EINTR
    ringer.join()
    alarm.silence()
    alarm.close()
    assert box.vcpu.regs().rip == CODE


def test_no_reference_is_lost_or_kept(box: Box, entry: Entry) -> None:
    box.load("ba 00 ff ee eb fd")  # mov dx, 0xff00; again: out dx, al; jmp again
    entry.call()
    before = sys.getrefcount(None)
    for _ in range(1000):
        entry.call()
    assert abs(sys.getrefcount(None) - before) < 100
