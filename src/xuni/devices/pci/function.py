"""A PCI function with memory BARs, an interrupt pin, message-signalled interrupts, and DMA.

Spec: PCI Local Bus Specification 3.0, sections 6.2.2 (command), 6.2.3 (status), 6.2.5.1 (base address registers), 6.8.1
(MSI capability).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from xuni.bus.lines import Line
from xuni.bus.mmio import Mmio
from xuni.bus.ports import WideDevice
from xuni.devices.pci.bus import ConfigSpace
from xuni.devices.pci.dma import DmaPort

COMMAND, STATUS, BAR0, CAPABILITIES, INTERRUPT_LINE, INTERRUPT_PIN = 0x04, 0x06, 0x10, 0x34, 0x3C, 0x3D
MEMORY_SPACE, BUS_MASTER, INTERRUPT_DISABLE = 1 << 1, 1 << 2, 1 << 10
INTERRUPT_STATUS, CAPABILITY_LIST = 1 << 3, 1 << 4
BARS_END: Final = 0x28
MSI: Final = 0x40
"""Where the MSI capability lies in configuration space: identifier, next, control, address, data."""
MSI_CAPABILITY, MSI_ENABLE, MSI_64_BIT = 0x05, 1 << 0, 1 << 7
ADDRESS_END: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class Region:
    """One memory BAR: its number, its size in bytes (a power of two, at least 16), and what answers there."""

    bar: int
    size: int
    device: WideDevice


class PciDevice(ConfigSpace):
    """A function's configuration space and its wires. Subclasses add what is behind the BARs."""

    def __init__(self, vendor: int, device: int, class_code: int, revision: int, source: int, dma: DmaPort, line: Line) -> None:
        """`source` is the function's requester identifier, `line` the wire of its pin INTA#."""
        super().__init__(vendor, device, class_code, revision)
        self.source = source
        self._dma = dma
        self._line = line
        self._asserted = False
        self._regions: list[Region] = []
        self._decoder: BarDecoder | None = None
        self._power_on = b""
        self.writable[COMMAND : COMMAND + 2] = (MEMORY_SPACE | BUS_MASTER | INTERRUPT_DISABLE).to_bytes(2, "little")
        self._put(INTERRUPT_PIN, 1, 1)

    def add_region(self, bar: int, size: int, device: WideDevice, address: int) -> None:
        """A 32-bit memory BAR, which firmware left at `address`."""
        if not 0 <= bar < 6 or size < 16 or size & size - 1 or address % size:
            raise ValueError(f"BAR {bar}: {size:#x} bytes at {address:#x} are no power of two at a multiple of it")
        at = BAR0 + 4 * bar
        self.writable[at : at + 4] = (-size & 0xFFFF_FFF0).to_bytes(4, "little")
        self._put(at, 4, address)
        self._regions.append(Region(bar, size, device))

    def add_msi(self) -> None:
        """One message, with a 64-bit address."""
        self._put(STATUS, 2, CAPABILITY_LIST)
        self._put(CAPABILITIES, 1, MSI)
        self._put(MSI, 4, MSI_64_BIT << 16 | MSI_CAPABILITY)
        self.writable[MSI + 2] = MSI_ENABLE
        self.writable[MSI + 4 : MSI + 14] = b"\xfc" + b"\xff" * 9  # address bits 1:0 are 0

    def plug(self, decoder: BarDecoder, interrupt: int) -> None:
        """Leave the function as firmware does: decoding its BARs, its interrupt line told. A reset comes back here."""
        self._put(COMMAND, 2, MEMORY_SPACE)
        self._put(INTERRUPT_LINE, 1, interrupt)
        self._power_on = bytes(self.data)
        self._decoder = decoder
        decoder.add(self)

    def reset(self) -> None:
        """What `plug` left; the pin is released."""
        self.data[:] = self._power_on
        self._asserted = False
        self._settle()

    # -- for the bus -------------------------------------------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`; the status register tells the pin's level."""
        self.data[STATUS] = self.data[STATUS] & ~INTERRUPT_STATUS | (INTERRUPT_STATUS if self._asserted else 0)
        return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Change writable bits; BARs move at once, and the pin follows its enable bits."""
        super().write_config(offset, size, value)
        self._settle()

    def decoded(self) -> Iterator[tuple[int, Region]]:
        """The BARs that answer now, with their addresses. One at 0, or up to 4 GiB (all ones, to size it), does not."""
        if self._command & MEMORY_SPACE:
            for region in self._regions:
                base = ConfigSpace.read_config(self, BAR0 + 4 * region.bar, 4) & -region.size
                if base and base + region.size < ADDRESS_END:
                    yield base, region

    # -- for the device ----------------------------------------------------------------------------------------------

    def interrupt(self, asserted: bool) -> None:
        """Assert or release the interrupt. With MSI each assertion is a message, and a release nothing."""
        self._asserted = asserted
        if asserted and self._msi_enabled:
            address = ConfigSpace.read_config(self, MSI + 4, 8)
            self.store(address, ConfigSpace.read_config(self, MSI + 12, 2).to_bytes(4, "little"))
        self._drive()

    def fetch(self, address: int, length: int) -> bytes:
        """DMA from memory; all ones unless the function is a bus master."""
        return self._dma.fetch(self.source, address, length) if self._command & BUS_MASTER else b"\xff" * length

    def store(self, address: int, data: bytes) -> None:
        """DMA to memory; nothing unless the function is a bus master."""
        if self._command & BUS_MASTER:
            self._dma.store(self.source, address, data)

    @property
    def _command(self) -> int:
        return ConfigSpace.read_config(self, COMMAND, 2)

    @property
    def _msi_enabled(self) -> bool:
        return self.data[CAPABILITIES] == MSI and bool(self.data[MSI + 2] & MSI_ENABLE)

    def _drive(self) -> None:
        self._line.set(self._asserted and not self._msi_enabled and not self._command & INTERRUPT_DISABLE)

    def _settle(self) -> None:
        self._drive()
        if self._decoder:
            self._decoder.update()


class BarDecoder:
    """Puts BARs on the memory bus where the guest wants them.

    The board's own devices win: a BAR that the guest moves onto one, or onto an earlier function's, answers nowhere
    until one of the two moves away.
    """

    def __init__(self, mmio: Mmio) -> None:
        self._mmio = mmio
        self._functions: list[PciDevice] = []
        self._wanted: list[tuple[int, Region]] = []
        self._attached: list[int] = []

    def add(self, function: PciDevice) -> None:
        """Decode this function's BARs from now on."""
        self._functions.append(function)
        self.update()

    def update(self) -> None:
        """A command or base address register may have changed."""
        wanted = [found for function in self._functions for found in function.decoded()]
        if wanted == self._wanted:
            return
        for base in self._attached:
            self._mmio.detach(base)
        self._wanted, self._attached = wanted, []
        for base, region in wanted:
            try:
                self._mmio.attach(base, region.size, region.device)
            except ValueError:
                continue
            self._attached.append(base)
