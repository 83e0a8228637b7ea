"""The 8254 against the data sheet. Times are in ticks of 1.193182 MHz, converted by `tick`."""

from __future__ import annotations

import pytest

from xuni.devices.pit import Pit8254, time_of

CONTROL = 3


@pytest.fixture
def pit(clock, irq) -> Pit8254:
    return Pit8254(clock.timers, irq.line)


def program(pit: Pit8254, counter: int, mode: int, count: int, access: int = 3, bcd: int = 0) -> None:
    pit.write(CONTROL, counter << 6 | access << 4 | mode << 1 | bcd)
    if access & 1:
        pit.write(counter, count & 0xFF)
    if access & 2:
        pit.write(counter, count >> 8)


def count(pit: Pit8254, counter: int) -> int:
    pit.write(CONTROL, counter << 6)
    return pit.read(counter) | pit.read(counter) << 8


def status(pit: Pit8254, counter: int) -> int:
    pit.write(CONTROL, 0xE0 | 2 << counter)
    return pit.read(counter)


def tick(clock, ticks: int) -> None:
    """To the moment when so many ticks have passed since 0."""
    clock.advance(time_of(ticks) - clock.now)


def test_mode_2_counts_down_reloads_and_interrupts_each_period(pit, clock, irq):
    program(pit, 0, 2, 1000)
    assert irq.edges == 1  # OUT is high from power-on
    tick(clock, 1)
    assert count(pit, 0) == 999
    tick(clock, 999)
    assert count(pit, 0) == 1 and not status(pit, 0) & 0x80
    assert irq.edges == 1
    tick(clock, 1000)
    assert count(pit, 0) == 1000 and status(pit, 0) & 0x80
    assert irq.edges == 2
    tick(clock, 100_000)
    assert irq.edges == 101


def test_a_count_of_zero_is_65536(pit, clock, irq):
    program(pit, 0, 2, 0)
    tick(clock, 65535)
    assert irq.edges == 1 and count(pit, 0) == 1
    tick(clock, 65536)
    assert irq.edges == 2 and count(pit, 0) == 0


def test_mode_3_counts_by_two_and_gives_a_square_wave(pit, clock, irq):
    program(pit, 0, 3, 1000)
    tick(clock, 100)
    assert count(pit, 0) == 800 and status(pit, 0) & 0x80
    tick(clock, 600)
    assert count(pit, 0) == 800 and not status(pit, 0) & 0x80
    tick(clock, 10_000)
    assert irq.edges == 11


def test_mode_3_with_an_odd_count_is_high_for_one_tick_more(pit, clock):
    program(pit, 1, 3, 5)
    levels = []
    for now in range(10):
        tick(clock, now)
        levels.append(status(pit, 1) >> 7)
    assert levels == [1, 1, 1, 0, 0] * 2


def test_mode_0_raises_its_output_once_and_counts_on(pit, clock, irq):
    program(pit, 0, 0, 500)
    irq.edges = 0
    assert not irq.level
    tick(clock, 499)
    assert not irq.level
    tick(clock, 500)
    assert irq.level and irq.edges == 1
    tick(clock, 501)
    assert count(pit, 0) == 0xFFFF
    tick(clock, 200_000)
    assert irq.edges == 1
    pit.write(0, 10)  # the first byte stops it and lowers OUT
    assert not irq.level
    clock.advance(1_000_000)
    assert irq.edges == 1
    pit.write(0, 0)
    clock.advance(1_000_000)
    assert irq.edges == 2


def test_mode_4_strobes_after_the_count(pit, clock, irq):
    program(pit, 0, 4, 100)
    before = irq.edges
    tick(clock, 99)
    assert status(pit, 0) & 0x80
    tick(clock, 100)
    assert not status(pit, 0) & 0x80
    tick(clock, 101)
    assert status(pit, 0) & 0x80 and irq.edges == before + 1


def test_modes_1_and_5_wait_for_the_gate(pit, clock):
    for mode, low in ((1, range(50)), (5, range(50, 51))):
        start = clock.now
        program(pit, 2, mode, 50)
        clock.advance(1_000_000)
        assert status(pit, 2) & 0x80 and count(pit, 2) == 50
        pit.counters[2].set_gate(True)
        start = clock.now
        for ticks in (0, 1, 49, 50, 51, 60):
            clock.advance(start + time_of(ticks) - clock.now)
            assert bool(status(pit, 2) & 0x80) == (ticks not in low), (mode, ticks)
        pit.counters[2].set_gate(False)
        clock.advance(1_000)
        pit.counters[2].set_gate(True)  # retriggers
        assert count(pit, 2) == 50
        pit.counters[2].set_gate(False)


def test_the_gate_pauses_mode_0_and_restarts_mode_2(pit, clock):
    gate = pit.counters[2].set_gate
    program(pit, 2, 0, 1000)
    clock.advance(1_000_000)
    assert count(pit, 2) == 1000  # the gate of counter 2 is low at power-on
    gate(True)
    clock.advance(time_of(100))
    gate(False)
    clock.advance(1_000_000)
    assert count(pit, 2) == 900
    gate(True)
    clock.advance(time_of(100))
    assert count(pit, 2) in (799, 800)
    program(pit, 2, 2, 1000)
    clock.advance(time_of(300))
    assert count(pit, 2) == 700
    gate(False)
    assert status(pit, 2) & 0x80
    gate(True)
    assert count(pit, 2) == 1000


def test_a_new_count_in_mode_2_takes_effect_at_the_end_of_the_period(pit, clock, irq):
    program(pit, 0, 2, 1000)
    tick(clock, 600)
    pit.write(0, 100)
    pit.write(0, 0)
    assert status(pit, 0) & 0x40  # null count: not loaded yet
    assert count(pit, 0) == 400
    tick(clock, 1000)
    assert irq.edges == 2
    tick(clock, 1050)
    assert count(pit, 0) in (50, 51) and not status(pit, 0) & 0x40
    tick(clock, 1101)
    assert irq.edges == 3


def test_a_latched_count_holds_until_read_and_ignores_a_second_latch(pit, clock):
    program(pit, 0, 2, 1000)
    tick(clock, 100)
    pit.write(CONTROL, 0x00)
    tick(clock, 200)
    pit.write(CONTROL, 0x00)
    assert pit.read(0) | pit.read(0) << 8 == 900
    assert pit.read(0) | pit.read(0) << 8 == 800


def test_read_back_latches_several_counters_status_first(pit, clock):
    program(pit, 0, 2, 0x1234)
    program(pit, 1, 3, 0x40, access=1)
    tick(clock, 4)
    pit.write(CONTROL, 0xC0 | 0x06)
    tick(clock, 20)
    assert pit.read(0) == 0xB4  # OUT, both bytes, mode 2
    assert pit.read(0) | pit.read(0) << 8 == 0x1230
    assert pit.read(1) == 0x96  # OUT, low byte, mode 3
    assert pit.read(1) == 0x38


def test_single_byte_access(pit, clock):
    program(pit, 0, 2, 0x1200, access=2)
    assert pit.read(0) == 0x12
    program(pit, 0, 2, 0x34, access=1)
    assert pit.read(0) == 0x34
    assert pit.counters[0].state.reload == 0x34


def test_bcd_counting(pit, clock):
    program(pit, 0, 2, 0x1000, bcd=1)
    tick(clock, 1)
    assert count(pit, 0) == 0x0999
    program(pit, 0, 2, 0, bcd=1)
    assert pit.counters[0].state.reload == 10_000


def test_the_control_word_stops_the_counter_until_a_count_comes(pit, clock, irq):
    program(pit, 0, 2, 1000)
    pit.write(CONTROL, 0x34)
    assert status(pit, 0) & 0x40
    edges = irq.edges
    clock.advance(10_000_000)
    assert irq.edges == edges


def test_the_dont_care_bit_of_modes_2_and_3(pit):
    program(pit, 0, 6, 10)
    assert status(pit, 0) & 0x0E == 4
    program(pit, 0, 7, 10)
    assert status(pit, 0) & 0x0E == 6


def test_a_tiny_period_does_not_flood_the_host(pit, clock, irq):
    program(pit, 0, 2, 2)
    clock.advance(10_000_000)
    assert 300 < irq.edges < 510


def test_reset_and_control_word_reads(pit, clock, irq):
    program(pit, 0, 2, 1000)
    pit.reset()
    edges = irq.edges
    clock.advance(10_000_000)
    assert irq.edges == edges and pit.read(CONTROL) == 0
