"""MC146818A against the data sheet, and the CMOS cells that firmware fills."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from xuni.devices.rtc import Reg, Rtc, memory_size_cells

SECOND = 1_000_000_000
START = datetime(2026, 2, 28, 23, 59, 58, 250_000, tzinfo=UTC)


@pytest.fixture
def rtc(clock, irq) -> Rtc:
    return Rtc(clock.timers, irq.line, lambda: START, memory_size_cells(5 << 30))


def get(rtc: Rtc, index: int) -> int:
    rtc.write(0, index)
    return rtc.read(1)


def put(rtc: Rtc, index: int, value: int) -> None:
    rtc.write(0, index)
    rtc.write(1, value)


def time(rtc: Rtc) -> list[int]:
    """Century, year, month, day, weekday, hours, minutes, seconds as the cells show them."""
    cells = (Reg.CENTURY, Reg.YEAR, Reg.MONTH, Reg.DAY, Reg.WEEKDAY, Reg.HOURS, Reg.MINUTES, Reg.SECONDS)
    return [get(rtc, cell) for cell in cells]


def test_shows_the_hosts_time_in_bcd_and_goes_on_with_the_guest_clock(rtc, clock):
    assert time(rtc) == [0x20, 0x26, 0x02, 0x28, 7, 0x23, 0x59, 0x58]
    clock.advance(750_000_000)
    assert get(rtc, Reg.SECONDS) == 0x59
    clock.advance(SECOND)
    assert time(rtc) == [0x20, 0x26, 0x03, 0x01, 1, 0x00, 0x00, 0x00]


def test_binary_and_12_hour_formats(rtc, clock):
    put(rtc, Reg.B, 0x06)
    assert time(rtc)[5:] == [23, 59, 58]
    put(rtc, Reg.B, 0x00)
    assert get(rtc, Reg.HOURS) == 0x91  # 11 PM
    clock.advance(2 * SECOND)
    assert get(rtc, Reg.HOURS) == 0x12  # midnight is 12 AM
    clock.advance(12 * 3600 * SECOND)
    assert get(rtc, Reg.HOURS) == 0x92


def test_update_in_progress_precedes_each_second(rtc, clock):
    clock.advance(749_700_000)
    assert not get(rtc, Reg.A) & 0x80
    clock.advance(100_000)
    assert get(rtc, Reg.A) & 0x80
    clock.advance(200_000)
    assert not get(rtc, Reg.A) & 0x80


def test_set_mode_holds_the_time_while_it_is_written(rtc, clock):
    put(rtc, Reg.B, 0x82)
    clock.advance(5 * SECOND)
    assert get(rtc, Reg.SECONDS) == 0x58 and not get(rtc, Reg.A) & 0x80
    for cell, value in ((Reg.CENTURY, 0x19), (Reg.YEAR, 0x99), (Reg.MONTH, 0x12), (Reg.DAY, 0x31), (Reg.HOURS, 0x23),
                        (Reg.MINUTES, 0x59), (Reg.SECONDS, 0x59)):  # fmt: skip
        put(rtc, cell, value)
    put(rtc, Reg.B, 0x02)
    clock.advance(499_999_999)
    assert time(rtc)[:2] == [0x19, 0x99]
    clock.advance(1)  # the first update comes half a second after the clock was set going
    assert time(rtc) == [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]


def test_an_impossible_date_is_ignored(rtc):
    put(rtc, Reg.B, 0x82)
    put(rtc, Reg.MONTH, 0x55)
    put(rtc, Reg.B, 0x02)
    assert get(rtc, Reg.MONTH) == 0x02


@pytest.mark.parametrize("century", [0x00, 0x99, 0xFF])
def test_a_year_at_the_end_of_time_is_ignored(rtc, clock, century):
    put(rtc, Reg.B, 0x82)
    put(rtc, Reg.CENTURY, century)
    put(rtc, Reg.YEAR, 0x99 if century else 0x01)
    put(rtc, Reg.B, 0x02)
    clock.advance(366 * 86_400 * SECOND)
    assert get(rtc, Reg.CENTURY) == 0x20


def test_set_clears_the_update_interrupt_enable(rtc):
    put(rtc, Reg.B, 0x92)
    assert get(rtc, Reg.B) == 0x82


def test_the_update_interrupt_comes_each_second_and_holds_until_c_is_read(rtc, clock, irq):
    put(rtc, Reg.HOURS_ALARM, 0x01)
    put(rtc, Reg.B, 0x12)
    clock.advance(749_999_999)
    assert not irq.level
    clock.advance(1)
    assert irq.level
    clock.advance(3 * SECOND)
    assert irq.edges == 1
    assert get(rtc, Reg.C) == 0x90 | 0x40  # the periodic flag is set too: its rate is on, its enable off
    assert not irq.level and get(rtc, Reg.C) == 0
    clock.advance(SECOND)
    assert irq.edges == 2


def test_the_periodic_interrupt_follows_the_rate(rtc, clock, irq):
    put(rtc, Reg.B, 0x42)
    for _ in range(1024):
        clock.advance(SECOND // 1024 + 1)
        assert irq.level
        assert get(rtc, Reg.C) & 0xC0 == 0xC0
    put(rtc, Reg.A, 0x2F)  # 2 Hz
    edges = irq.edges
    for _ in range(100):
        clock.advance(SECOND // 10)
        get(rtc, Reg.C)
    assert irq.edges - edges in (19, 20)
    put(rtc, Reg.A, 0x20)  # off
    edges = irq.edges
    clock.advance(SECOND)
    assert irq.edges == edges


def test_the_alarm_matches_time_and_dont_care_codes(rtc, clock, irq):
    for cell, value in ((Reg.HOURS_ALARM, 0x00), (Reg.MINUTES_ALARM, 0x00), (Reg.SECONDS_ALARM, 0x02)):
        put(rtc, cell, value)
    put(rtc, Reg.B, 0x22)
    clock.advance(3 * SECOND)
    assert not irq.level
    clock.advance(750_000_000)
    assert irq.level and get(rtc, Reg.C) & 0xA0 == 0xA0
    for cell in (Reg.HOURS_ALARM, Reg.MINUTES_ALARM, Reg.SECONDS_ALARM):
        put(rtc, cell, 0xFF)
    for _ in range(5):
        clock.advance(SECOND)
        assert get(rtc, Reg.C) & 0x20


def test_flags_are_set_without_any_interrupt_enabled(rtc, clock, irq):
    get(rtc, Reg.C)
    clock.advance(SECOND)
    assert get(rtc, Reg.C) == 0x50
    assert irq.edges == 0 and not clock.timers.deadline < 1 << 62


def test_ram_valid_read_only_registers_and_the_index(rtc):
    assert get(rtc, Reg.D) == 0x80
    put(rtc, Reg.D, 0)
    put(rtc, Reg.C, 0xFF)
    assert get(rtc, Reg.D) == 0x80
    put(rtc, Reg.SHUTDOWN, 0x0A)
    assert get(rtc, 0x80 | Reg.SHUTDOWN) == 0x0A  # bit 7 of the index masks NMIs
    assert rtc.read(0) == 0xFF


def test_memory_sizes(rtc):
    def word(low: int) -> int:
        return get(rtc, low) | get(rtc, low + 1) << 8

    assert (word(0x15), word(0x17), word(0x30)) == (640, 0xFFFF, 0xFFFF)
    assert word(0x34) << 16 == (3 << 30) - (16 << 20)
    assert (get(rtc, 0x5B) | get(rtc, 0x5C) << 8 | get(rtc, 0x5D) << 16) << 16 == 2 << 30
    assert memory_size_cells(64 << 20)[0x34] == 48 << 4 & 0xFF
    assert memory_size_cells(1 << 20)[0x17] == 0


def test_reset_turns_interrupts_off_and_keeps_the_memory(rtc, clock, irq):
    put(rtc, 0x40, 0x77)
    put(rtc, Reg.B, 0x72)
    clock.advance(SECOND)
    rtc.reset()
    assert not irq.level
    assert get(rtc, Reg.B) == 0x02 and get(rtc, 0x40) == 0x77
