"""PCI configuration, DMA controllers, system ports, and the ports that test programs use."""

from __future__ import annotations

import pytest

from xuni.bus.lines import InterruptLines
from xuni.devices.dma import Dma8237, DmaPages
from xuni.devices.pci.bus import ConfigSpace, PciBus, host_bridge
from xuni.devices.pit import Pit8254
from xuni.devices.system_ports import ResetControl, SystemControlA, SystemControlB
from xuni.devices.test_ports import DebugConsole, DebugExitPort, FlushPort, Latch, ShutdownPort, TestIrqs

# -- PCI -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def resets() -> list[int]:
    return []


@pytest.fixture
def pci(resets) -> PciBus:
    bus = PciBus(ResetControl(lambda: resets.append(1)))
    bus.add(host_bridge(), device=0)
    return bus


def select(pci: PciBus, bus: int, device: int, function: int, register: int) -> None:
    pci.write(0, 4, 0x8000_0000 | bus << 16 | device << 11 | function << 8 | register)


def test_a_scan_finds_the_host_bridge_alone(pci):
    found = {}
    for bus in range(256):
        for device in range(32):
            select(pci, bus, device, 0, 0)
            value = pci.read(4, 4)
            if value != 0xFFFF_FFFF:
                found[bus, device] = value
    assert found == {(0, 0): 0x1237_8086}
    select(pci, 0, 0, 0, 8)
    assert pci.read(4, 4) == 0x0600_0002
    select(pci, 0, 0, 1, 0)
    assert pci.read(4, 4) == 0xFFFF_FFFF


def test_data_accesses_of_all_sizes(pci):
    select(pci, 0, 0, 0, 0)
    assert (pci.read(4, 2), pci.read(6, 2), pci.read(5, 1)) == (0x8086, 0x1237, 0x80)
    assert pci.read(7, 2) & 0xFFFF == 0xFFFF
    pci.write(4, 4, 0)
    assert pci.read(4, 4) == 0x1237_8086
    select(pci, 0, 0, 0, 4)
    pci.write(4, 2, 0xFFFF)
    assert pci.read(4, 4) == 0x0507
    pci.write(7, 4, 0xFFFF)


def test_the_address_register_is_dword_only_and_needs_its_enable_bit(pci):
    pci.write(0, 4, 0xFFFF_FFFF)
    assert pci.read(0, 4) == 0x80FF_FFFC
    pci.write(0, 1, 0)
    assert pci.read(0, 4) == 0x80FF_FFFC and pci.read(0, 1) & 0xFF == 0xFF
    pci.write(0, 4, 0)
    assert pci.read(4, 4) == 0xFFFF_FFFF
    pci.write(4, 4, 0)
    pci.reset()
    assert pci.read(0, 4) == 0


def test_a_byte_at_0xcf9_is_the_reset_control_register(pci, resets):
    pci.write(1, 1, 0x02)
    assert pci.read(1, 1) == 0x02 and resets == []
    pci.write(1, 1, 0x06)
    assert resets == [1] and pci.read(1, 1) == 0x02


def test_slots_are_taken_once(pci):
    with pytest.raises(ValueError, match=r"00:00\.0 is taken"):
        pci.add(host_bridge(), device=0)
    with pytest.raises(ValueError, match="no PCI slot"):
        pci.add(host_bridge(), device=32)
    pci.add(ConfigSpace(0x1234, 0x5678, 0xFF0000, header_type=0x80), device=3, number=1)
    select(pci, 0, 3, 1, 0x0C)
    assert pci.read(4, 4) == 0x0080_0000


# -- DMA -------------------------------------------------------------------------------------------------------------


def test_dma_registers_read_back_through_the_flip_flop():
    dma = Dma8237()
    dma.write(12, 0)
    for reg, value in ((0, 0x1234), (3, 0xABCD)):
        dma.write(reg, value & 0xFF)
        dma.write(reg, value >> 8)
        assert dma.read(reg) | dma.read(reg) << 8 == value
    dma.write(0, 0x99)
    dma.write(12, 0)  # the flip-flop points to the low byte again
    assert dma.read(0) == 0x99


def test_dma_masks_status_and_master_clear():
    dma = Dma8237(stride=2)
    assert dma.read(30) == 0xFF and dma.read(16) == 0
    dma.write(28, 0)
    assert dma.read(30) == 0xF0
    dma.write(20, 0x06)
    assert dma.read(30) == 0xF4
    dma.write(30, 0x3)
    dma.write(18, 0x05)
    dma.write(22, 0x41)
    dma.write(16, 0x10)
    assert dma.read(30) == 0xF3 and dma.state.request == 2 and dma.state.modes[1] == 0x41
    dma.write(26, 0)
    assert dma.read(30) == 0xFF and dma.state.command == 0
    dma.reset()


def test_page_registers_are_latches():
    pages = DmaPages()
    for offset in range(16):
        pages.write(offset, offset + 0x40)
    assert [pages.read(offset) for offset in range(16)] == list(range(0x40, 0x50))
    pages.reset()
    assert pages.read(0) == 0


# -- system control --------------------------------------------------------------------------------------------------


def test_port_61_gates_and_shows_counter_2(clock, irq):
    pit = Pit8254(clock.timers, irq.line)
    port = SystemControlB(pit.counters[2], clock.timers.now)
    pit.write(3, 0b10_11_000_0)
    pit.write(2, 0x10)
    pit.write(2, 0x00)
    clock.advance(1_000_000)
    assert not port.read(0) & 0x20  # the gate is low
    port.write(0, 0x01)
    clock.advance(13_000)
    assert not port.read(0) & 0x20
    clock.advance(1_000)
    assert port.read(0) & 0x21 == 0x21
    toggles = {port.read(0) & 0x10}
    clock.advance(15_085)
    toggles.add(port.read(0) & 0x10)
    assert toggles == {0, 0x10}
    port.write(0, 0xFE)
    assert port.read(0) & 0xCF == 0x0E
    port.reset()
    assert port.read(0) & 0x0F == 0


def test_port_92(resets):
    a20: list[bool] = []
    port = SystemControlA(lambda: resets.append(1), a20.append)
    assert port.read(0) == 0x02
    port.write(0, 0x00)
    port.write(0, 0x02)
    assert a20 == [False, True] and resets == []
    port.write(0, 0x03)
    port.write(0, 0x03)
    assert resets == [1]
    port.reset()
    assert port.read(0) == 0x02


# -- test programs' ports --------------------------------------------------------------------------------------------


def test_debug_exit_takes_any_size():
    values: list[int] = []
    port = DebugExitPort(values.append)
    port.write(0, 1, 1)
    port.write(0, 4, 0xDEAD_BEEF)
    assert values == [1, 0xDEAD_BEEF] and port.read(0, 4) == 0


def test_debug_console_prints_and_says_that_it_is_there():
    out = bytearray()
    port = DebugConsole(out.append)
    port.write(0, 0x41)
    assert out == b"A" and port.read(0) == 0xE9


@pytest.mark.parametrize(
    ("text", "times"),
    [(b"Shutdown", 1), (b"ShutdownShutdown", 2), (b"ShutdowShutdown", 1), (b"SShutdown", 1), (b"shutdown", 0),
     (b"Shut down", 0)],
)  # fmt: skip
def test_the_shutdown_word(text, times):
    off: list[int] = []
    port = ShutdownPort(lambda: off.append(1))
    for letter in text:
        port.write(0, letter)
    assert len(off) == times and port.read(0) == 0xFF
    port.reset()


def test_latches_are_memory():
    latch = Latch(0x10000)
    latch.write(0xFFF8, 8, 0x1122_3344_5566_7788)
    assert latch.read(0xFFFC, 4) == 0x1122_3344 and latch.read(0xFFF9, 1) == 0x77
    latch.reset()
    assert latch.read(0xFFF8, 8) == 0
    assert FlushPort().read(0, 4) == 0


def test_interrupt_lines_of_the_test_device():
    lines, seen = InterruptLines(), []
    lines.connect(14, seen.append)
    irqs = TestIrqs([lines.source(irq) for irq in range(24)])
    irqs.write(14, 1)
    assert irqs.read(14) == 1
    irqs.write(14, 0)
    irqs.write(14, 1)
    irqs.reset()
    assert seen == [True, False, True, False]
