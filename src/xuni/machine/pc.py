"""The PC: its chips, where they sit, and how they are wired; one call a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final

from xuni.boot.layout import FACS, PCI_MEMORY, BoardFacts
from xuni.devices.acpi_pm import BLOCK_SIZE, AcpiPm, AcpiPmConfig
from xuni.devices.apic.bus import ApicBus
from xuni.devices.apic.ioapic import IoApic, IoApicConfig
from xuni.devices.apic.local import LocalApic
from xuni.devices.apic.state import SVR_ENABLE, LocalApicConfig, Reg
from xuni.devices.dma import PAGES_BASE, PAGES_COUNT, Dma8237, DmaPages
from xuni.devices.fw_cfg import PORTS as FW_CFG_PORTS
from xuni.devices.fw_cfg import FwCfg, FwCfgConfig, Key
from xuni.devices.i8042 import I8042, I8042Config
from xuni.devices.iommu.unit import Iommu, IommuConfig
from xuni.devices.pci.bus import PciBus, PciConfig, host_bridge
from xuni.devices.pci.dma import DirectDma, DmaPort
from xuni.devices.pci.edu import Edu, EduConfig
from xuni.devices.pci.function import BarDecoder
from xuni.devices.pic import PicConfig, PicPair
from xuni.devices.pit import Pit8254, PitConfig
from xuni.devices.rtc import Rtc, RtcConfig, memory_size_cells
from xuni.devices.system_ports import ResetControl, SystemControlA, SystemControlB
from xuni.devices.test_ports import (
    DebugConsole,
    DebugConsoleConfig,
    DebugExitConfig,
    DebugExitPort,
    FlushPort,
    Latch,
    ShutdownPort,
    TestDeviceConfig,
    TestIrqs,
)
from xuni.devices.uart import COM_PORTS, Uart16550, UartConfig
from xuni.isa.x86.cpustate import protected_flat, real_mode
from xuni.machine import hypercalls
from xuni.machine.console import SerialConsole
from xuni.machine.machine import Engine, Machine
from xuni.machine.stopped import DebugExit, PowerOff, Suspended
from xuni.memory.guest import GuestAddressError

if TYPE_CHECKING:
    from xuni.memory.guest import GuestMemory

IOAPIC_TIMER_PIN: Final = 2
"""ISA interrupt 0 reaches the IOAPIC here (MADT interrupt source override); the others keep their numbers."""
SHUTDOWN_PORT: Final = 0x8900
DMA_BASES: Final = (0x00, 0xC0)
E820_ENTRY: Final = Struct("<QQI")  # address, size, type (1 is usable RAM)
SYSTEM_CONTROL_B, SYSTEM_CONTROL_A = 0x61, 0x92


def host_time() -> datetime:
    """The host's wall clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class PcConfig:
    """What a PC is made of. A device whose record is None is left out."""

    cpus: int = 1
    """Virtual CPUs, 1-255."""
    local_apic: LocalApicConfig = field(default_factory=LocalApicConfig)
    io_apic: IoApicConfig = field(default_factory=IoApicConfig)
    pic: PicConfig = field(default_factory=PicConfig)
    pit: PitConfig | None = field(default_factory=PitConfig)
    """None: only counter 2 is there, behind port 0x61."""
    rtc: RtcConfig = field(default_factory=RtcConfig)
    keyboard: I8042Config | None = field(default_factory=I8042Config)
    acpi: AcpiPmConfig = field(default_factory=AcpiPmConfig)
    pci: PciConfig = field(default_factory=PciConfig)
    fw_cfg: FwCfgConfig | None = field(default_factory=FwCfgConfig)
    debug_exit: DebugExitConfig | None = None
    debug_console: DebugConsoleConfig | None = None
    test_device: TestDeviceConfig | None = None
    iommu: IommuConfig | None = None
    edu: EduConfig | None = None
    serial: tuple[UartConfig, ...] = COM_PORTS[:1]
    acpi_tables: bool = True
    """Whether the guest finds tables that describe the board."""

    def facts(self) -> BoardFacts:
        """What boot loaders tell the guest of this board."""
        return BoardFacts(self.cpus, self.io_apic, self.acpi, self.serial, self.keyboard, self.rtc, self.pci,
                          self.acpi_tables, self.iommu, ((self.edu.device, self.edu.irq),) if self.edu else ())


class Pc(Machine):
    """A PC. `console[n]` is the host's end of serial port n; the chips are attributes, for boot loaders and tests.

    To add a device: its file in `devices/` (chip, state and config records), a field in `PcConfig`, a call below, and
    its test.
    """

    def __init__(
        self,
        memory: GuestMemory,
        engine: Engine,
        config: PcConfig | None = None,
        outputs: tuple[Callable[[bytes], object], ...] = (),
        wall_clock: Callable[[], datetime] = host_time,
    ) -> None:
        """Wire the board. `outputs[n]` takes what the guest sends to serial port n; a missing one drops it.

        Raises ValueError if `config` puts two devices at one address or asks for an impossible number of CPUs.
        """
        self.config = config = config or PcConfig()
        if not 1 <= config.cpus <= 255:
            raise ValueError(f"cpus={config.cpus}: a PC has 1 to 255 of them")
        super().__init__(memory, engine, config.cpus)
        bus, timers = self.bus, self.bus.timers

        # Interrupt controllers, from the processors outward.
        self.hypercall = lambda asked: hypercalls.answer(self.local_apics, asked)
        self.apic_bus = ApicBus(acknowledge_legacy=lambda: self.pic.acknowledge())
        self.local_apics = [self._local_apic(index) for index in range(config.cpus)]
        self.pic = PicPair(output=partial(self.local_apics[0].set_lint, 0))
        self.iommu = Iommu(memory, self.apic_bus, config.iommu) if config.iommu else None
        self.dma_port: DmaPort = self.iommu or DirectDma(memory, self.apic_bus)
        self.io_apic = IoApic(self.apic_bus, config.io_apic, remap=self.iommu.remap if self.iommu else None)
        self.apic_bus.on_eoi.append(self.io_apic.eoi)
        for irq in range(24):
            self._connect(irq)

        # Chips.
        self.pit = Pit8254(timers, bus.lines.source((config.pit or PitConfig()).irq))
        self.rtc = Rtc(timers, bus.lines.source(config.rtc.irq), wall_clock, memory_size_cells(memory.size),
                       on_alarm=lambda: self.acpi.alarm())
        self.acpi = AcpiPm(timers, bus.lines.source(config.acpi.sci), self.power_off, self.suspend, self.wake, config.acpi)
        self.resume = self._resume
        self.dma = [Dma8237(stride=1), Dma8237(stride=2)]
        self.dma_pages = DmaPages()
        self.port_b = SystemControlB(self.pit.counters[2], timers.now)
        self.port_a = SystemControlA(self.request_reset)
        self.reset_control = ResetControl(self.request_reset)
        self.pci = PciBus(self.reset_control)
        self.pci.add(host_bridge(), device=0)
        self.shutdown_port = ShutdownPort(self.power_off)

        # Where they sit.
        bus.ports.attach(config.pic.first, 2, self.pic.first)
        bus.ports.attach(config.pic.second, 2, self.pic.second)
        bus.ports.attach(config.pic.elcr, 2, self.pic.elcr)
        if config.pit:
            bus.ports.attach(config.pit.base, 4, self.pit)
        bus.ports.attach(config.rtc.base, 2, self.rtc)
        bus.ports.attach(SYSTEM_CONTROL_B, 1, self.port_b)
        bus.ports.attach(SYSTEM_CONTROL_A, 1, self.port_a)
        bus.ports.attach(DMA_BASES[0], 16, self.dma[0])
        bus.ports.attach(DMA_BASES[1], 32, self.dma[1])
        bus.ports.attach(PAGES_BASE, PAGES_COUNT, self.dma_pages)
        bus.ports.attach(config.acpi.smi_command, 2, self.acpi.smi)
        bus.ports.attach(SHUTDOWN_PORT, 1, self.shutdown_port)
        bus.ports.attach_wide(config.acpi.base, BLOCK_SIZE, self.acpi)
        bus.ports.attach_wide(config.pci.base, 8, self.pci)
        bus.mmio.attach(config.io_apic.base, IoApic.SIZE, self.io_apic)
        self.resettable += [self.pic, self.io_apic, self.pit, self.rtc, self.acpi, *self.dma, self.dma_pages]
        self.resettable += [self.port_b, self.port_a, self.reset_control, self.pci, self.shutdown_port]

        # Devices that a configuration may leave out.
        if self.iommu and config.iommu:
            bus.mmio.attach(config.iommu.base, Iommu.SIZE, self.iommu)
            self.resettable.append(self.iommu)
        self.keyboard = self._keyboard(config.keyboard) if config.keyboard else None
        self.fw_cfg = self._fw_cfg(config.fw_cfg) if config.fw_cfg else None
        if config.debug_exit:
            bus.ports.attach_wide(config.debug_exit.base, config.debug_exit.count, DebugExitPort(self._debug_exit))
        if config.test_device:
            self._test_device(config.test_device)
        self.uarts: list[Uart16550] = []
        self.consoles: list[SerialConsole] = []
        for number, serial in enumerate(config.serial):
            self._serial(serial, outputs[number] if number < len(outputs) else lambda data: None)
        if config.debug_console:
            self._debug_console(config.debug_console)
        self.bars = BarDecoder(bus.mmio)
        self.edu = self._edu(config.edu) if config.edu else None

    # -- for boot loaders --------------------------------------------------------------------------------------------

    def legacy_firmware_state(self) -> None:
        """Leave the interrupt hardware as PC firmware does, for programs that begin in real mode and expect it.

        Legacy controllers at their classic vectors with timer and cascade unmasked, the timer ticking 18.2 times a
        second, each local APIC enabled and the first one a virtual wire. The caller provides the handler of vector 8.
        """
        with self.bus.lock:
            self.pic.initialize(*self.config.pic.legacy_bases, masks=(0xFA, 0xFF))
            if self.config.pit:
                self.pit.start_periodic()
            for apic in self.local_apics:
                apic.write(Reg.SVR << 4, 4, SVR_ENABLE | 0x0F)
            self.local_apics[0].write(Reg.LVT_LINT0 << 4, 4, 0x700)
            self.local_apics[0].write(Reg.LVT_LINT1 << 4, 4, 0x400)

    def power_off(self) -> None:
        """A chip's power output."""
        self.stop(PowerOff())

    def suspend(self) -> None:
        """A chip takes the power from the processors and most chips."""
        self.stop(Suspended())

    def _resume(self) -> None:
        """What firmware does after S3: the chips are set up, and the guest goes on where its waking vector points.

        ACPI 6.5, table 5.12: the vector is a real-mode address, or, if that is 0, a flat 32-bit one. Without any, or
        without tables in which one could be, the guest begins anew.
        """
        real, flat = (self.memory.read_u32(FACS + 12), self.memory.read_u64(FACS + 24)) if self.config.acpi_tables else (0, 0)
        self.reset(but=(self.rtc, self.acpi))
        if not real and not flat:
            self.request_reset()
            return
        self.legacy_firmware_state()
        state = real_mode(real >> 4 & 0xFFFF, real & 0xF) if real else protected_flat(flat & 0xFFFFFFFF)
        self.vcpus[0].start(state)

    def press_power_button(self) -> None:
        """As the button on the case does: an ACPI event."""
        with self.bus.lock:
            self.acpi.press_power_button()

    # -- wiring ------------------------------------------------------------------------------------------------------

    def _local_apic(self, index: int) -> LocalApic:
        processor = self.processors[index]
        apic = LocalApic(index, processor, self.apic_bus, self.bus.timers, processor.tsc_time, self.config.local_apic)
        self.apic_bus.apics.append(apic)
        processor.apic = apic
        return apic

    def _connect(self, irq: int) -> None:
        """Wire an interrupt line to both controllers: the cascade input has none, the timer has a pin of its own."""
        lines = self.bus.lines
        if irq < 16:
            lines.connect(irq, partial(self.pic.set_irq, irq))
        if irq != IOAPIC_TIMER_PIN:
            lines.connect(irq, partial(self.io_apic.set_pin, irq if irq else IOAPIC_TIMER_PIN))

    def _keyboard(self, config: I8042Config) -> I8042:
        chip = I8042(self.bus.lines.source(config.irq), self.request_reset)
        self.bus.ports.attach(config.base, 1, chip)
        self.bus.ports.attach(config.base + 4, 1, KeyboardCommandPort(chip))
        self.resettable.append(chip)
        return chip

    def _fw_cfg(self, config: FwCfgConfig) -> FwCfg:
        chip = FwCfg(self.memory if config.dma else None, GuestAddressError)
        chip.add_number(Key.RAM_SIZE, self.memory.size, 8)
        chip.add_number(Key.NB_CPUS, self.config.cpus, 2)
        chip.add_number(Key.MAX_CPUS, self.config.cpus, 2)
        chip.add(Key.UUID, config.uuid)
        for name, data in config.files:
            chip.add_file(name, data)
        chip.add_file("etc/e820", b"".join(E820_ENTRY.pack(start, end - start, 1) for start, end in self.memory.ram))
        self.bus.ports.attach_wide(config.base, FW_CFG_PORTS, chip)
        self.resettable.append(chip)
        return chip

    def _edu(self, config: EduConfig) -> Edu:
        chip = Edu(self.bus.timers, self.dma_port, self.bus.lines.source(config.irq), PCI_MEMORY, config)
        self.pci.add(chip, config.device)
        chip.plug(self.bars, config.irq)
        self.resettable.append(chip)
        return chip

    def _serial(self, config: UartConfig, write: Callable[[bytes], object]) -> None:
        console = SerialConsole(write)
        console.uart = Uart16550(console.transmit, self.bus.lines.source(config.irq), room=console.pump)
        self.bus.ports.attach(config.base, 8, console.uart)
        self.uarts.append(console.uart)
        self.consoles.append(console)
        self.flush.append(console.flush)
        self.resettable.append(console.uart)

    def _debug_console(self, config: DebugConsoleConfig) -> None:
        transmit = self.consoles[0].transmit if self.consoles else lambda byte: None
        for port in config.ports:
            self.bus.ports.attach(port, 1, DebugConsole(transmit))

    def _debug_exit(self, value: int) -> None:
        self.stop(DebugExit(value))

    def _test_device(self, config: TestDeviceConfig) -> None:
        irqs = TestIrqs([self.bus.lines.source(irq) for irq in range(24)])
        latches = [Latch(4), Latch(4), Latch(config.memory_size)]
        self.bus.ports.attach_wide(config.latch, 4, latches[0])
        self.bus.ports.attach_wide(config.flush, 4, FlushPort())
        self.bus.ports.attach_wide(config.io_latch, 1, latches[1])
        self.bus.ports.attach(config.irq, 24, irqs)
        self.bus.mmio.attach(config.memory, config.memory_size, latches[2])
        self.resettable += [irqs, *latches]


class KeyboardCommandPort:
    """The keyboard controller's port at offset 4, which the board decodes apart from port 0x61 between."""

    def __init__(self, chip: I8042) -> None:
        self._chip = chip

    def read(self, offset: int) -> int:
        """The status register."""
        return self._chip.read(4)

    def write(self, offset: int, value: int) -> None:
        """A command."""
        self._chip.write(4, value)
