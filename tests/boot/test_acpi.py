"""ACPI tables: found from the RSDP, checksummed, true to the board, and readable to ACPI's own disassembler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from struct import unpack

import pytest

from xuni.boot import acpi
from xuni.boot.acpi import aml
from xuni.boot.image import BootError
from xuni.boot.layout import BoardFacts
from xuni.devices.acpi_pm import AcpiPmConfig
from xuni.devices.apic.ioapic import IoApicConfig
from xuni.devices.iommu.unit import IommuConfig
from xuni.devices.uart import COM_PORTS
from xuni.memory.guest import GuestMemory


def read_table(memory: GuestMemory, address: int) -> bytes:
    return memory.read(address, memory.read_u32(address + 4))


def tables(memory: GuestMemory, rsdp: int) -> dict[str, bytes]:
    """All tables by signature, found as a guest finds them."""
    found = {}
    xsdt = read_table(memory, memory.read_u64(rsdp + 24))
    rsdt = read_table(memory, memory.read_u32(rsdp + 16))
    addresses = [unpack("<Q", xsdt[n : n + 8])[0] for n in range(36, len(xsdt), 8)]
    assert [unpack("<I", rsdt[n : n + 4])[0] for n in range(36, len(rsdt), 4)] == addresses
    for address in addresses:
        data = read_table(memory, address)
        found[data[:4].decode()] = data
    fadt = found["FACP"]
    (dsdt,) = unpack("<I", fadt[40:44])
    assert unpack("<Q", fadt[140:148])[0] == dsdt
    (facs,) = unpack("<I", fadt[36:40])
    assert facs % 64 == 0
    return found | {"DSDT": read_table(memory, dsdt), "FACS": read_table(memory, facs), "XSDT": xsdt, "RSDT": rsdt}


def test_every_checksum_is_right(memory: GuestMemory) -> None:
    rsdp = acpi.build(memory, BoardFacts())
    assert rsdp == 0xE_0000
    pointer = memory.read(rsdp, 36)
    assert pointer[:8] == b"RSD PTR "
    assert sum(pointer[:20]) & 0xFF == sum(pointer) & 0xFF == 0
    found = tables(memory, rsdp)
    assert found.keys() == {"FACP", "APIC", "DSDT", "FACS", "XSDT", "RSDT"}
    for signature, data in found.items():
        assert signature == "FACS" or sum(data) & 0xFF == 0, signature


def test_fadt_says_what_the_chip_does(memory: GuestMemory) -> None:
    pm = AcpiPmConfig(base=0x1000, sci=10, timer_bits=24)
    fadt = tables(memory, acpi.build(memory, BoardFacts(acpi=pm)))["FACP"]
    assert len(fadt) == 268
    assert unpack("<H", fadt[46:48]) == (10,)
    assert unpack("<IBB", fadt[48:54]) == (0xB2, 2, 3)
    assert [unpack("<I", fadt[at : at + 4])[0] for at in (56, 64, 76, 80)] == [0x1000, 0x1004, 0x1008, 0x1020]
    flags = unpack("<I", fadt[112:116])[0]
    assert not flags & 1 << 8, "TMR_VAL_EXT: the timer has 24 bits"
    assert flags & 1 << 10, "RESET_REG_SUP"
    assert not flags & 1 << 20, "HW_REDUCED_ACPI"
    assert unpack("<BBBBQB", fadt[116:129]) == (1, 8, 0, 1, 0xCF9, 6)
    wide = tables(memory, acpi.build(memory, BoardFacts()))["FACP"]
    assert unpack("<I", wide[112:116])[0] & 1 << 8


def test_boot_flags_follow_the_devices(memory: GuestMemory) -> None:
    def flags(board: BoardFacts) -> int:
        fadt = tables(memory, acpi.build(memory, board))["FACP"]
        return int.from_bytes(fadt[109:111], "little")

    assert flags(BoardFacts()) & 0b100010 == 0b000010
    assert flags(BoardFacts(keyboard=None, rtc=None)) & 0b100010 == 0b100000


def entries(madt: bytes) -> list[bytes]:
    at, found = 44, []
    while at < len(madt):
        found.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    return found


def test_madt(memory: GuestMemory) -> None:
    board = BoardFacts(cpus=2, io_apic=IoApicConfig(base=0xFEC0_1000, id=3))
    madt = tables(memory, acpi.build(memory, board))["APIC"]
    assert unpack("<II", madt[36:44]) == (0xFEE0_0000, 1)
    assert entries(madt) == [
        bytes([0, 8, 0, 0, 1, 0, 0, 0]),
        bytes([0, 8, 1, 1, 1, 0, 0, 0]),
        bytes([1, 12, 3, 0, 0x00, 0x10, 0xC0, 0xFE, 0, 0, 0, 0]),
        bytes([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]),  # the timer comes to input 2
        bytes([2, 10, 0, 9, 9, 0, 0, 0, 0x0D, 0]),  # the SCI is level-triggered
        bytes([4, 6, 0xFF, 0, 0, 1]),  # NMI at LINT1
    ]


def test_processors_beyond_254_have_x2apic_entries(memory: GuestMemory) -> None:
    found = entries(tables(memory, acpi.build(memory, BoardFacts(cpus=300)))["APIC"])
    assert sum(entry[0] == 0 for entry in found) == 255
    assert [unpack("<I", entry[4:8])[0] for entry in found if entry[0] == 9] == list(range(255, 300))
    assert [entry[0] for entry in found if entry[0] in (4, 0xA)] == [4, 0xA]


@pytest.mark.parametrize("cpus", [0, -1, 4097, 3000])
def test_impossible_numbers_of_processors(memory: GuestMemory, cpus: int) -> None:
    with pytest.raises(BootError, match=f"{cpus}"):
        acpi.build(memory, BoardFacts(cpus=cpus))


@pytest.mark.parametrize(
    ("size", "encoded"),
    [(0, "01"), (62, "3f"), (63, "4104"), (4093, "4fff"), (4094, "810001"), (1 << 20, "c4000001")],
)
def test_package_length(size: int, encoded: str) -> None:
    """It counts itself; the first byte holds the number of following bytes in bits 6-7 (section 20.2.4)."""
    assert aml.package_length(size) == bytes.fromhex(encoded)


def test_aml_terms() -> None:
    assert aml.name_string("\\_SB_.PCI0") == b"\\\x2e_SB_PCI0"
    assert aml.name_string("A.B.C") == b"\x2f\x03A___B___C___"
    assert [aml.integer(n) for n in (0, 1, 2, 0x1234, 1 << 31, 1 << 40)] == [
        b"\0", b"\1", b"\x0a\2", b"\x0b\x34\x12", b"\x0c\0\0\0\x80", b"\x0e\0\0\0\0\0\1\0\0",
    ]  # fmt: skip
    assert aml.eisa_id("PNP0501") == bytes.fromhex("0c41d00501")
    assert aml.io(0x3F8, 8) == bytes.fromhex("4701f803f8030108")
    assert aml.irq(4) == bytes.fromhex("221000")


def test_dmar_describes_the_remapping_unit(memory: GuestMemory) -> None:
    board = BoardFacts(iommu=IommuConfig(), io_apic=IoApicConfig(id=7))
    dmar = tables(memory, acpi.build(memory, board))["DMAR"]
    assert sum(dmar) & 0xFF == 0 and len(dmar) == 72
    assert unpack("<BB", dmar[36:38]) == (38, 1)
    assert unpack("<HHBBHQ", dmar[48:64]) == (0, 24, 1, 0, 0, 0xFED9_0000)
    assert unpack("<BBHBBBB", dmar[64:]) == (3, 8, 0, 7, 0xFF, 0, 0)
    board = BoardFacts(iommu=IommuConfig(address_width=48, interrupt_remapping=False))
    assert unpack("<BB", tables(memory, acpi.build(memory, board))["DMAR"][36:38]) == (47, 0)


def test_routing_names_each_pin(memory: GuestMemory) -> None:
    dsdt = tables(memory, acpi.build(memory, BoardFacts(pci_pins=((4, 10),))))["DSDT"]
    assert b"_PRT" in dsdt and bytes.fromhex("0cffff0400") in dsdt
    assert b"_PRT" not in tables(memory, acpi.build(memory, BoardFacts()))["DSDT"]


@pytest.mark.skipif(shutil.which("iasl") is None, reason="needs Debian's acpica-tools")
@pytest.mark.parametrize(
    "board",
    [BoardFacts(), BoardFacts(iommu=IommuConfig(), pci_pins=((4, 10), (5, 11))), BoardFacts(cpus=20, serial=COM_PORTS),
     BoardFacts(serial=(), keyboard=None, rtc=None, pci=None)],
)  # fmt: skip
def test_the_disassembler_reads_every_table(memory: GuestMemory, board: BoardFacts, tmp_path: Path) -> None:
    for signature, data in tables(memory, acpi.build(memory, board)).items():
        (tmp_path / f"{signature}.dat").write_bytes(data)
        done = subprocess.run(
            ["iasl", "-d", f"{signature}.dat"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert not any(word in said for word in ("Error", "Warning", "Invalid", "Incorrect")), said
    text = (tmp_path / "DSDT.dsl").read_text()
    assert text.count('"ACPI0007"') == board.cpus
    assert text.count('EisaId ("PNP0501")') == len(board.serial)
    assert ('EisaId ("PNP0A03")' in text) == (board.pci is not None)
    done = subprocess.run(["iasl", "-tc", "DSDT.dsl"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "0 Errors, 0 Warnings" in done.stdout, done.stdout + done.stderr
