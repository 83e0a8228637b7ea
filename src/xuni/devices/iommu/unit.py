"""The remapping unit: commands, the invalidation queue, and the requests that pass through it.

Spec: VT-d 3.1, sections 6.5 (invalidation), 11.4. Nothing is cached, so an invalidation has nothing to do but complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from xuni.bus.messages import MSI_BASE, MSI_END, InterruptMessage, InterruptSink, decode_msi
from xuni.devices.iommu import interrupts, translation
from xuni.devices.iommu.faults import QUEUE_ERROR, Event, Fault, FaultLog, Reason
from xuni.devices.iommu.registers import PAGE, SIZE, Reg, RegisterFile
from xuni.devices.pci.dma import DirectDma, DmaMemory, is_interrupt, pages
from xuni.memory.guest import GuestAddressError

# GCMD and GSTS have the same bits. Those of _SWITCHES stay as written, the others act once.
TRANSLATION, ROOT_TABLE, QUEUE, REMAPPING, TABLE, COMPATIBILITY = (1 << bit for bit in (31, 30, 26, 25, 24, 23))
_SWITCHES: Final = TRANSLATION | QUEUE | REMAPPING | COMPATIBILITY

# CAP: six-bit domain count code, no required caching or write-buffer flushing.
DOMAINS_64K, PAGE_SELECTIVE, LARGE_PAGES, DRAIN = 6, 1 << 39, 3 << 34, 3 << 54
MAX_ADDRESS_MASK: Final = 18 << 48
# ECAP.
QUEUED_INVALIDATION, INTERRUPT_REMAPPING, PASS_THROUGH = 1 << 1, 1 << 3, 1 << 6
MAX_HANDLE_MASK: Final = 15 << 20

COMPLETED: Final = 1 << 0
"""Invalidation completion status: a wait descriptor asked for an interrupt."""
WAIT_INTERRUPT, WAIT_STATUS = 1 << 4, 1 << 5  # flags of a wait descriptor


@dataclass(frozen=True, slots=True)
class IommuConfig:
    """An Intel VT-d remapping unit for all of the board's PCI functions and its IOAPIC."""

    base: int = 0xFED9_0000
    """Guest-physical address of its registers."""
    address_width: int = 39
    """Bits of bus addresses: 39 (three-level tables), or 48 (four-level ones too)."""
    interrupt_remapping: bool = True

    @property
    def widths(self) -> tuple[int, ...]:
        """Address widths of the tables that it walks."""
        return (39, 48) if self.address_width == 48 else (39,)

    @property
    def capabilities(self) -> int:
        """The CAP register."""
        supported = sum(1 << (width - 30) // 9 for width in self.widths)
        return (DOMAINS_64K | supported << 8 | self.address_width - 1 << 16 | Reg.FRCD >> 4 << 24 | LARGE_PAGES
                | PAGE_SELECTIVE | MAX_ADDRESS_MASK | DRAIN)  # fmt: skip

    @property
    def extended_capabilities(self) -> int:
        """The ECAP register."""
        remapping = INTERRUPT_REMAPPING | MAX_HANDLE_MASK if self.interrupt_remapping else 0
        return QUEUED_INVALIDATION | PASS_THROUGH | Reg.IVA >> 4 << 8 | remapping


class Iommu:
    """The chip: registers by `read` and `write`, DMA by `fetch` and `store`, the IOAPIC's messages by `remap`."""

    SIZE: Final = SIZE

    def __init__(self, memory: DmaMemory, sink: InterruptSink, config: IommuConfig | None = None) -> None:
        self._config = config or IommuConfig()
        self._memory = memory
        self._sink = sink
        self._direct = DirectDma(memory, sink)
        self.reset()

    def reset(self) -> None:
        """Power-on state: nothing is remapped."""
        config = self._config
        self.registers = RegisterFile(config.capabilities, config.extended_capabilities)
        self.faults = FaultLog(self.registers, self._sink)
        self._completion = Event(self.registers, Reg.IECTL, self._sink)
        self._root_table = self._interrupt_table = self._interrupt_entries = 0

    # -- requests ----------------------------------------------------------------------------------------------------

    def fetch(self, source: int, address: int, length: int) -> bytes:
        """A DMA read; pages that the tables do not grant read all ones."""
        if not self._enabled(TRANSLATION):
            return self._direct.fetch(source, address, length)
        parts = []
        for _, at, part in pages(address, length):
            found = None if MSI_BASE <= at < MSI_END else self._translated(source, at, write=False)
            parts.append(b"\xff" * part if found is None else self._direct.fetch(source, found, part))
        return b"".join(parts)

    def store(self, source: int, address: int, data: bytes) -> None:
        """A DMA write or an interrupt message; pages that the tables do not grant stay as they are."""
        if MSI_BASE <= address < MSI_END:
            if is_interrupt(address, data):
                message = self.remap(address, int.from_bytes(data, "little"), source)
                if message:
                    self._sink.deliver(message)
            return
        for offset, at, part in pages(address, len(data)):
            if MSI_BASE <= at < MSI_END:
                continue
            found = self._translated(source, at, write=True) if self._enabled(TRANSLATION) else at
            # What tables map onto the interrupt range is no interrupt (section 3.14), and no memory is there.
            if found is not None and not MSI_BASE <= found < MSI_END:
                self._direct.store(source, found, data[offset : offset + part])

    def remap(self, address: int, data: int, source: int | None = None) -> InterruptMessage | None:
        """What an interrupt message means; None if it is blocked. The IOAPIC's have no source, and it is not verified."""
        if not self._enabled(REMAPPING):
            return decode_msi(address, data)
        try:
            if address & interrupts.REMAPPABLE:
                return interrupts.remap(self._memory, self._interrupt_table, self._interrupt_entries, address, data, source)
            if self._enabled(COMPATIBILITY):
                return decode_msi(address, data)
            raise Fault(Reason.COMPATIBILITY_BLOCKED, 0)
        except Fault as fault:
            self.faults.record(fault, source or 0, read=False)
            return None

    # -- registers ---------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A load."""
        return self.registers.get(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A store: 4 or 8 bytes, aligned (section 11.2); others are ignored."""
        if size not in (4, 8) or offset % size:
            return
        self.registers.guest_write(offset, size, value)
        for dword in range(offset, offset + size, 4):
            self._written(dword)

    def _written(self, dword: int) -> None:
        """What a store into these four bytes sets off."""
        registers = self.registers
        match dword:
            case 0x18: self._command(registers.get(Reg.GCMD, 4))
            case 0x2C: self._complete(Reg.CCMD, requested=61, actual=59)
            case 0x34:
                self.faults.cleared()
                self._run_queue()
            case 0x22C: self.faults.cleared()
            case 0x38: self.faults.event.unmasked()
            case 0x88: self._run_queue()
            case 0x90: registers.put(Reg.IQH, 8, 0)
            case 0x9C:
                if not registers.get(Reg.ICS, 4) & COMPLETED:
                    self._completion.settle()
            case 0xA0: self._completion.unmasked()
            case 0xFC: self._complete(Reg.IOTLB, requested=60, actual=57)

    def _command(self, command: int) -> None:
        registers = self.registers
        before = registers.get(Reg.GSTS, 4)
        if not self._config.interrupt_remapping:
            command &= ~(REMAPPING | TABLE | COMPATIBILITY)
        if command & ROOT_TABLE:
            self._root_table = registers.get(Reg.RTADDR, 8) & PAGE
        if command & TABLE:
            table = registers.get(Reg.IRTA, 8)
            self._interrupt_table, self._interrupt_entries = table & PAGE, 2 << (table & 0xF)
        acted = (command | before) & (ROOT_TABLE | TABLE)
        registers.put(Reg.GSTS, 4, command & _SWITCHES | acted)
        registers.put(Reg.GCMD, 4, 0)  # write-only
        if (command ^ before) & QUEUE:
            registers.put(Reg.IQH, 8, 0)
            self._run_queue()

    def _complete(self, register: Reg, requested: int, actual: int) -> None:
        """A register-based invalidation is done as it was asked for: the request bit falls, the granularity is told."""
        value = self.registers.get(register, 8)
        if value >> 63:
            granularity = value >> requested & 3
            self.registers.put(register, 8, value & ~(1 << 63 | 3 << actual) | granularity << actual)

    # -- the invalidation queue --------------------------------------------------------------------------------------

    def _run_queue(self) -> None:
        """Execute descriptors up to the tail: at most as many as the queue has. An error stops it until it is cleared."""
        registers = self.registers
        address = registers.get(Reg.IQA, 8)
        size = 0x1000 << (address & 7)
        head, tail = registers.get(Reg.IQH, 8), registers.get(Reg.IQT, 8)
        if not self._enabled(QUEUE) or registers.get(Reg.FSTS, 4) & QUEUE_ERROR:
            return
        if tail >= size:
            self.faults.queue_error()
            return
        while head != tail:
            try:
                valid = self._execute(self._memory.read((address & PAGE) + head, 16))
            except GuestAddressError:
                valid = False
            if not valid:
                self.faults.queue_error()
                return
            head = (head + 16) % size
            registers.put(Reg.IQH, 8, head)

    def _execute(self, descriptor: bytes) -> bool:
        """One descriptor; False if there is no such one."""
        low, upper = int.from_bytes(descriptor[:8], "little"), int.from_bytes(descriptor[8:], "little")
        match low & 0xF:
            case 1 | 2:  # context cache, IOTLB: nothing is cached, but they must have a granularity
                return bool(low >> 4 & 3)
            case 4:  # interrupt entry cache
                return True
            case 5:
                if low & WAIT_STATUS:
                    self._memory.write(upper & ~3, (low >> 32).to_bytes(4, "little"))
                if low & WAIT_INTERRUPT and not self.registers.get(Reg.ICS, 4) & COMPLETED:
                    self.registers.put(Reg.ICS, 4, COMPLETED)
                    self._completion.signal()
                return True
            case _:
                return False  # device TLBs are not offered, nor what scalable mode adds

    # -- parts -------------------------------------------------------------------------------------------------------

    def _enabled(self, switch: int) -> bool:
        return bool(self.registers.get(Reg.GSTS, 4) & switch)

    def _translated(self, source: int, address: int, *, write: bool) -> int | None:
        try:
            return translation.translate(self._memory, self._root_table, source, address, write=write, widths=self._config.widths)
        except Fault as fault:
            self.faults.record(fault, source, read=not write)
            return None
