"""The 82093AA against its data sheet."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from xuni.bus.messages import Delivery, InterruptMessage
from xuni.devices.apic.ioapic import IoApic, IoApicConfig

MASKED, LEVEL, REMOTE_IRR = 1 << 16, 1 << 15, 1 << 14


@dataclass
class Sink:
    """The bus of the local APICs: keeps what it gets, or refuses it."""

    messages: list[InterruptMessage] = field(default_factory=list)
    accepts: bool = True

    def deliver(self, message: InterruptMessage) -> bool:
        self.messages.append(message)
        return self.accepts

    @property
    def vectors(self) -> list[int]:
        return [message.vector for message in self.messages]


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def ioapic(sink) -> IoApic:
    return IoApic(sink, IoApicConfig(id=2))


def get(chip: IoApic, register: int) -> int:
    chip.write(0, 4, register)
    return chip.read(0x10, 4)


def put(chip: IoApic, register: int, value: int) -> None:
    chip.write(0, 4, register)
    chip.write(0x10, 4, value)


def entry(chip: IoApic, pin: int, low: int, high: int = 0) -> None:
    put(chip, 0x11 + 2 * pin, high)
    put(chip, 0x10 + 2 * pin, low)


def test_identification_registers(ioapic):
    assert get(ioapic, 0) == get(ioapic, 2) == 2 << 24
    assert get(ioapic, 1) == 0x0017_0020
    for register in range(3):
        put(ioapic, register, 0xFFFF_FFFF)
    assert (get(ioapic, 0), get(ioapic, 1), get(ioapic, 2)) == (0x0F00_0000, 0x0017_0020, 0x0F00_0000)
    assert ioapic.read(0, 4) == 2


def test_the_table_begins_masked_and_keeps_its_read_only_bits(ioapic):
    assert all(get(ioapic, 0x10 + 2 * pin) == MASKED for pin in range(24))
    entry(ioapic, 23, 0xFFFF_FFFF, 0xFFFF_FFFF)
    assert get(ioapic, 0x3E) == 0x1AFFF and get(ioapic, 0x3F) == 0xFF00_0000
    assert get(ioapic, 0x40) == 0 and get(ioapic, 0x03) == 0
    put(ioapic, 0x40, 1)


def test_an_edge_delivers_once(ioapic, sink):
    entry(ioapic, 4, 0x0831, 0x0300_0000)
    ioapic.set_pin(4, True)
    ioapic.set_pin(4, True)
    assert sink.messages == [InterruptMessage(0x31, 3, logical=True)]
    ioapic.set_pin(4, False)
    ioapic.set_pin(4, True)
    assert len(sink.messages) == 2


def test_an_edge_on_a_masked_pin_is_lost(ioapic, sink):
    ioapic.set_pin(4, True)
    entry(ioapic, 4, 0x31)
    assert sink.messages == []


def test_a_level_waits_for_its_eoi_and_comes_again(ioapic, sink):
    entry(ioapic, 9, LEVEL | 0x39)
    ioapic.set_pin(9, True)
    assert sink.messages == [InterruptMessage(0x39, 0, level=True)]
    assert get(ioapic, 0x22) & REMOTE_IRR
    ioapic.set_pin(9, False)
    ioapic.set_pin(9, True)
    assert len(sink.messages) == 1
    ioapic.eoi(0x38)
    assert len(sink.messages) == 1
    ioapic.eoi(0x39)
    assert len(sink.messages) == 2 and get(ioapic, 0x22) & REMOTE_IRR
    ioapic.set_pin(9, False)
    ioapic.eoi(0x39)
    assert len(sink.messages) == 2 and not get(ioapic, 0x22) & REMOTE_IRR


def test_a_level_on_a_masked_pin_waits_for_the_unmasking(ioapic, sink):
    entry(ioapic, 9, MASKED | LEVEL | 0x39)
    ioapic.set_pin(9, True)
    assert sink.messages == []
    put(ioapic, 0x22, LEVEL | 0x39)
    assert sink.vectors == [0x39]


def test_masking_in_service_does_not_lose_remote_irr(ioapic, sink):
    entry(ioapic, 9, LEVEL | 0x39)
    ioapic.set_pin(9, True)
    put(ioapic, 0x22, MASKED | LEVEL | 0x39)
    assert get(ioapic, 0x22) & REMOTE_IRR
    ioapic.eoi(0x39)
    assert not get(ioapic, 0x22) & REMOTE_IRR and len(sink.messages) == 1
    put(ioapic, 0x22, LEVEL | 0x39)
    assert len(sink.messages) == 2


def test_switching_to_edge_clears_remote_irr(ioapic, sink):
    entry(ioapic, 9, LEVEL | 0x39)
    ioapic.set_pin(9, True)
    ioapic.set_pin(9, False)
    put(ioapic, 0x22, MASKED | 0x39)
    put(ioapic, 0x22, MASKED | LEVEL | 0x39)
    assert not get(ioapic, 0x22) & REMOTE_IRR


def test_a_level_that_nobody_took_is_not_in_service(ioapic, sink):
    sink.accepts = False
    entry(ioapic, 9, LEVEL | 0x39)
    ioapic.set_pin(9, True)
    assert not get(ioapic, 0x22) & REMOTE_IRR


def test_the_eoi_register(ioapic, sink):
    entry(ioapic, 9, LEVEL | 0x39)
    ioapic.set_pin(9, True)
    ioapic.write(0x40, 4, 0x39)
    assert len(sink.messages) == 2


@pytest.mark.parametrize("mode", list(Delivery))
def test_delivery_modes_are_passed_on(ioapic, sink, mode):
    entry(ioapic, 1, mode << 8 | 0x55)
    ioapic.set_pin(1, True)
    assert sink.messages[0].delivery is mode


def test_two_pins_with_one_vector_share_its_eoi(ioapic, sink):
    for pin in (10, 11):
        entry(ioapic, pin, LEVEL | 0x40)
        ioapic.set_pin(pin, True)
    ioapic.set_pin(10, False)
    ioapic.eoi(0x40)
    assert len(sink.messages) == 3


def test_reset_masks_everything(ioapic, sink):
    entry(ioapic, 9, LEVEL | 0x39)
    put(ioapic, 0, 0x0F00_0000)
    ioapic.reset()
    ioapic.set_pin(9, True)
    assert sink.messages == [] and get(ioapic, 0) == 2 << 24
    assert ioapic.read(0x20, 4) == 0
