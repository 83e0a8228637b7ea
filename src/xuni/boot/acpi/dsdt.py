"""The DSDT: power states and the devices that cannot be discovered (ACPI 6.5, sections 5.2.11.1 and 7.4.2)."""

from __future__ import annotations

from xuni.boot import layout
from xuni.boot.acpi import aml
from xuni.boot.layout import BoardFacts

MAX_NAMED_CPUS = 4096
"""Three hexadecimal digits in `Cxxx`."""


def definition_block(board: BoardFacts) -> bytes:
    """The AML of the DSDT, without the table header."""
    zero, s3, s5 = (aml.integer(value) for value in (0, board.acpi.s3_type, board.acpi.s5_type))
    return b"".join(
        [
            aml.name("\\_S3_", aml.package(s3, s3, zero, zero)),
            aml.name("\\_S5_", aml.package(s5, s5, zero, zero)),
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
    devices = [_isa_device(f"COM{n:X}", "PNP0501", (aml.io(uart.base, 8), aml.irq(uart.irq)), n)
               for n, uart in enumerate(board.serial, 1)]  # fmt: skip
    if keyboard := board.keyboard:
        ports = aml.io(keyboard.base, 1), aml.io(keyboard.base + 4, 1)
        devices.append(_isa_device("KBD_", "PNP0303", (*ports, aml.irq(keyboard.irq))))
    if rtc := board.rtc:
        devices.append(_isa_device("RTC_", "PNP0B00", (aml.io(rtc.base, 2), aml.irq(rtc.irq))))
    if not board.pci:
        return aml.device("ISA_", aml.name("_HID", aml.eisa_id("PNP0A05")), aml.name("_UID", aml.integer(0)), *devices)
    config = board.pci.base
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name(
            "_CRS",
            aml.resources(
                aml.bus_numbers(0, 0xFF),
                aml.io(config, 8),
                aml.io_window(0, config - 1),
                aml.io_window(config + 8, 0xFFFF),
                aml.memory_window(layout.PCI_MEMORY, layout.PCI_MEMORY_END - 1),
            ),
        ),
        *_routing(board),
        *devices,
    )


def _routing(board: BoardFacts) -> list[bytes]:
    """_PRT (section 6.2.13): which interrupt lines the pins INTA# are wired to; none without such devices."""
    routes = [aml.package(aml.integer(device << 16 | 0xFFFF), aml.integer(0), aml.integer(0), aml.integer(irq))
              for device, irq in board.pci_pins]  # fmt: skip
    return [aml.name("_PRT", aml.package(*routes))] if routes else []


def _isa_device(name: str, identifier: str, descriptors: tuple[bytes, ...], uid: int | None = None) -> bytes:
    """A device that is there (_STA: present, enabled, shown, working) with fixed resources."""
    terms = [aml.name("_HID", aml.eisa_id(identifier))]
    if uid is not None:
        terms.append(aml.name("_UID", aml.integer(uid)))
    terms += [aml.name("_STA", aml.integer(0xF)), aml.name("_CRS", aml.resources(*descriptors))]
    return aml.device(name, *terms)
