"""The board's recipe: what answers where, how interrupts travel, and that the tables for guests say the same."""

from __future__ import annotations

import pytest

from xuni.boot import layout
from xuni.devices.fw_cfg import Key
from xuni.devices.iommu.unit import REMAPPING, ROOT_TABLE, TABLE, TRANSLATION, IommuConfig
from xuni.devices.pci.edu import BUFFER, EduConfig
from xuni.devices.pci.edu import Reg as EduReg
from xuni.devices.test_ports import TestDeviceConfig
from xuni.devices.uart import COM_PORTS
from xuni.machine.pc import IOAPIC_TIMER_PIN, PcConfig


def idle(cpu):
    yield from ()


@pytest.fixture
def board(pc):
    return pc(idle)


def test_guests_are_told_of_the_board_that_is_there(pc):
    config = PcConfig(cpus=2, serial=COM_PORTS, keyboard=None)
    facts = config.facts()
    assert (facts.cpus, facts.serial, facts.keyboard) == (2, COM_PORTS, None)
    assert facts.acpi is config.acpi and facts.io_apic is config.io_apic
    assert PcConfig().facts() == layout.BoardFacts()


@pytest.mark.parametrize(
    ("port", "chip"),
    [
        (0x20, "Pic8259"), (0xA1, "Pic8259"), (0x4D0, "Elcr"), (0x43, "Pit8254"), (0x61, "SystemControlB"),
        (0x92, "SystemControlA"), (0x80, "DmaPages"), (0x0F, "Dma8237"), (0xDE, "Dma8237"), (0xB2, "SmiCommand"),
        (0x510, "FwCfg"), (0x51B, "FwCfg"), (0x8900, "ShutdownPort"), (0x600, "AcpiPm"), (0x608, "AcpiPm"),
        (0x70, "Rtc"), (0x60, "I8042"), (0x64, "KeyboardCommandPort"), (0x3F8, "Uart16550"),
        (layout.RESET_PORT, "PciBus"), (0xF4, None), (0xE0, None), (0x402, None),
    ],
)  # fmt: skip
def test_the_port_map(board, port, chip):
    assert board.bus.ports.owner(port) == chip


def test_devices_can_be_left_out(pc):
    board = pc(idle, config=PcConfig(keyboard=None, fw_cfg=None, serial=()))
    assert board.bus.ports.read(0x64, 1) == board.bus.ports.read(0x511, 1) == board.bus.ports.read(0x3FD, 1) == 0xFF


def test_the_remapping_unit_stands_between_pci_functions_and_the_rest(pc):
    board = pc(idle, config=PcConfig(iommu=IommuConfig(), edu=EduConfig(device=4, irq=10)))
    mmio, ports, unit = board.bus.mmio, board.bus.ports, IommuConfig().base
    assert board.config.facts().pci_pins == ((4, 10),) and board.config.facts().iommu == IommuConfig()
    ports.write(0xCF8, 4, 0x8000_2000)
    assert ports.read(0xCFC, 4) == 0x11E8_1234
    assert mmio.read(unit, 4) == 0x10 and mmio.read(layout.PCI_MEMORY, 4) == 0x0100_00ED
    seen = []
    board.apic_bus.deliver = lambda message: bool(seen.append(message)) or True  # what the local APICs would get
    # The pin, through an IOAPIC entry in remappable format, index 1; the message is blocked once that is absent.
    for register, value in ((0x25, 3 << 16), (0x24, 0)):
        mmio.write(0xFEC0_0000, 4, register)
        mmio.write(0xFEC0_0010, 4, value)
    board.memory.write_u64(0x5010, 1 | 0x61 << 16)
    mmio.write(unit + 0xB8, 8, 0x5000)
    mmio.write(unit + 0x20, 8, 0x6000)
    for switches in (TABLE, ROOT_TABLE, REMAPPING | TRANSLATION):
        mmio.write(unit + 0x18, 4, switches)
    mmio.write(layout.PCI_MEMORY + EduReg.IRQ_RAISE, 4, 1)
    assert [message.vector for message in seen] == [0x61]
    # DMA, with a root table that says nothing.
    ports.write(0xCF8, 4, 0x8000_2004)
    ports.write(0xCFC, 2, 6)
    board.memory.write(0x7000, b"data")
    for register, value in ((EduReg.DMA_SOURCE, 0x7000), (EduReg.DMA_DESTINATION, BUFFER), (EduReg.DMA_COUNT, 4)):
        mmio.write(layout.PCI_MEMORY + register, 8, value)
    mmio.write(layout.PCI_MEMORY + EduReg.DMA_COMMAND, 4, 1)
    board.edu._transfer()
    assert board.edu.state.buffer[:4] == b"\xff\xff\xff\xff" and mmio.read(unit + 0x34, 4) == 2
    board.reset()
    assert mmio.read(unit + 0x34, 4) == 0 and not board.edu.state.irq_status
    assert mmio.read(unit + 0x1C, 4) == 0


def test_without_them_nothing_answers(board):
    assert board.bus.mmio.read(IommuConfig().base, 4) == board.bus.mmio.read(layout.PCI_MEMORY, 4) == 0xFFFF_FFFF


def test_four_serial_ports_with_outputs_of_their_own(pc):
    out: list[list[bytes]] = [[], []]
    board = pc(idle, config=PcConfig(serial=COM_PORTS), outputs=(out[0].append, out[1].append))
    for port in COM_PORTS:
        board.bus.ports.write(port.base, 1, 0x0A)
    assert out == [[b"\n"], [b"\n"]]


def test_an_interrupt_reaches_both_controllers(board):
    for irq in range(24):
        line = board.bus.lines.source(irq)
        line.set(True)
        pin = IOAPIC_TIMER_PIN if irq == 0 else irq
        # The timer's line is up from power-on, and the IOAPIC's pin 2 belongs to it.
        assert bool(board.io_apic.state.levels >> pin & 1)
        if irq < 8 and irq != 2:
            assert board.pic.first.state.inputs >> irq & 1
        elif 8 <= irq < 16:
            assert board.pic.second.state.inputs >> irq - 8 & 1
        line.set(False)
    assert not board.pic.first.state.inputs >> 2 & 1


def test_a_level_interrupt_travels_to_the_processor_and_its_eoi_back(board):
    apic, mmio = board.local_apics[0], board.bus.mmio
    apic.write(0xF0, 4, 0x1FF)
    mmio.write(0xFEC0_0000, 4, 0x10 + 2 * 11)
    mmio.write(0xFEC0_0010, 4, 0x8000 | 0x51)
    line = board.bus.lines.source(11)
    line.set(True)
    assert board.vcpus[0].pin and apic.acknowledge() == 0x51
    assert mmio.read(0xFEC0_0010, 4) & 0x4000
    line.set(False)
    apic.write(0xB0, 4, 0)
    assert not mmio.read(0xFEC0_0010, 4) & 0x4000
    assert not board.vcpus[0].pin


def test_firmware_configuration_knows_the_machine(pc):
    board = pc(idle, idle, idle)
    items = board.fw_cfg.items
    assert items[0x20] == (0).to_bytes(8, "little") + (1 << 20).to_bytes(8, "little") + b"\1\0\0\0"
    assert items[Key.NB_CPUS] == b"\x03\0" and items[Key.RAM_SIZE] == (1 << 20).to_bytes(8, "little")


def test_the_test_device(pc):
    board = pc(idle, config=PcConfig(test_device=TestDeviceConfig()))
    ports, mmio = board.bus.ports, board.bus.mmio
    ports.write(0xE0, 4, 0x1234_5678)
    assert ports.read(0xE1, 2) == 0x3456
    ports.write(0xE4, 4, 0x1000)
    ports.write(0xE8, 1, 7)
    assert ports.read(0xE8, 1) == 7
    mmio.write(0xFF00_FFFC, 4, 5)
    assert mmio.read(0xFF00_FFFC, 4) == 5
    ports.write(0x200E, 1, 1)
    assert board.pic.second.state.inputs >> 6 & 1


def test_the_number_of_processors_has_bounds(pc):
    for cpus in (0, 256):
        with pytest.raises(ValueError, match=f"cpus={cpus}"):
            pc(idle, config=PcConfig(cpus=cpus))


def test_reset_resets_every_chip(board):
    before = board.pic.first.read(1)
    for port, value in ((0x21, 0x55), (0x70, 0x0B), (0x3FF, 0x11), (0x00, 0x22), (0x61, 0x03)):
        board.bus.ports.write(port, 1, value)
    board.reset()
    assert board.bus.ports.read(0x21, 1) == before
    assert board.bus.ports.read(0x3FF, 1) == 0
    assert board.bus.ports.read(0x61, 1) & 0x0F == 0
