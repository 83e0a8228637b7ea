"""The keyboard controller and the keyboard behind it."""

from __future__ import annotations

import pytest

from xuni.devices.i8042 import COMMAND, DATA, I8042


@pytest.fixture
def events() -> list[object]:
    return []


@pytest.fixture
def kbd(irq, events) -> I8042:
    return I8042(irq.line, lambda: events.append("reset"), lambda level: events.append(level))


def command(kbd: I8042, *values: int) -> list[int]:
    """A controller command with its parameters; the answers."""
    kbd.write(COMMAND, values[0])
    for value in values[1:]:
        kbd.write(DATA, value)
    return drain(kbd)


def drain(kbd: I8042) -> list[int]:
    out = []
    while kbd.read(COMMAND) & 1:
        out.append(kbd.read(DATA))
    return out


def test_self_tests_and_ports(kbd):
    assert command(kbd, 0xAA) == [0x55]
    assert command(kbd, 0xAB) == [0x00]
    assert command(kbd, 0xC0) == [0x80]
    assert command(kbd, 0xD0) == [0x03]


def test_the_command_byte_reads_back(kbd):
    assert command(kbd, 0x60, 0x74) == []
    assert command(kbd, 0x20) == [0x74]
    assert kbd.read(COMMAND) & 0x04
    command(kbd, 0xAE)
    assert command(kbd, 0x20) == [0x64]
    command(kbd, 0xAD)
    command(kbd, 0xA8)
    assert command(kbd, 0x20) == [0x54]
    command(kbd, 0xA7)
    assert command(kbd, 0x20) == [0x74]


def test_the_status_tells_command_from_data(kbd):
    kbd.write(COMMAND, 0x60)
    assert kbd.read(COMMAND) & 0x08
    kbd.write(DATA, 0x61)
    assert not kbd.read(COMMAND) & 0x08


def test_scan_codes_interrupt_one_by_one(kbd, irq):
    assert kbd.press(b"\x1e\x9e") == 2
    assert irq.level and irq.edges == 1
    assert kbd.read(DATA) == 0x1E
    assert irq.level and irq.edges == 2
    assert kbd.read(DATA) == 0x9E
    assert not irq.level and kbd.read(DATA) == 0


def test_scan_codes_wait_while_the_keyboard_is_off_and_silently_without_interrupt(kbd, irq):
    command(kbd, 0xAD)
    kbd.press(b"\x1e")
    assert not kbd.read(COMMAND) & 1 and not irq.level
    kbd.write(COMMAND, 0x60)
    kbd.write(DATA, 0x60)
    assert kbd.read(COMMAND) & 1 and not irq.level


def test_the_queue_is_bounded(kbd):
    assert kbd.press(bytes(300)) == 256
    assert kbd.press(b"a") == 0


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        ([0xFF], [0xFA, 0xAA]),
        ([0xF2], [0xFA, 0xAB, 0x41]),
        ([0xEE], [0xEE]),
        ([0xED, 0x07], [0xFA, 0xFA]),
        ([0xF3, 0x20], [0xFA, 0xFA]),
        ([0xF0, 0x00], [0xFA, 0xFA, 0x02]),
        ([0xF6], [0xFA]),
        ([0x01], [0xFE]),
    ],
)
def test_keyboard_commands(kbd, sent, answers):
    got = []
    for value in sent:
        kbd.write(DATA, value)
        got += drain(kbd)
    assert got == answers


def test_a_disabled_keyboard_sends_nothing(kbd):
    kbd.write(DATA, 0xF5)
    assert drain(kbd) == [0xFA]
    assert kbd.press(b"\x1e") == 0
    kbd.write(DATA, 0xF4)
    assert drain(kbd) == [0xFA]
    assert kbd.press(b"\x1e") == 1


def test_without_translation_the_identity_is_raw(kbd):
    command(kbd, 0x60, 0x21)
    kbd.write(DATA, 0xF2)
    assert drain(kbd) == [0xFA, 0xAB, 0x83]


def test_there_is_no_pointing_device_and_drivers_learn_it_at_once(kbd, irq):
    kbd.write(COMMAND, 0xD3)
    kbd.write(DATA, 0x5A)
    assert kbd.read(COMMAND) & 0x21 == 0x01  # an answer, and not the pointing device's
    assert drain(kbd) == [0x5A]
    assert command(kbd, 0xA9)[0] not in (0x00, 0xFA, 0xFF)
    kbd.write(COMMAND, 0xD4)
    kbd.write(DATA, 0xFF)
    assert kbd.read(COMMAND) & 0x21 == 0x21 and not irq.level
    assert drain(kbd) == [0xFE]


def test_reset_by_pulse_and_by_output_port(kbd, events):
    kbd.write(COMMAND, 0xFE)
    assert events == ["reset"]
    kbd.write(COMMAND, 0xFF)  # pulses nothing
    assert events == ["reset"]
    command(kbd, 0xD1, 0x02)
    assert events == ["reset", True, "reset"]


def test_the_a20_gate(kbd, events):
    command(kbd, 0xD1, 0x01)
    command(kbd, 0xDF)
    command(kbd, 0xDD)
    assert events == [False, True, False]
    assert command(kbd, 0xD0) == [0x01]


def test_a_guest_that_never_reads_does_not_fill_memory(kbd):
    for _ in range(1000):
        kbd.write(COMMAND, 0x20)
        kbd.write(DATA, 0xEE)
    assert len(kbd.state.answers) == 256


def test_other_offsets_and_reset(kbd, irq):
    assert kbd.read(1) == 0xFF
    kbd.write(1, 0)
    kbd.press(b"\x1e")
    kbd.reset()
    assert not irq.level and not kbd.read(COMMAND) & 1
