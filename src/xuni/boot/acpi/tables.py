"""RSDP, RSDT, XSDT, FADT, FACS, MADT, DMAR (ACPI 6.5, section 5.2): made, linked, checksummed, and put into guest memory.

All lie together from `layout.ACPI_BASE` on, in the area that the E820 map reserves; the RSDP comes first, where a
guest without a better way looks for it.
"""

from __future__ import annotations

from struct import Struct, pack
from typing import Final

from xuni.boot import layout
from xuni.boot.acpi import dsdt
from xuni.boot.image import BootError
from xuni.boot.layout import BoardFacts
from xuni.devices import rtc
from xuni.devices.acpi_pm import CONTROL, GPE_STATUS, STATUS, TIMER
from xuni.devices.apic.state import DEFAULT_BASE as LOCAL_APIC_BASE
from xuni.devices.iommu.unit import IommuConfig
from xuni.memory.guest import GuestMemory

HEADER: Final = Struct("<4sIBB6s8sI4sI")
"""Signature, length, revision, checksum, OEM ID, OEM table ID, OEM revision, creator ID, creator revision."""
OEM_ID, OEM_TABLE_ID, CREATOR_ID = b"XUNI  ", b"XUNIPC  ", b"XUNI"
ALIGNMENT: Final = 64
"""The FACS must lie on 64 bytes (section 5.2.10); so do all."""

MAX_XAPIC_ID: Final = 254

# FADT, fixed feature flags (table 5.10). The power button is fixed hardware, the sleep button is not there.
WBINVD, PROC_C1, SLP_BUTTON, RTC_S4, TMR_VAL_EXT, RESET_REG_SUP = 1 << 0, 1 << 2, 1 << 5, 1 << 7, 1 << 8, 1 << 10
# FADT, IA-PC boot architecture flags (table 5.11).
LEGACY_DEVICES, HAS_8042, VGA_NOT_PRESENT, NO_ASPM, NO_RTC = 1 << 0, 1 << 1, 1 << 2, 1 << 4, 1 << 5

IOAPIC_SOURCE: Final = (0xFF, 0, 0)
"""Bus, device and function that the IO-APIC's interrupts come from: a bus that has no functions."""

# MPS INTI flags (table 5.26).
ACTIVE_HIGH, ACTIVE_LOW, EDGE, LEVEL = 1, 3, 1 << 2, 3 << 2


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes all bytes add up to zero."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: `body` behind a complete header."""
    header = HEADER.pack(
        signature, HEADER.size + len(body), revision, 0, OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1
    )  # fmt: skip
    data = bytearray(header + body)
    data[9] = checksum(data)
    return bytes(data)


def generic_address(port: int, bits: int, access: int) -> bytes:
    """A Generic Address Structure for I/O ports (section 5.2.3.2). `access`: 1 byte, 2 word, 3 dword."""
    system_io = 1
    return pack("<BBBBQ", system_io, bits, 0, access, port)


def rsdp(rsdt: int, xsdt: int) -> bytes:
    """Root System Description Pointer, revision 2; both of its checksums are right."""
    data = bytearray(pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, rsdt, 36, xsdt, 0))
    data[8] = checksum(data[:20])
    data[32] = checksum(data)
    return bytes(data)


def facs() -> bytes:
    """Firmware ACPI Control Structure, version 2: no wake vector, never hibernated. It has no checksum."""
    return pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def fadt(facs_address: int, dsdt_address: int, board: BoardFacts) -> bytes:
    """Fixed ACPI Description Table, revision 5: PM1a, PM timer, GPE block 0, reset register."""
    pm = board.acpi
    event, control, timer, gpe = (pm.base + offset for offset in (STATUS, CONTROL, TIMER, GPE_STATUS))
    flags = WBINVD | PROC_C1 | SLP_BUTTON | RTC_S4 | RESET_REG_SUP
    if pm.timer_bits == 32:
        flags |= TMR_VAL_EXT
    boot_flags = LEGACY_DEVICES | VGA_NOT_PRESENT | NO_ASPM
    if board.keyboard:
        boot_flags |= HAS_8042
    if not board.rtc:
        boot_flags |= NO_RTC
    body = bytearray(268 - HEADER.size)

    def put(offset: int, data: bytes) -> None:
        """`offset` is the one in table 5.9, from the start of the table."""
        body[offset - HEADER.size : offset - HEADER.size + len(data)] = data

    put(36, pack("<II", facs_address, dsdt_address))
    put(46, pack("<H", pm.sci))
    put(48, pack("<IBB", pm.smi_command, pm.enable_value, pm.disable_value))
    put(56, pack("<I", event))
    put(64, pack("<I", control))
    put(76, pack("<I", timer))
    put(80, pack("<I", gpe))
    put(88, bytes([4, 2, 0, 4, 4]))  # PM1_EVT_LEN, PM1_CNT_LEN, PM2_CNT_LEN, PM_TMR_LEN, GPE0_BLK_LEN
    put(96, pack("<HH", 0xFFF, 0xFFF))  # P_LVL2_LAT, P_LVL3_LAT: no C2, no C3
    put(108, bytes([rtc.Reg.CENTURY if board.rtc else 0]))
    put(109, pack("<H", boot_flags))
    put(112, pack("<I", flags))
    put(116, generic_address(layout.RESET_PORT, 8, 1))
    put(128, bytes([layout.RESET_VALUE]))
    put(131, b"\x01")  # FADT minor version
    # X_FIRMWARE_CTRL stays 0: it and FIRMWARE_CTRL exclude each other.
    put(140, pack("<Q", dsdt_address))
    put(148, generic_address(event, 32, 2))
    put(172, generic_address(control, 16, 2))
    put(208, generic_address(timer, 32, 3))
    put(220, generic_address(gpe, 32, 1))
    return table(b"FACP", 5, bytes(body))


def madt(board: BoardFacts) -> bytes:
    """Multiple APIC Description Table, revision 4: the processors, the IO-APIC and how ISA interrupts reach it."""
    enabled = 1
    entries: list[bytes] = []
    for cpu in range(board.cpus):
        if cpu <= MAX_XAPIC_ID:
            entries.append(pack("<BBBBI", 0, 8, cpu, cpu, enabled))
        else:
            entries.append(pack("<BBHIII", 9, 16, 0, cpu, enabled, cpu))
    entries.append(pack("<BBBBII", 1, 12, board.io_apic.id, 0, board.io_apic.base, 0))
    # ISA interrupts go to the inputs of the same number, but the timer to 2; the SCI is level-triggered.
    entries.append(pack("<BBBBIH", 2, 10, 0, 0, 2, 0))
    entries.append(pack("<BBBBIH", 2, 10, 0, board.acpi.sci, board.acpi.sci, ACTIVE_HIGH | LEVEL))
    entries.append(pack("<BBBHB", 4, 6, 0xFF, 0, 1))  # NMI: LINT1 of every processor
    if board.cpus > MAX_XAPIC_ID + 1:
        entries.append(pack("<BBHIB3x", 0xA, 12, 0, 0xFFFF_FFFF, 1))
    pc_at_compatible = 1  # the two 8259s are there
    return table(b"APIC", 4, pack("<II", LOCAL_APIC_BASE, pc_at_compatible) + b"".join(entries))


def dmar(board: BoardFacts, iommu: IommuConfig) -> bytes:
    """DMA Remapping Table, revision 1 (VT-d 3.1, section 8): one unit, for all PCI functions and the IO-APIC."""
    interrupt_remapping, all_functions, io_apic = 1, 1, 3
    scope = pack("<BBHBBBB", io_apic, 8, 0, board.io_apic.id, *IOAPIC_SOURCE)
    unit = pack("<HHBBHQ", 0, 16 + len(scope), all_functions, 0, 0, iommu.base) + scope
    flags = interrupt_remapping if iommu.interrupt_remapping else 0
    return table(b"DMAR", 1, pack("<BB10x", iommu.address_width - 1, flags) + unit)


def build(memory: GuestMemory, board: BoardFacts) -> int:
    """Put the tables into guest memory and return the address of the RSDP."""
    if not 1 <= board.cpus <= dsdt.MAX_NAMED_CPUS:
        raise BootError(f"{board.cpus} CPUs: the ACPI tables describe 1 to {dsdt.MAX_NAMED_CPUS}")
    at = layout.ACPI_BASE + ALIGNMENT  # the RSDP itself, written last

    def put(data: bytes) -> int:
        nonlocal at
        address = at
        if address + len(data) > layout.BIOS_ROM:
            raise BootError(f"the ACPI tables for {board.cpus} CPUs do not fit below 1 MiB; use fewer CPUs")
        memory.write(address, data)
        at = -(-(address + len(data)) // ALIGNMENT) * ALIGNMENT
        return address

    facs_address = put(facs())
    assert facs_address == layout.FACS
    dsdt_address = put(table(b"DSDT", 2, dsdt.definition_block(board)))
    tables = [put(fadt(facs_address, dsdt_address, board)), put(madt(board))]
    if board.iommu:
        tables.append(put(dmar(board, board.iommu)))
    rsdt = put(table(b"RSDT", 1, pack(f"<{len(tables)}I", *tables)))
    xsdt = put(table(b"XSDT", 1, pack(f"<{len(tables)}Q", *tables)))
    memory.write(layout.ACPI_BASE, rsdp(rsdt, xsdt))
    return layout.ACPI_BASE
