"""PCI functions: BARs on the memory bus, interrupts by pin and by message, DMA; and QEMU's educational device."""

from __future__ import annotations

from math import factorial

import pytest

from tests.devices.conftest import Clock, Probe
from xuni.bus.messages import Delivery, InterruptMessage
from xuni.bus.mmio import Mmio
from xuni.devices.pci.bus import PciBus
from xuni.devices.pci.dma import DirectDma, pages
from xuni.devices.pci.edu import BAR_SIZE, BUFFER, FACTORIAL_TIME, TRANSFER_TIME, Edu, EduConfig, Reg
from xuni.devices.pci.function import MSI, BarDecoder
from xuni.devices.test_ports import Latch
from xuni.memory.guest import GuestMemory

HOME = 0xC000_0000
COMMAND, BAR, LINE = 0x04, 0x10, 0x3C
START, TO_MEMORY, RAISE = 1, 2, 4
MASTER = 0b110


class Board:
    """A memory bus, guest memory, and the device at its usual place."""

    def __init__(self, clock: Clock, irq: Probe) -> None:
        self.mmio = Mmio()
        self.memory = GuestMemory(1 << 20)
        self.messages: list[InterruptMessage] = []
        self.edu = Edu(clock.timers, DirectDma(self.memory, self), irq.line, HOME, EduConfig(device=3, irq=11))
        self.decoder = BarDecoder(self.mmio)
        self.edu.plug(self.decoder, 11)
        self.clock = clock

    def deliver(self, message: InterruptMessage) -> bool:
        self.messages.append(message)
        return True

    def get(self, register: int, size: int = 4) -> int:
        return self.mmio.read(HOME + register, size)

    def put(self, register: int, value: int, size: int = 4) -> None:
        self.mmio.write(HOME + register, size, value)

    def transfer(self, source: int, destination: int, count: int, command: int) -> None:
        for register, value in ((Reg.DMA_SOURCE, source), (Reg.DMA_DESTINATION, destination), (Reg.DMA_COUNT, count)):
            self.put(register, value, 8)
        self.put(Reg.DMA_COMMAND, command | START)
        self.clock.advance(TRANSFER_TIME)


@pytest.fixture
def board(clock: Clock, irq: Probe):
    made = Board(clock, irq)
    yield made
    made.memory.close()


def test_what_firmware_leaves(board: Board) -> None:
    edu = board.edu
    assert edu.read_config(0, 4) == 0x11E8_1234 and edu.read_config(8, 4) == 0x00FF_0010
    assert (edu.read_config(BAR, 4), edu.read_config(COMMAND, 2), edu.read_config(LINE, 2)) == (HOME, 2, 0x010B)
    assert board.get(Reg.IDENTIFICATION) == 0x0100_00ED


def test_a_bar_is_sized_and_moved(board: Board) -> None:
    edu = board.edu
    edu.write_config(BAR, 4, 0xFFFF_FFFF)
    assert edu.read_config(BAR, 4) == -BAR_SIZE & 0xFFFF_FFFF
    assert board.mmio.read(0xFFF0_0000, 4) == 0xFFFF_FFFF  # a BAR that would end at 4 GiB answers nowhere
    edu.write_config(BAR, 4, 0xD000_0000)
    assert board.mmio.read(0xD000_0000, 4) == 0x0100_00ED and board.get(0) == 0xFFFF_FFFF
    edu.write_config(COMMAND, 2, 0)
    assert board.mmio.read(0xD000_0000, 4) == 0xFFFF_FFFF
    edu.reset()
    assert board.get(0) == 0x0100_00ED and edu.read_config(BAR, 4) == HOME


def test_the_boards_own_devices_win_over_a_bar(board: Board) -> None:
    latch = Latch(0x1000)
    board.mmio.attach(0xFEC0_0000, 0x1000, latch)
    board.edu.write_config(BAR, 4, 0xFEC0_0000)
    assert board.mmio.read(0xFEC0_0000, 4) == 0
    board.edu.write_config(BAR, 4, HOME)
    assert board.get(0) == 0x0100_00ED and board.mmio.read(0xFEC0_0000, 4) == 0


def test_of_two_functions_at_one_address_the_second_waits(board: Board, clock: Clock, irq: Probe) -> None:
    other = Edu(clock.timers, DirectDma(board.memory, board), irq.line, HOME, EduConfig(device=5))
    other.plug(board.decoder, 10)
    board.put(Reg.LIVENESS, 0)
    assert board.get(Reg.LIVENESS) == 0xFFFF_FFFF
    board.edu.write_config(BAR, 4, 0xD000_0000)
    assert board.get(Reg.LIVENESS) == 0 and board.mmio.read(0xD000_0004, 4) == 0xFFFF_FFFF


def test_a_byte_offset_in_the_address_register_counts(board: Board) -> None:
    pci = PciBus()
    pci.add(board.edu, 3)
    pci.write(0, 4, 0x8000_1841)
    assert pci.read(4, 1) == 0 and pci.read(0, 4) == 0x8000_1840
    pci.write(0, 4, 0x8000_1840)
    assert pci.read(4, 1) == 5 and pci.read(6, 2) == 0x80
    pci.write(0, 4, 0x8000_1843)
    assert pci.read(4, 2) & 0xFFFF == 0xFFFF  # would cross into the next register


def test_liveness_and_widths(board: Board) -> None:
    board.put(Reg.LIVENESS, 0x1234_5678)
    assert board.get(Reg.LIVENESS) == ~0x1234_5678 & 0xFFFF_FFFF
    assert board.get(Reg.LIVENESS, 8) == (1 << 64) - 1 and board.get(Reg.LIVENESS, 2) == 0xFFFF
    board.put(Reg.LIVENESS, 0, 1)
    assert board.get(Reg.LIVENESS) == ~0x1234_5678 & 0xFFFF_FFFF
    assert board.get(0x0C) == 0xFFFF_FFFF


@pytest.mark.parametrize("number", [0, 1, 12, 13, 33, 34, 0xFFFF_FFFF])
def test_factorial(board: Board, irq: Probe, number: int) -> None:
    board.put(Reg.STATUS, 0x81)
    board.put(Reg.FACTORIAL, number)
    assert board.get(Reg.STATUS) == 0x81
    board.put(Reg.FACTORIAL, 7)  # too early
    board.clock.advance(FACTORIAL_TIME)
    expected = factorial(number) % (1 << 32) if number < 100 else 0
    assert board.get(Reg.FACTORIAL) == expected and board.get(Reg.STATUS) == 0x80
    assert board.get(Reg.IRQ_STATUS) == 1 and irq.level


def test_the_pin_follows_raise_acknowledge_and_its_enable_bit(board: Board, irq: Probe) -> None:
    board.put(Reg.IRQ_RAISE, 0)
    assert not irq.level
    board.put(Reg.IRQ_RAISE, 0b110)
    assert irq.level and board.edu.read_config(0x06, 2) & 8
    board.put(Reg.IRQ_ACKNOWLEDGE, 0b010)
    assert irq.level and board.get(Reg.IRQ_STATUS) == 0b100
    board.edu.write_config(COMMAND, 2, 0x402)
    assert not irq.level
    board.edu.write_config(COMMAND, 2, 0x002)
    assert irq.level
    board.put(Reg.IRQ_ACKNOWLEDGE, 0b100)
    assert not irq.level and not board.edu.read_config(0x06, 2) & 8


def test_msi_takes_the_place_of_the_pin(board: Board, irq: Probe) -> None:
    edu = board.edu
    edu.write_config(MSI + 4, 4, 0xFEE0_1000)
    edu.write_config(MSI + 12, 2, 0x0041)
    edu.write_config(MSI + 2, 2, 1)
    board.put(Reg.IRQ_RAISE, 1)
    assert board.messages == []  # no bus master
    edu.write_config(COMMAND, 2, MASTER)
    board.put(Reg.IRQ_RAISE, 1)
    assert board.messages == [InterruptMessage(0x41, 1, False, Delivery.FIXED, False)]
    assert not irq.level
    edu.write_config(MSI + 2, 2, 0)
    assert irq.level


def test_dma_both_ways(board: Board) -> None:
    board.edu.write_config(COMMAND, 2, MASTER)
    board.memory.write(0x1FFE, b"across")
    board.transfer(0x1FFE, BUFFER + 8, 6, 0)
    assert board.get(Reg.DMA_COMMAND) == 0 and board.get(Reg.IRQ_STATUS) == 0
    board.transfer(BUFFER + 8, 0xF000_3000, 6, TO_MEMORY | RAISE)  # only 28 bits count
    assert board.memory.read(0x3000, 6) == b"across" and board.get(Reg.IRQ_STATUS) == 0x100


def test_dma_registers_hold_still_during_a_transfer(board: Board) -> None:
    board.edu.write_config(COMMAND, 2, MASTER)
    board.put(Reg.DMA_COUNT, 4)
    board.put(Reg.DMA_COMMAND, START)
    board.put(Reg.DMA_COUNT, 8)
    assert board.get(Reg.DMA_COUNT) == 4 and board.get(Reg.DMA_COMMAND) == START
    board.edu.reset()
    board.clock.advance(TRANSFER_TIME)
    assert board.get(Reg.DMA_COMMAND) == 0


@pytest.mark.parametrize(("start", "count"), [
    (BUFFER - 1, 4), (BUFFER + 4093, 4), (BUFFER, 4097), (0, 1 << 63), (BUFFER, (1 << 64) - 1), ((1 << 64) - 1, 4),
])  # fmt: skip
def test_dma_beyond_the_buffer_moves_nothing(board: Board, start: int, count: int) -> None:
    board.edu.write_config(COMMAND, 2, MASTER)
    board.memory.write(0x1000, b"keep")
    board.transfer(start, 0x1000, count, TO_MEMORY)
    board.transfer(0x1000, start, count, 0)
    assert board.memory.read(0x1000, 4) == b"keep" and not any(board.edu.state.buffer)
    assert board.get(Reg.DMA_COMMAND) == 0


def test_dma_needs_a_bus_master_and_memory(board: Board) -> None:
    board.memory.write(0x1000, b"data")
    board.transfer(0x1000, BUFFER, 4, 0)
    assert board.edu.state.buffer[:4] == b"\xff\xff\xff\xff"
    board.transfer(BUFFER, 0x1000, 4, TO_MEMORY)
    assert board.memory.read(0x1000, 4) == b"data"
    board.edu.write_config(COMMAND, 2, MASTER)
    board.memory.write(0xF_FFFE, b"in")
    board.transfer(0xF_FFFE, BUFFER, 4, 0)
    assert board.edu.state.buffer[:4] == b"in\xff\xff"
    board.transfer(BUFFER, 0x800_0000, 4, TO_MEMORY)  # nothing is there


def test_pages() -> None:
    assert list(pages(0xFFE, 4)) == [(0, 0xFFE, 2), (2, 0x1000, 2)]
    assert list(pages(0x1000, 0x2001)) == [(0, 0x1000, 0x1000), (0x1000, 0x2000, 0x1000), (0x2000, 0x3000, 1)]
    assert list(pages(5, 0)) == []
