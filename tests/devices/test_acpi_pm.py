"""ACPI fixed hardware against ACPI 6.5, section 4.8."""

from __future__ import annotations

import pytest

from xuni.devices.acpi_pm import PM_TIMER_HZ, AcpiPm, AcpiPmConfig

STATUS, ENABLE, CONTROL, TIMER, GPE_STATUS, GPE_ENABLE = 0, 2, 4, 8, 0x20, 0x22
SLP_EN = 1 << 13
SLEEP_3 = 1 << 10 | SLP_EN
POWER_BUTTON = 1 << 8


@pytest.fixture
def events() -> list[object]:
    return []


@pytest.fixture
def pm(clock, irq, events) -> AcpiPm:
    config = AcpiPmConfig(s5_type=5)
    return AcpiPm(clock.timers, irq.line, lambda: events.append("off"), lambda: events.append("sleep"),
                  lambda: events.append("wake"), config)


def test_the_timer_runs_at_its_rate_and_wraps(pm, clock):
    clock.advance(1_000_000_000)
    assert pm.read(TIMER, 4) == PM_TIMER_HZ
    assert pm.read(TIMER + 1, 1) == PM_TIMER_HZ >> 8 & 0xFF
    clock.advance(1200 * 1_000_000_000)
    assert pm.read(TIMER, 4) == 1201 * PM_TIMER_HZ % (1 << 32)


def test_sleep_types(pm, events):
    pm.write(CONTROL, 2, 5 << 10)
    assert events == []
    pm.write(CONTROL, 2, 1 << 10 | SLP_EN)
    pm.write(CONTROL, 2, 3 << 10 | SLP_EN)  # not one of ours
    pm.write(CONTROL, 2, 5 << 10 | SLP_EN)
    assert events == ["sleep", "off"]
    assert pm.read(CONTROL, 2) == 5 << 10 | 1  # SLP_EN reads as zero; SCI_EN is not the guest's to clear here
    pm.write(CONTROL + 1, 1, 5 << 2 | SLP_EN >> 8)
    assert events == ["sleep", "off", "off"]


RTC, WAKE = 1 << 10, 1 << 15


def test_an_enabled_alarm_wakes_and_says_so(pm, events, irq):
    pm.alarm()
    assert pm.read(STATUS, 2) == RTC and events == [] and not irq.level
    pm.write(STATUS, 2, RTC)
    pm.write(CONTROL, 2, SLEEP_3)
    pm.alarm()
    assert events == ["sleep"], "not enabled"
    pm.write(STATUS, 2, RTC)
    pm.write(ENABLE, 2, RTC)
    pm.alarm()
    pm.alarm()
    assert events == ["sleep", "wake"]
    assert pm.read(STATUS, 2) == RTC | WAKE
    pm.write(CONTROL, 2, SLEEP_3)  # what is pending wakes at once
    assert events == ["sleep", "wake", "sleep", "wake"]


def test_the_power_button_wakes_always(pm, events):
    pm.write(CONTROL, 2, SLEEP_3)
    pm.press_power_button()
    assert events == ["sleep", "wake"] and pm.read(STATUS, 2) == POWER_BUTTON | WAKE


def test_the_power_button_interrupts_until_its_status_is_cleared(pm, irq):
    pm.press_power_button()
    assert not irq.level and pm.read(STATUS, 2) == POWER_BUTTON
    pm.write(ENABLE, 2, POWER_BUTTON)
    assert irq.level
    pm.write(STATUS, 2, 0)
    assert irq.level
    pm.write(STATUS + 1, 1, POWER_BUTTON >> 8)
    assert not irq.level


def test_status_and_enable_in_one_access(pm, irq):
    pm.press_power_button()
    pm.write(STATUS, 4, POWER_BUTTON << 16)
    assert pm.read(STATUS, 4) == POWER_BUTTON << 16 | POWER_BUTTON and irq.level
    pm.write(ENABLE, 2, 0xFFFF)
    assert pm.read(ENABLE, 2) == 0x0721  # reserved bits stay zero


def test_the_timers_highest_bit_sets_its_status_and_interrupts(clock, irq):
    pm = AcpiPm(clock.timers, irq.line, lambda: None, config=AcpiPmConfig(timer_bits=24))
    half = (1 << 23) * 1_000_000_000 // PM_TIMER_HZ + 1
    pm.write(ENABLE, 2, 1)
    clock.advance(half - 1)
    assert not irq.level and not pm.read(STATUS, 2) & 1
    clock.advance(1)
    assert irq.level and pm.read(STATUS, 2) & 1
    pm.write(STATUS, 2, 1)
    assert not irq.level
    clock.advance(half)
    assert irq.level


def test_the_carry_is_noticed_without_an_interrupt(clock, irq):
    pm = AcpiPm(clock.timers, irq.line, lambda: None, config=AcpiPmConfig(timer_bits=24))
    clock.advance(3_000_000_000)
    assert pm.read(STATUS, 2) & 1 and not irq.edges
    pm.write(STATUS, 2, 1)
    assert not pm.read(STATUS, 2) & 1


def test_general_purpose_events(pm, irq):
    pm.write(GPE_ENABLE, 2, 0x0004)
    pm.raise_gpe(3)
    assert not irq.level
    pm.raise_gpe(2)
    assert irq.level and pm.read(GPE_STATUS, 2) == 0x0C
    pm.write(GPE_STATUS, 1, 0x04)
    assert not irq.level and pm.read(GPE_STATUS, 4) == 0x0004_0008


def test_acpi_mode_is_switched_by_the_command_port(pm, irq):
    assert pm.read(CONTROL, 2) & 1
    pm.press_power_button()
    pm.write(ENABLE, 2, POWER_BUTTON)
    pm.smi.write(0, pm.config.disable_value)
    assert not pm.read(CONTROL, 2) & 1 and not irq.level
    pm.smi.write(0, pm.config.enable_value)
    assert pm.read(CONTROL, 2) & 1 and irq.level
    pm.smi.write(1, 0x5A)
    assert (pm.smi.read(0), pm.smi.read(1)) == (pm.config.enable_value, 0x5A)


def test_the_rest_of_the_block_reads_zero(pm):
    assert pm.read(0x10, 4) == pm.read(0x3C, 4) == pm.read(0x3F, 1) == 0
    pm.write(0x10, 4, 0xFFFF_FFFF)


def test_reset(pm, irq):
    pm.press_power_button()
    pm.write(ENABLE, 2, POWER_BUTTON)
    pm.reset()
    assert not irq.level and pm.read(STATUS, 4) == 0
