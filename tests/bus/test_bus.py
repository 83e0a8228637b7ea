"""Dispatch by address, wires with several sources, interrupt messages, timers."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xuni.bus.lines import InterruptLines
from xuni.bus.messages import Delivery, InterruptMessage, decode_msi
from xuni.bus.mmio import Mmio
from xuni.bus.ports import Ports
from xuni.bus.timers import NEVER, Timers


@dataclass
class Bytes:
    """An 8-bit chip: RAM."""

    data: bytearray = field(default_factory=lambda: bytearray(range(0x10, 0x20)))

    def read(self, offset: int) -> int:
        return self.data[offset]

    def write(self, offset: int, value: int) -> None:
        self.data[offset] = value


@dataclass
class Wide:
    """Remembers accesses, answers with more bits than asked for."""

    log: list[tuple[int, ...]] = field(default_factory=list)

    def read(self, offset: int, size: int) -> int:
        self.log.append((offset, size))
        return 0x1122_3344_5566_7788_99

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size, value))


def test_wide_accesses_to_an_8_bit_chip_are_split_lowest_byte_first():
    ports, chip = Ports(), Bytes()
    ports.attach(0x100, 16, chip)
    assert ports.read(0x100, 4) == 0x13121110
    ports.write(0x104, 2, 0xABCD)
    assert chip.data[4:6] == b"\xcd\xab"


def test_a_wide_device_sees_sizes_and_cannot_answer_beyond_them():
    ports, device = Ports(), Wide()
    ports.attach_wide(0x200, 8, device)
    assert ports.read(0x202, 2) == 0x8899
    ports.write(0x204, 1, 0xFFF)
    assert device.log == [(2, 2), (4, 1, 0xFF)]


def test_unclaimed_ports_read_all_ones_byte_by_byte():
    ports = Ports()
    ports.attach(0xFFFE, 2, Bytes())
    assert ports.read(0x80, 4) == 0xFFFF_FFFF
    assert ports.read(0xFFFD, 2) == 0x10FF
    assert ports.read(0xFFFF, 4) == 0xFFFF_FF11  # the port space wraps round
    ports.write(0x80, 4, 1)


def test_an_access_across_the_end_of_a_wide_device_is_split():
    ports, device = Ports(), Wide()
    ports.attach_wide(0x200, 2, device)
    assert ports.read(0x201, 2) == 0xFF99
    assert device.log == [(1, 1)]


def test_ports_cannot_be_claimed_twice_until_given_back():
    ports = Ports()
    ports.attach(0x10, 4, Bytes())
    with pytest.raises(ValueError, match="Wide: port 0x13 already belongs to Bytes"):
        ports.attach_wide(0x13, 4, Wide())
    with pytest.raises(ValueError, match="outside the port space"):
        ports.attach(0xFFFF, 2, Bytes())
    assert ports.owner(0x13) == "Bytes"
    ports.detach(0x10, 4)
    assert ports.read(0x13, 1) == 0xFF
    ports.attach_wide(0x13, 4, Wide())


def test_mmio_ranges_are_found_refused_and_given_back():
    mmio, low, high = Mmio(), Wide(), Wide()
    mmio.attach(0x2000, 0x1000, high)
    mmio.attach(0x1000, 0x800, low)
    assert mmio.read(0x1004, 4) == 0x66778899
    mmio.write(0x2FF8, 8, 5)
    assert low.log == [(4, 4)]
    assert high.log == [(0xFF8, 8, 5)]
    assert mmio.read(0x1800, 8) == mmio.read(0, 8) == mmio.read(1 << 63, 8) == (1 << 64) - 1
    for base, size in ((0x17FF, 1), (0x800, 0x801), (0x1800, 0x801), (0, 0x10000), (0x2FFF, 1)):
        with pytest.raises(ValueError, match="overlaps Wide"):
            mmio.attach(base, size, Wide())
    mmio.attach(0x1800, 0x800, Wide())
    mmio.detach(0x1000)
    assert mmio.read(0x1000, 1) == 0xFF


def test_an_mmio_access_across_an_edge_is_split():
    mmio, device = Mmio(), Wide()
    mmio.attach(0x1002, 2, device)
    assert mmio.read(0x1000, 4) == 0x9999_FFFF
    mmio.write(0x1003, 2, 0xAABB)
    assert device.log == [(0, 1), (1, 1), (1, 1, 0xBB)]


def test_a_shared_wire_is_asserted_while_one_source_asserts_it():
    lines, seen = InterruptLines(), []
    lines.connect(5, seen.append)
    one, two = lines.source(5), lines.source(5)
    one.set(True)
    one.set(True)
    two.set(True)
    one.set(False)
    assert seen == [True]
    two.set(False)
    assert seen == [True, False]
    two.edge()
    two.edge()
    assert seen == [True, False, True, False, True]


def test_message_signalled_interrupts_are_decoded():
    assert decode_msi(0xFEE0_3000, 0x0041) == InterruptMessage(0x41, 3)
    assert decode_msi(0xFEEF_F00C, 0xC741) == InterruptMessage(
        0x41, 0xFF, logical=True, delivery=Delivery.EXTINT, level=True
    )
    assert decode_msi(0xFEE0_1008, 0x0041).delivery is Delivery.LOWEST_PRIORITY


class Clock:
    def __init__(self) -> None:
        self.now = 0


def test_timers_fire_in_order_once_and_announce_the_earliest_deadline():
    clock, fired, announced = Clock(), [], []
    timers = Timers(lambda: clock.now)
    timers.on_deadline = announced.append
    a, b = timers.timer(lambda: fired.append("a")), timers.timer(lambda: fired.append("b"))
    a.set(200)
    b.set(100)
    assert announced == [200, 100]
    clock.now = 99
    timers.run_due()
    assert fired == []
    clock.now = 300
    timers.run_due()
    timers.run_due()
    assert fired == ["b", "a"]
    assert timers.deadline == NEVER and announced[-1] == NEVER
    assert not a.armed


def test_a_timer_can_be_moved_cancelled_and_set_again_by_another():
    clock, fired = Clock(), []
    timers = Timers(lambda: clock.now)
    moved = timers.timer(lambda: fired.append("moved"))
    cancelled = timers.timer(lambda: fired.append("cancelled"))
    first = timers.timer(lambda: (cancelled.cancel(), first.set(clock.now)))
    first.set(1)
    cancelled.set(2)
    moved.set(2)
    moved.set(500)
    moved.set(2)
    moved.set(400)
    clock.now = 10
    timers.run_due()  # a timer that sets itself into the past fires in the next round, not for ever in this one
    assert fired == [] and timers.deadline == 10
    first.cancel()
    assert timers.deadline == 400


def test_setting_timers_again_and_again_does_not_fill_memory():
    timers = Timers(lambda: 0)
    early, timer = timers.timer(lambda: None), timers.timer(lambda: None)
    early.set(1)
    for deadline in range(10_000):
        timer.set(1000 + deadline)
    assert len(timers._heap) <= 4097
    assert timers.deadline == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50) | st.none()), max_size=40))
def test_the_announced_deadline_is_always_the_earliest(steps):
    timers = Timers(lambda: 0)
    each = [timers.timer(lambda: None) for _ in range(6)]
    for index, deadline in steps:
        each[index].cancel() if deadline is None else each[index].set(deadline)
        assert timers.deadline == min(timer.deadline for timer in each)
