"""Why a request was blocked, and the one fault recording register that tells the guest.

Spec: VT-d 3.1, sections 7.2 (fault reasons), 7.2.1 (primary fault logging), 7.3 (fault event), 11.4.9 to 11.4.14.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from xuni.bus.messages import MSI_BASE, MSI_END, InterruptSink, decode_msi
from xuni.devices.iommu.registers import Reg, RegisterFile

OVERFLOW, PENDING, QUEUE_ERROR = 1 << 0, 1 << 1, 1 << 4  # FSTS
EVENT_MASK, EVENT_PENDING = 1 << 31, 1 << 30  # FECTL and IECTL
FAULT, READ = 1 << 63, 1 << 62  # FRCD, upper quadword


class Reason(IntEnum):
    """Fault reasons that a remapping unit in legacy mode can give."""

    ROOT_NOT_PRESENT = 0x01
    CONTEXT_NOT_PRESENT = 0x02
    CONTEXT_INVALID = 0x03
    ADDRESS_BEYOND_WIDTH = 0x04
    NO_WRITE_PERMISSION = 0x05
    NO_READ_PERMISSION = 0x06
    TABLE_UNREACHABLE = 0x07
    ROOT_UNREACHABLE = 0x08
    CONTEXT_UNREACHABLE = 0x09
    ROOT_RESERVED = 0x0A
    CONTEXT_RESERVED = 0x0B
    PAGING_RESERVED = 0x0C
    REQUEST_RESERVED = 0x20
    INDEX_BEYOND_TABLE = 0x21
    ENTRY_NOT_PRESENT = 0x22
    ENTRY_UNREACHABLE = 0x23
    ENTRY_RESERVED = 0x24
    COMPATIBILITY_BLOCKED = 0x25
    SOURCE_REJECTED = 0x26


class Fault(Exception):
    """A request is blocked. `silent`: the guest's tables ask not to record it (fault processing disable)."""

    def __init__(self, reason: Reason, information: int, silent: bool = False) -> None:
        super().__init__(reason.name)
        self.reason = reason
        self.information = information
        """The page address of DMA; the index of an interrupt in bits 63:48."""
        self.silent = silent


class Event:
    """An interrupt of the unit's own: control, data and address registers in a row from `control` on."""

    def __init__(self, registers: RegisterFile, control: Reg, sink: InterruptSink) -> None:
        self._registers = registers
        self._control = control
        self._sink = sink

    def signal(self) -> None:
        """Send the message, or keep it pending behind the mask."""
        registers, control = self._registers, self._control
        value = registers.get(control, 4)
        if value & EVENT_MASK:
            registers.put(control, 4, value | EVENT_PENDING)
            return
        registers.put(control, 4, value & ~EVENT_PENDING)
        address = registers.get(control + 8, 8)
        if MSI_BASE <= address < MSI_END:  # the unit's own messages are not remapped
            self._sink.deliver(decode_msi(address, registers.get(control + 4, 4) & 0xFFFF))

    def unmasked(self) -> None:
        """The guest wrote the control register: what was pending goes out if it may."""
        if self._registers.get(self._control, 4) & (EVENT_MASK | EVENT_PENDING) == EVENT_PENDING:
            self.signal()

    def settle(self) -> None:
        """What it would report is gone."""
        self._registers.put(self._control, 4, self._registers.get(self._control, 4) & ~EVENT_PENDING)


ERRORS: Final = OVERFLOW | PENDING | QUEUE_ERROR


class FaultLog:
    """Fault status and the fault recording register."""

    def __init__(self, registers: RegisterFile, sink: InterruptSink) -> None:
        self._registers = registers
        self.event = Event(registers, Reg.FECTL, sink)

    def record(self, fault: Fault, source: int, read: bool) -> None:
        """Tell of a blocked request; a second one before the guest cleared the first sets only the overflow bit."""
        if fault.silent:
            return
        registers = self._registers
        status = registers.get(Reg.FSTS, 4)
        if status & OVERFLOW:
            return
        if registers.get(Reg.FRCD + 8, 8) & FAULT:
            self._report(OVERFLOW)
            return
        registers.put(Reg.FRCD, 8, fault.information & ~0xFFF)
        registers.put(Reg.FRCD + 8, 8, FAULT | (READ if read else 0) | fault.reason << 32 | source)
        self._report(PENDING)

    def queue_error(self) -> None:
        """An invalidation descriptor cannot be executed."""
        self._report(QUEUE_ERROR)

    def cleared(self) -> None:
        """The guest wrote the status or the recording register."""
        registers = self._registers
        status = registers.get(Reg.FSTS, 4) & ~PENDING
        if registers.get(Reg.FRCD + 8, 8) & FAULT:
            status |= PENDING
        registers.put(Reg.FSTS, 4, status)
        if not status & ERRORS:
            self.event.settle()

    def _report(self, error: int) -> None:
        status = self._registers.get(Reg.FSTS, 4)
        self._registers.put(Reg.FSTS, 4, status | error)
        if not status & ERRORS:  # a guest that has not yet dealt with one is not interrupted again
            self.event.signal()
