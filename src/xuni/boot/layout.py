"""Where the board's parts answer, as ACPI and the boot records tell the guest.

The same numbers are in the board's recipe; a test of the board compares them. Addresses are guest-physical.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Memory below 1 MiB, as every PC's firmware leaves it.
BIOS_DATA: Final = 0x400
"""BIOS data area: COM port numbers, EBDA segment, base memory size."""
LOW_USABLE: Final = 0x1000
"""Below lie the interrupt vector table and the BIOS data area: usable to the guest, never used by a loader."""
EBDA: Final = 0x9_FC00
"""Extended BIOS data area: base memory ends here, and what follows up to 1 MiB is reserved."""
ACPI_BASE: Final = 0xE_0000
"""RSDP, and behind it the other ACPI tables. ACPI 6.5, section 5.2.5.1 lets a guest look for the RSDP from here on."""
BIOS_ROM: Final = 0xF_0000
HIGH_MEMORY: Final = 0x10_0000

# Interrupt controllers.
LOCAL_APIC: Final = 0xFEE0_0000
IO_APIC: Final = 0xFEC0_0000
IO_APIC_INPUTS: Final = 24
HPET: Final = 0xFED0_0000

# ACPI fixed hardware. PM1a_CNT at 0x604 is where bare-metal guests written for QEMU look for it.
PM1A_EVENT: Final = 0x600
PM1A_CONTROL: Final = 0x604
PM_TIMER: Final = 0x608
SCI: Final = 9
"""Interrupt of the power-management registers: level-triggered, active high."""
SLEEP_TYPE_S5: Final = 0
"""PM1a_CNT.SLP_TYP for power-off."""
RESET_PORT: Final = 0xCF9
RESET_VALUE: Final = 0x06

RTC_PORT: Final = 0x70
I8042_DATA: Final = 0x60
I8042_COMMAND: Final = 0x64

# PCI windows of host bridge 0.
PCI_CONFIG_PORT: Final = 0xCF8
PCI_MEMORY: Final = 0xC000_0000
PCI_MEMORY_END: Final = 0xFEC0_0000


@dataclass(frozen=True, slots=True)
class ComPort:
    """A 16550 UART: eight ports from `port` on, and an ISA interrupt."""

    port: int
    irq: int


COM1: Final = ComPort(0x3F8, 4)
COM2: Final = ComPort(0x2F8, 3)


@dataclass(frozen=True, slots=True)
class BoardFacts:
    """What differs from one board to the next, for the tables that describe it."""

    cpus: int = 1
    """Their local APIC identifiers are 0 to `cpus` - 1."""
    com_ports: tuple[ComPort, ...] = (COM1, COM2)
    i8042: bool = True
    rtc: bool = True
    pci: bool = True
    """Configuration mechanism 1 answers at 0xCF8 and 0xCFC."""
    hpet: bool = False
    power_button: bool = False
    """PM1a_STS.PWRBTN_STS reports a press of the fixed power button through the SCI."""
