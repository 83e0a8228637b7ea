"""The DSDT: power states and the devices that cannot be discovered (ACPI 6.5, sections 5.2.11.1 and 7.4.2)."""

from __future__ import annotations

from xuni.boot import layout
from xuni.boot.acpi import aml
from xuni.boot.layout import BoardFacts

MAX_NAMED_CPUS = 4096
"""Three hexadecimal digits in `Cxxx`."""


def definition_block(board: BoardFacts) -> bytes:
    """The AML of the DSDT, without the table header."""
    sleep = aml.integer(layout.SLEEP_TYPE_S5)
    return b"".join(
        [
            aml.name("\\_S5_", aml.package(sleep, sleep, aml.integer(0), aml.integer(0))),
            aml.scope("\\_SB_", *(_processor(number) for number in range(board.cpus)), _host_bridge(board)),
        ]
    )


def _processor(number: int) -> bytes:
    """A processor device; `_UID` is the ACPI processor UID of its MADT entry (section 8.4)."""
    return aml.device(
        f"C{number:03X}",
        aml.name("_HID", aml.string("ACPI0007")),
        aml.name("_UID", aml.integer(number)),
    )


def _host_bridge(board: BoardFacts) -> bytes:
    """PCI0 and the ISA devices behind it; without PCI, a plain container of the same devices."""
    devices = [_uart(number, com.port, com.irq) for number, com in enumerate(board.com_ports)]
    if board.i8042:
        devices += [
            aml.device(
                "KBD_",
                aml.name("_HID", aml.eisa_id("PNP0303")),
                aml.name("_STA", aml.integer(0xF)),
                aml.name(
                    "_CRS",
                    aml.resources(aml.io(layout.I8042_DATA, 1), aml.io(layout.I8042_COMMAND, 1), aml.irq(1)),
                ),
            ),
            aml.device(
                "MOU_",
                aml.name("_HID", aml.eisa_id("PNP0F13")),
                aml.name("_STA", aml.integer(0xF)),
                aml.name("_CRS", aml.resources(aml.irq(12))),
            ),
        ]
    if board.rtc:
        devices.append(
            aml.device(
                "RTC_",
                aml.name("_HID", aml.eisa_id("PNP0B00")),
                aml.name("_CRS", aml.resources(aml.io(layout.RTC_PORT, 8), aml.irq(8))),
            )
        )
    if board.hpet:
        devices.append(
            aml.device(
                "HPET",
                aml.name("_HID", aml.eisa_id("PNP0103")),
                aml.name("_CRS", aml.resources(aml.memory32_fixed(layout.HPET, 0x400, writable=False))),
            )
        )
    if not board.pci:
        return aml.device("ISA_", aml.name("_HID", aml.eisa_id("PNP0A05")), aml.name("_UID", aml.integer(0)), *devices)
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name(
            "_CRS",
            aml.resources(
                aml.bus_numbers(0, 0xFF),
                aml.io(layout.PCI_CONFIG_PORT, 8),
                aml.io_window(0, layout.PCI_CONFIG_PORT - 1),
                aml.io_window(layout.PCI_CONFIG_PORT + 8, 0xFFFF),
                aml.memory_window(layout.PCI_MEMORY, layout.PCI_MEMORY_END - 1),
            ),
        ),
        *devices,
    )


def _uart(number: int, port: int, irq: int) -> bytes:
    return aml.device(
        f"COM{number + 1:X}",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(number + 1)),
        aml.name("_STA", aml.integer(0xF)),
        aml.name("_CRS", aml.resources(aml.io(port, 8), aml.irq(irq))),
    )
