"""Interrupt messages: what an IOAPIC pin, an inter-processor interrupt or a message-signalled interrupt says.

Spec: Intel SDM vol. 3A, sections "Interrupt Command Register" and "Message Signalled Interrupts".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol


class Delivery(IntEnum):
    """Delivery mode, as encoded in ICR, LVT, IOAPIC and MSI data bits 10:8."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    REMOTE_READ = 3
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


@dataclass(frozen=True, slots=True)
class InterruptMessage:
    """One interrupt on its way to local APICs."""

    vector: int
    destination: int
    """Physical APIC id or logical destination; 0xFF in an 8-bit field means all."""
    logical: bool = False
    delivery: Delivery = Delivery.FIXED
    level: bool = False
    """Level-triggered: the EOI of its vector is broadcast to the IOAPICs."""


class InterruptSink(Protocol):
    """Where interrupt messages go: the bus of the local APICs."""

    def deliver(self, message: InterruptMessage, /) -> bool:
        """Deliver; `False` if no local APIC accepted it."""
        ...


MSI_BASE, MSI_END = 0xFEE0_0000, 0xFEF0_0000


def decode_msi(address: int, data: int) -> InterruptMessage:
    """The message that a device's write of `data` to `address` (in MSI_BASE..MSI_END) stands for.

    address  31..20 FEE | 19..12 destination | 3 redirection hint | 2 destination mode
    data     15 trigger mode | 14 level | 10..8 delivery mode | 7..0 vector
    """
    delivery = Delivery(data >> 8 & 7)
    if address & 0b1000 and delivery is Delivery.FIXED:
        delivery = Delivery.LOWEST_PRIORITY  # redirection hint: any one of the destination set
    return InterruptMessage(
        vector=data & 0xFF,
        destination=address >> 12 & 0xFF,
        logical=bool(address & 0b100),
        delivery=delivery,
        level=bool(data & 0x8000),
    )
