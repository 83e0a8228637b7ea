"""Intel VT-d: registers, table walks, faults, the invalidation queue, remapped interrupts."""

from __future__ import annotations

import pytest

from xuni.bus.messages import Delivery, InterruptMessage
from xuni.devices.apic.ioapic import IoApic
from xuni.devices.iommu.faults import Reason
from xuni.devices.iommu.registers import Reg
from xuni.devices.iommu.unit import (
    COMPATIBILITY,
    QUEUE,
    REMAPPING,
    ROOT_TABLE,
    TABLE,
    TRANSLATION,
    Iommu,
    IommuConfig,
)
from xuni.memory.guest import GuestMemory

SOURCE = 0x0120  # 01:04.0
ROOT, CONTEXT, TOP, MIDDLE, LAST, TARGET = 0x1_0000, 0x1_1000, 0x1_2000, 0x1_3000, 0x1_4000, 0x2_0000
FOURTH, ENTRIES, INDEXES = 0x1_5000, 0x1_6000, 0x1_8000
IOVA = 0x40_3000  # middle index 2, last index 3
HOLE = 0xD000_0000
RW = 3


class Unit(Iommu):
    """A unit with its memory, and the interrupts that come out."""

    def __init__(self, config: IommuConfig | None = None) -> None:
        self.memory = GuestMemory(4 << 20)
        self.messages: list[InterruptMessage] = []
        super().__init__(self.memory, self, config)

    def deliver(self, message: InterruptMessage) -> bool:
        self.messages.append(message)
        return True

    def put32(self, register: int, value: int) -> None:
        self.write(register, 4, value)

    def put64(self, register: int, value: int) -> None:
        self.write(register, 8, value)

    def words(self, address: int, *values: int) -> None:
        for number, value in enumerate(values):
            self.memory.write_u64(address + 8 * number, value)

    def command(self, bit: int) -> None:
        self.put32(Reg.GCMD, self.read(Reg.GSTS, 4) & ~(ROOT_TABLE | TABLE) | bit)

    def tables(self, width: int = 1, kind: int = 0, flags: int = 0, target: int = TARGET) -> None:
        """One page at IOVA of SOURCE, and translation on."""
        self.words(ROOT + 16 * (SOURCE >> 8), CONTEXT | 1)
        self.words(CONTEXT + 16 * (SOURCE & 0xFF), (TOP if width == 1 else FOURTH) | 1 | kind << 2 | flags, 7 << 8 | width)
        self.words(FOURTH, TOP | RW)
        self.words(TOP, MIDDLE | RW)
        self.words(MIDDLE + 8 * 2, LAST | RW)
        self.words(LAST + 8 * 3, target | RW)
        self.put64(Reg.RTADDR, ROOT)
        self.command(ROOT_TABLE)
        self.command(TRANSLATION)

    def entry(self, index: int, low: int, upper: int = 0) -> None:
        self.words(ENTRIES + 16 * index, low, upper)

    def remapping(self, size: int = 7) -> None:
        self.put64(Reg.IRTA, ENTRIES | size)
        self.command(TABLE)
        self.command(REMAPPING)

    def fault(self) -> tuple[int, int, int, bool] | None:
        """Reason, source, information, whether it was a read; and clear it."""
        upper = self.read(Reg.FRCD + 8, 8)
        if not upper >> 63:
            return None
        found = (upper >> 32 & 0xFF, upper & 0xFFFF, self.read(Reg.FRCD, 8), bool(upper >> 62 & 1))
        self.put32(Reg.FRCD + 12, 1 << 31)
        return found

    def queue(self, *descriptors: tuple[int, int]) -> None:
        """Execute these from the start of a queue of 256."""
        self.put64(Reg.IQT, 0)
        self.put64(Reg.IQA, INDEXES)
        self.command(QUEUE)
        for number, (low, upper) in enumerate(descriptors):
            self.words(INDEXES + 16 * number, low, upper)
        self.put64(Reg.IQT, 16 * len(descriptors))


@pytest.fixture
def unit():
    made = Unit()
    yield made
    made.memory.close()


@pytest.fixture
def wide():
    made = Unit(IommuConfig(address_width=48, interrupt_remapping=False))
    yield made
    made.memory.close()


# -- registers ---------------------------------------------------------------------------------------------------------
def test_capabilities(unit: Unit, wide: Unit) -> None:
    assert unit.read(Reg.VER, 4) == 0x10
    assert (unit.read(Reg.CAP, 8), unit.read(Reg.ECAP, 8)) == (0x00D2_008C_2226_0206, 0xF0_0F4A)
    assert (wide.read(Reg.CAP, 8), wide.read(Reg.ECAP, 8)) == (0x00D2_008C_222F_0606, 0x0F42)
    unit.put64(Reg.CAP, 0)
    assert unit.read(Reg.CAP + 4, 4) == 0x00D2_008C
    assert unit.read(0xFF8, 8) == 0


def test_accesses_are_4_or_8_bytes_and_aligned(unit: Unit) -> None:
    unit.write(Reg.RTADDR, 2, 0x1000)
    unit.write(Reg.RTADDR + 1, 4, 0x1000)
    unit.write(Reg.RTADDR + 4, 8, (1 << 64) - 1)
    assert unit.read(Reg.RTADDR, 8) == 0
    unit.put32(Reg.RTADDR + 4, 0xFFFF_FFFF)
    unit.put32(Reg.RTADDR, 0xFFFF_FFFF)
    assert unit.read(Reg.RTADDR, 8) == 0x000F_FFFF_FFFF_F000


def test_commands_show_in_the_status(unit: Unit, wide: Unit) -> None:
    unit.tables()
    unit.remapping()
    assert unit.read(Reg.GSTS, 4) == TRANSLATION | ROOT_TABLE | REMAPPING | TABLE and unit.read(Reg.GCMD, 4) == 0
    unit.put32(Reg.GCMD, 0)
    assert unit.read(Reg.GSTS, 4) == ROOT_TABLE | TABLE
    wide.remapping()
    assert wide.read(Reg.GSTS, 4) == 0
    unit.reset()
    assert unit.read(Reg.GSTS, 4) == 0


def test_invalidations_by_register_complete(unit: Unit) -> None:
    unit.put64(Reg.CCMD, 1 << 63 | 2 << 61)
    assert unit.read(Reg.CCMD, 8) == 2 << 61 | 2 << 59
    unit.put32(Reg.IOTLB, 0)
    unit.put32(Reg.IOTLB + 4, 1 << 31 | 3 << 28)
    assert unit.read(Reg.IOTLB, 8) == 3 << 60 | 3 << 57


# -- translation -------------------------------------------------------------------------------------------------------
def test_without_translation_addresses_are_physical(unit: Unit) -> None:
    unit.store(SOURCE, TARGET, b"here")
    assert unit.memory.read(TARGET, 4) == unit.fetch(SOURCE, TARGET, 4) == b"here"


@pytest.mark.parametrize("width", [1, 2])
def test_three_and_four_levels(wide: Unit, width: int) -> None:
    wide.tables(width)
    wide.store(SOURCE, IOVA + 5, b"data")
    assert wide.memory.read(TARGET + 5, 4) == wide.fetch(SOURCE, IOVA + 5, 4) == b"data" and wide.fault() is None


def test_pages_need_not_be_neighbours(unit: Unit) -> None:
    unit.tables()
    unit.words(LAST + 8 * 4, 0x3_0000 | RW)
    unit.store(SOURCE, IOVA + 0xFFE, b"abcd")
    assert unit.memory.read(TARGET + 0xFFE, 2) == b"ab" and unit.memory.read(0x3_0000, 2) == b"cd"
    assert unit.fetch(SOURCE, IOVA + 0xFFE, 4) == b"abcd"


def test_large_pages(unit: Unit) -> None:
    unit.tables()
    unit.words(MIDDLE + 8 * 2, 0x20_0000 | RW | 1 << 7)
    unit.store(SOURCE, IOVA, b"2 MiB")
    assert unit.memory.read(0x20_3000, 5) == b"2 MiB"
    unit.words(TOP, RW | 1 << 7)
    unit.memory.write(0x30_0000, b"1 GiB")
    assert unit.fetch(SOURCE, 0x30_0000, 5) == b"1 GiB"
    unit.words(MIDDLE + 8 * 2, 0x20_1000 | RW | 1 << 7)
    unit.words(TOP, MIDDLE | RW)
    unit.store(SOURCE, IOVA, b"x")
    assert unit.fault() == (Reason.PAGING_RESERVED, SOURCE, IOVA, False)


def test_pass_through(unit: Unit) -> None:
    unit.tables(kind=2)
    unit.store(SOURCE, 0x5000, b"same")
    assert unit.memory.read(0x5000, 4) == b"same"
    unit.store(SOURCE, 1 << 39, b"far")
    assert unit.fault() == (Reason.ADDRESS_BEYOND_WIDTH, SOURCE, 1 << 39, False)


@pytest.mark.parametrize(("address", "value", "reason"), [
    (ROOT + 16, 0, Reason.ROOT_NOT_PRESENT),
    (ROOT + 16, CONTEXT | 3, Reason.ROOT_RESERVED),
    (ROOT + 24, 1, Reason.ROOT_RESERVED),
    (ROOT + 16, HOLE | 1, Reason.CONTEXT_UNREACHABLE),
    (CONTEXT + 0x200, 0, Reason.CONTEXT_NOT_PRESENT),
    (CONTEXT + 0x200, TOP | 1 | 1 << 4, Reason.CONTEXT_RESERVED),
    (CONTEXT + 0x208, 1 | 1 << 24, Reason.CONTEXT_RESERVED),
    (CONTEXT + 0x200, TOP | 1 | 1 << 2, Reason.CONTEXT_INVALID),
    (CONTEXT + 0x208, 2, Reason.CONTEXT_INVALID),
    (CONTEXT + 0x200, HOLE | 1, Reason.TABLE_UNREACHABLE),
    (TOP, 0, Reason.NO_WRITE_PERMISSION),
    (TOP, MIDDLE | 1, Reason.NO_WRITE_PERMISSION),
    (TOP, MIDDLE | RW | 1 << 11, Reason.PAGING_RESERVED),
    (MIDDLE + 16, HOLE | RW, Reason.TABLE_UNREACHABLE),
    (LAST + 24, TARGET | 1, Reason.NO_WRITE_PERMISSION),
])  # fmt: skip
def test_blocked_writes(unit: Unit, address: int, value: int, reason: Reason) -> None:
    unit.tables()
    unit.words(address, value)
    unit.store(SOURCE, IOVA + 8, b"no")
    assert unit.memory.read(TARGET + 8, 2) == bytes(2)
    assert unit.fault() == (reason, SOURCE, IOVA, False)


def test_a_root_table_outside_memory(unit: Unit) -> None:
    unit.tables()
    unit.put64(Reg.RTADDR, 0x000F_FFFF_FFFF_F000)
    assert unit.fetch(SOURCE, IOVA, 1) == b"\0"  # not before the command
    unit.command(ROOT_TABLE)
    assert unit.fetch(SOURCE, IOVA, 1) == b"\xff" and unit.fault() == (Reason.ROOT_UNREACHABLE, SOURCE, IOVA, True)


def test_reads_and_writes_have_a_permission_each(unit: Unit) -> None:
    unit.tables()
    unit.words(LAST + 24, TARGET | 2)
    unit.store(SOURCE, IOVA, b"ok")
    assert unit.memory.read(TARGET, 2) == b"ok" and unit.fault() is None
    assert unit.fetch(SOURCE, IOVA, 2) == b"\xff\xff"
    assert unit.fault() == (Reason.NO_READ_PERMISSION, SOURCE, IOVA, True)


def test_large_bit_in_the_fourth_level_is_reserved(wide: Unit) -> None:
    wide.tables(2)
    wide.words(FOURTH, TOP | RW | 1 << 7)
    wide.fetch(SOURCE, IOVA, 1)
    assert wide.fault() == (Reason.PAGING_RESERVED, SOURCE, IOVA, True)


def test_tables_cannot_aim_dma_at_the_local_apics(unit: Unit) -> None:
    unit.tables(target=0xFEE0_0000)
    unit.store(SOURCE, IOVA, bytes(4))
    assert unit.messages == []


# -- faults ------------------------------------------------------------------------------------------------------------
def test_a_second_fault_overflows(unit: Unit) -> None:
    unit.tables()
    unit.fetch(SOURCE, 0, 1)
    assert unit.read(Reg.FSTS, 4) == 0b10
    unit.fetch(SOURCE, 0x1000, 1)
    assert unit.read(Reg.FSTS, 4) == 0b11
    assert unit.fault() == (Reason.NO_READ_PERMISSION, SOURCE, 0, True)
    unit.put32(Reg.FSTS, 1)
    assert unit.read(Reg.FSTS, 4) == 0 and unit.fault() is None


def test_fault_processing_disable(unit: Unit) -> None:
    unit.tables(flags=2)
    assert unit.fetch(SOURCE, 0, 1) == b"\xff" and unit.fault() is None and unit.read(Reg.FSTS, 4) == 0


def test_the_fault_event_waits_behind_its_mask(unit: Unit) -> None:
    unit.tables()
    unit.put32(Reg.FEDATA, 0x31)
    unit.put64(Reg.FEADDR, 0xFEE0_2000)
    unit.fetch(SOURCE, 0, 1)
    assert unit.messages == [] and unit.read(Reg.FECTL, 4) == 3 << 30
    unit.put32(Reg.FECTL, 0)
    assert unit.messages == [InterruptMessage(0x31, 2)] and unit.read(Reg.FECTL, 4) == 0
    unit.fetch(SOURCE, 0x1000, 1)  # not again before the guest has dealt with the first
    assert len(unit.messages) == 1
    unit.fault()
    unit.put32(Reg.FSTS, 1)
    unit.fetch(SOURCE, 0x1000, 1)
    assert len(unit.messages) == 2


def test_a_masked_event_is_forgotten_with_its_cause(unit: Unit) -> None:
    unit.tables()
    unit.fetch(SOURCE, 0, 1)
    unit.fault()
    assert unit.read(Reg.FECTL, 4) == 1 << 31


# -- invalidation queue ------------------------------------------------------------------------------------------------
def test_wait_descriptors_tell_that_the_queue_has_come_so_far(unit: Unit) -> None:
    unit.put32(Reg.IECTL, 0)
    unit.put32(Reg.IEDATA, 0x32)
    unit.put64(Reg.IEADDR, 0xFEE0_0000)
    unit.queue((1 | 1 << 4, 0), (2 | 1 << 4, 0), (4, 0), (5 | 3 << 4 | 0xABCD << 32, 0x7004))
    assert unit.read(Reg.IQH, 8) == unit.read(Reg.IQT, 8) == 64 and unit.read(Reg.FSTS, 4) == 0
    assert unit.memory.read_u32(0x7004) == 0xABCD
    assert unit.read(Reg.ICS, 4) == 1 and unit.messages == [InterruptMessage(0x32, 0)]
    unit.put32(Reg.ICS, 1)
    assert unit.read(Reg.ICS, 4) == 0


def test_the_queue_wraps(unit: Unit) -> None:
    unit.queue(*[(4, 0)] * 255)
    unit.words(INDEXES + 16 * 255, 5 | 1 << 5 | 1 << 32, 0x7000)
    unit.put64(Reg.IQT, 0)
    assert unit.memory.read_u32(0x7000) == 1 and unit.read(Reg.IQH, 8) == 0


@pytest.mark.parametrize("bad", [(0, 0), (1, 0), (2, 0), (3, 0), (6, 0), (5 | 1 << 5, HOLE), (5 | 1 << 5, (1 << 64) - 4)])
def test_a_bad_descriptor_stops_the_queue(unit: Unit, bad: tuple[int, int]) -> None:
    unit.queue((4, 0), bad, (5 | 1 << 5 | 9 << 32, 0x7000))
    assert unit.read(Reg.IQH, 8) == 16 and unit.read(Reg.FSTS, 4) == 1 << 4 and unit.memory.read_u32(0x7000) == 0
    unit.words(INDEXES + 16, 4, 0)
    unit.put32(Reg.FSTS, 1 << 4)
    assert unit.read(Reg.IQH, 8) == 48 and unit.memory.read_u32(0x7000) == 9


def test_a_queue_outside_memory_and_a_tail_outside_the_queue(unit: Unit) -> None:
    unit.queue()
    unit.put64(Reg.IQT, 0x1000)
    assert unit.read(Reg.FSTS, 4) == 1 << 4
    unit.put64(Reg.IQT, 16)
    unit.put64(Reg.IQA, HOLE)
    unit.put32(Reg.FSTS, 1 << 4)
    assert unit.read(Reg.FSTS, 4) == 1 << 4 and unit.read(Reg.IQH, 8) == 0


# -- interrupts --------------------------------------------------------------------------------------------------------
def message(unit: Unit, index: int, data: int = 0, subhandle: bool = False, source: int = SOURCE) -> None:
    address = 0xFEE0_0010 | (index & 0x7FFF) << 5 | index >> 15 << 2 | subhandle << 3
    unit.store(source, address, data.to_bytes(4, "little"))


def test_messages_pass_while_remapping_is_off(unit: Unit) -> None:
    unit.store(SOURCE, 0xFEE0_3000, (0x55).to_bytes(4, "little"))
    unit.store(SOURCE, 0xFEE0_3000, bytes(2))
    unit.store(SOURCE, 0xFEE0_3002, bytes(4))
    assert unit.messages == [InterruptMessage(0x55, 3)]


def test_an_entry_says_everything(unit: Unit) -> None:
    unit.remapping()
    unit.entry(5, 1 | 1 << 2 | 1 << 3 | 1 << 4 | 0x77 << 16 | 3 << 40, SOURCE | 1 << 18)
    message(unit, 5, 0x1234)
    message(unit, 3, 2, subhandle=True)
    assert unit.messages == [InterruptMessage(0x77, 3, True, Delivery.LOWEST_PRIORITY, True)] * 2


def test_the_handles_upper_bit(unit: Unit) -> None:
    unit.remapping(size=15)
    unit.words(ENTRIES + 16 * 0x8001, 1 | 0x44 << 16)
    message(unit, 0x8001)
    assert unit.messages == [InterruptMessage(0x44, 0)]


@pytest.mark.parametrize(("low", "upper", "index", "data", "reason"), [
    (0, 0, 1, 0, Reason.ENTRY_NOT_PRESENT),
    (1 | 1 << 12, 0, 1, 0, Reason.ENTRY_RESERVED),
    (1 | 1 << 15, 0, 1, 0, Reason.ENTRY_RESERVED),
    (1 | 1 << 32, 0, 1, 0, Reason.ENTRY_RESERVED),
    (1, 1 << 20, 1, 0, Reason.ENTRY_RESERVED),
    (1, 3 << 18, 1, 0, Reason.ENTRY_RESERVED),
    (1, SOURCE + 1 | 1 << 18, 1, 0, Reason.SOURCE_REJECTED),
    (1, 0, 256, 0, Reason.INDEX_BEYOND_TABLE),
])  # fmt: skip
def test_blocked_interrupts(unit: Unit, low: int, upper: int, index: int, data: int, reason: Reason) -> None:
    unit.remapping()
    unit.entry(1, low, upper)
    message(unit, index, data)
    assert unit.messages == [] and unit.fault() == (reason, SOURCE, index << 48, False)
    if reason not in (Reason.INDEX_BEYOND_TABLE,):
        unit.entry(1, low | 2 if low else 2, upper)
        message(unit, index, data)
        assert unit.fault() is None


def test_a_subhandle_has_16_bits_and_stays_in_the_table(unit: Unit) -> None:
    unit.remapping()
    message(unit, 1, 0x1_0000, subhandle=True)
    assert unit.fault() == (Reason.REQUEST_RESERVED, SOURCE, 1 << 48, False)
    message(unit, 0xFFFF, 0xFFFF, subhandle=True)
    assert unit.fault() == (Reason.INDEX_BEYOND_TABLE, SOURCE, 0xFFFE << 48, False)


def test_a_table_outside_memory(unit: Unit) -> None:
    unit.put64(Reg.IRTA, HOLE | 7)
    unit.command(TABLE)
    unit.command(REMAPPING)
    message(unit, 1)
    assert unit.fault() == (Reason.ENTRY_UNREACHABLE, SOURCE, 1 << 48, False)


@pytest.mark.parametrize(("upper", "source", "passes"), [
    (0x0120 | 1 << 18, 0x0120, True), (0x0120 | 1 << 18, 0x0124, False), (0x0120 | 1 << 16 | 1 << 18, 0x0124, True),
    (0x0120 | 2 << 16 | 1 << 18, 0x0126, True), (0x0120 | 2 << 16 | 1 << 18, 0x0121, False),
    (0x0120 | 3 << 16 | 1 << 18, 0x0127, True), (0x0103 | 2 << 18, 0x02FF, True), (0x0103 | 2 << 18, 0x0400, False),
    (0x0103 | 2 << 18, 0x00FF, False),
])  # fmt: skip
def test_source_verification(unit: Unit, upper: int, source: int, passes: bool) -> None:
    unit.remapping()
    unit.entry(1, 1 | 0x44 << 16, upper)
    message(unit, 1, source=source)
    assert bool(unit.messages) is passes


def test_compatibility_format_is_blocked_unless_allowed(unit: Unit) -> None:
    unit.remapping()
    unit.store(SOURCE, 0xFEE0_0000, (0x55).to_bytes(4, "little"))
    assert unit.messages == [] and unit.fault() == (Reason.COMPATIBILITY_BLOCKED, SOURCE, 0, False)
    unit.command(COMPATIBILITY)
    unit.store(SOURCE, 0xFEE0_0000, (0x55).to_bytes(4, "little"))
    assert unit.messages == [InterruptMessage(0x55, 0)]


def test_ioapic_entries_in_both_formats(unit: Unit) -> None:
    chip = IoApic(unit, remap=unit.remap)

    def redirect(pin: int, low: int, high: int) -> None:
        for register, value in ((0x11, high), (0x10, low)):
            chip.write(0, 4, register + 2 * pin)
            chip.write(0x10, 4, value)

    redirect(4, 0x800 | 1 << 15 | 0x99, 2 << 24)
    chip.set_pin(4, True)
    assert unit.messages == [InterruptMessage(0x99, 2, True, Delivery.FIXED, True)]
    unit.remapping()
    unit.entry(6, 1 | 1 << 4 | 0x61 << 16 | 1 << 40, 0xFF00 | 1 << 18)  # the IOAPIC's source is not verified
    redirect(5, 1 << 15 | 0x61, (6 << 1 | 1) << 16)
    chip.set_pin(5, True)
    assert unit.messages[1:] == [InterruptMessage(0x61, 1, False, Delivery.FIXED, True)]
    chip.eoi(0x61)
    assert len(unit.messages) == 3
    redirect(6, 0x62, (7 << 1 | 1) << 16)
    chip.set_pin(6, True)
    assert len(unit.messages) == 3 and unit.fault() == (Reason.ENTRY_NOT_PRESENT, 0, 7 << 48, False)
