"""Guest-physical addresses that are the same on every PC, and the record of what a board is made of.

The chips' own addresses are in their configuration records, so that the tables and the board cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from xuni.devices.acpi_pm import AcpiPmConfig
from xuni.devices.apic.ioapic import IoApicConfig
from xuni.devices.i8042 import I8042Config
from xuni.devices.iommu.unit import IommuConfig
from xuni.devices.pci.bus import PciConfig
from xuni.devices.rtc import RtcConfig
from xuni.devices.uart import COM_PORTS, UartConfig

# Memory below 1 MiB, as every PC's firmware leaves it.
BIOS_DATA: Final = 0x400
"""BIOS data area: COM port numbers, EBDA segment, base memory size."""
LOW_USABLE: Final = 0x1000
"""Below lie the interrupt vector table and the BIOS data area: usable to the guest, never used by a loader."""
EBDA: Final = 0x9_FC00
"""Extended BIOS data area: base memory ends here, and what follows up to 1 MiB is reserved."""
ACPI_BASE: Final = 0xE_0000
"""RSDP, and behind it the other ACPI tables. ACPI 6.5, section 5.2.5.1 lets a guest look for the RSDP from here on."""
FACS: Final = ACPI_BASE + 0x40
"""Firmware ACPI Control Structure, where a guest that wants to sleep leaves the address to wake at."""
BIOS_ROM: Final = 0xF_0000
HIGH_MEMORY: Final = 0x10_0000

RESET_PORT: Final = 0xCF9
"""Reset control register of a PC's chipset, and what the FADT tells the guest to write there."""
RESET_VALUE: Final = 0x06

PCI_MEMORY: Final = 0xC000_0000
"""Where RAM below 4 GiB ends at the latest, and devices of PCI bus 0 may be placed ..."""
PCI_MEMORY_END: Final = 0xFEC0_0000
"""... until the interrupt controllers begin."""


@dataclass(frozen=True, slots=True)
class BoardFacts:
    """What the guest is told of its board. A device whose record is None is not there."""

    cpus: int = 1
    """Their local APIC identifiers are 0 to `cpus` - 1."""
    io_apic: IoApicConfig = field(default_factory=IoApicConfig)
    acpi: AcpiPmConfig = field(default_factory=AcpiPmConfig)
    serial: tuple[UartConfig, ...] = COM_PORTS[:1]
    keyboard: I8042Config | None = field(default_factory=I8042Config)
    rtc: RtcConfig | None = field(default_factory=RtcConfig)
    pci: PciConfig | None = field(default_factory=PciConfig)
    acpi_tables: bool = True
    """Whether ACPI tables say all this; else the guest must know or probe."""
    iommu: IommuConfig | None = None
    pci_pins: tuple[tuple[int, int], ...] = ()
    """(device, interrupt line) of each device of PCI bus 0 that has a pin INTA#."""
