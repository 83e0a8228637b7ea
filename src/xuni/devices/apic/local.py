"""The local APIC: registers in memory (xAPIC) and in MSRs (x2APIC), priorities, and the INTR pin of its processor.

The machine hands it the processor's accesses (`read`, `write`, `read_msr`, `write_msr`, `tpr_class`), other chips send
it interrupts through `ApicBus`, and it drives the processor through `Core`. Spec: Intel SDM vol. 3A, chapter "APIC".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from xuni.bus.messages import Delivery, InterruptMessage
from xuni.bus.timers import Timers
from xuni.devices.apic.state import (
    ALL,
    BASE_BSP,
    BASE_ENABLE,
    BASE_X2APIC,
    DEFAULT_BASE,
    ESR_ILLEGAL_REGISTER,
    ESR_RECEIVE_ILLEGAL_VECTOR,
    ESR_SEND_ILLEGAL_VECTOR,
    ICR_PENDING,
    LVT_LEVEL,
    LVT_MASKED,
    LVT_WRITABLE,
    MSR_APIC_BASE,
    MSR_TSC_DEADLINE,
    MSR_X2APIC,
    MSR_X2APIC_END,
    PAGE,
    SVR_ENABLE,
    X2APIC_READABLE,
    X2APIC_WRITABLE,
    LocalApicConfig,
    LocalApicState,
    Reg,
)
from xuni.devices.apic.timer import ApicTimer

VERSION: Final = 0x0005_0014
"""Integrated APIC, six LVT entries, no suppression of EOI broadcasts."""
_FIXED: Final = Delivery.FIXED
_NMI, _INIT, _STARTUP = Delivery.NMI, Delivery.INIT, Delivery.STARTUP
_VECTORED: Final = (Delivery.FIXED, Delivery.LOWEST_PRIORITY)
_DELIVERIES: Final = tuple(Delivery)
_EXTINT: Final = Delivery.EXTINT << 8
_LVT_TIMER, _LVT_LINT0, _ICR = int(Reg.LVT_TIMER), int(Reg.LVT_LINT0), int(Reg.ICR)


class Core(Protocol):
    """The processor behind a local APIC."""

    def set_interrupt(self, level: bool, /) -> None:
        """Drive INTR."""
        ...

    def nmi(self) -> None:
        """Pulse NMI."""
        ...

    def init(self) -> None:
        """Pulse INIT#."""
        ...

    def startup(self, vector: int, /) -> None:
        """Start-up IPI."""
        ...


class Peers(Protocol):
    """The other local APICs and the IOAPICs; `xuni.devices.apic.bus.ApicBus`."""

    def send(self, sender: LocalApic, message: InterruptMessage, shorthand: int, /) -> bool:
        """Carry an inter-processor interrupt; False if nobody accepted it."""
        ...

    def eoi(self, vector: int, /) -> None:
        """A level-triggered interrupt was served."""
        ...

    def acknowledge_legacy(self) -> int:
        """INTA to the legacy controller."""
        ...


class LocalApic:
    """One processor's local APIC; `apic_id` is its initial APIC id."""

    def __init__(
        self,
        apic_id: int,
        core: Core,
        peers: Peers,
        timers: Timers,
        tsc_time: Callable[[int], int],
        config: LocalApicConfig | None = None,
        state: LocalApicState | None = None,
    ) -> None:
        self.id = apic_id
        self.config = config or LocalApicConfig()
        self.state = state or LocalApicState()
        if state is None:
            self.state.base |= BASE_BSP if apic_id == 0 else 0
            self.state.waiting_for_sipi = apic_id != 0
        self._core = core
        self._peers = peers
        self._pin = False
        self.timer = ApicTimer(timers, tsc_time, self._timer_expired, self.config, self.state)
        self._registers = self._register_table()

    # -- state -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Power-up: INIT, and the id and base registers too."""
        self.state.xapic_id = None
        self._initialize(DEFAULT_BASE | BASE_ENABLE | (BASE_BSP if self.id == 0 else 0))

    @property
    def enabled(self) -> bool:
        """IA32_APIC_BASE.EN: without it the processor has no local APIC, and LINT0 is its INTR pin."""
        return bool(self.state.base & BASE_ENABLE)

    @property
    def x2apic(self) -> bool:
        """IA32_APIC_BASE.EXTD."""
        return bool(self.state.base & BASE_X2APIC)

    @property
    def page(self) -> int | None:
        """Guest-physical address of the register page, or None while there is none."""
        base = self.state.base
        return base & ~(PAGE - 1) if base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE else None

    @property
    def ppr(self) -> int:
        """Processor priority: the higher of TPR and the class in service."""
        s = self.state
        in_service = s.isr.bit_length() - 1 & 0xF0 if s.isr else 0
        return s.tpr if s.tpr & 0xF0 >= in_service else in_service

    @property
    def tpr_class(self) -> int:
        """CR8."""
        return self.state.tpr >> 4

    @tpr_class.setter
    def tpr_class(self, value: int) -> None:
        self.state.tpr = value << 4 & 0xF0
        self._update()

    @property
    def physical_id(self) -> int:
        """What a physical destination means: the id register, which a guest may write in xAPIC mode."""
        written = self.state.xapic_id
        return self.id if self.x2apic or written is None else written

    @property
    def logical_id(self) -> int:
        """LDR; in x2APIC mode it follows from the id: cluster 31:16, one bit of 15:0."""
        return (self.id >> 4) << 16 | 1 << (self.id & 15) if self.x2apic else self.state.ldr

    # -- interrupts in -----------------------------------------------------------------------------------------------

    def matches(self, destination: int, logical: bool) -> bool:
        """Whether a message's destination field means this APIC."""
        base = self.state.base
        if not base & BASE_ENABLE:
            return False
        x2apic = base & BASE_X2APIC
        if not logical:
            return destination == (self.id if x2apic else self.physical_id) or destination in (0xFF, ALL)
        if destination == (ALL if x2apic else 0xFF):
            return True
        if x2apic:
            logical_id = self.logical_id
            if destination < 0x100:  # an 8-bit field from an IOAPIC or an MSI reaches cluster 0
                return logical_id >> 16 == 0 and bool(logical_id & destination)
            return destination >> 16 == logical_id >> 16 and bool(destination & logical_id & 0xFFFF)
        mine = self.state.ldr >> 24
        if self.state.dfr >> 28 == 0xF:  # flat model
            return bool(mine & destination)
        return mine >> 4 == destination >> 4 and bool(mine & destination & 0xF)

    def accept(self, vector: int, delivery: Delivery, level: bool) -> bool:
        """Take an interrupt that is meant for this APIC; False if it is not taken."""
        s = self.state
        if delivery in _VECTORED:
            if not s.svr & SVR_ENABLE:
                return False
            if vector < 16:
                self._error(ESR_RECEIVE_ILLEGAL_VECTOR)
                return False
            bit = 1 << vector
            s.irr |= bit
            s.tmr = s.tmr | bit if level else s.tmr & ~bit
            self._update()
            return True
        if delivery is _NMI:
            self._core.nmi()
        elif delivery is _INIT:
            self._initialize(s.base)
            self._core.init()
        elif delivery is _STARTUP:
            if s.waiting_for_sipi:
                s.waiting_for_sipi = False
                self._core.startup(vector)
        else:
            return False  # there is no SMM, and ExtINT comes by the LINT0 pin
        return True

    def set_lint(self, pin: int, level: bool) -> None:
        """A new level of LINT0 (INTR of the legacy controller) or LINT1 (NMI)."""
        rose = level and not self.state.lint[pin]
        self.state.lint[pin] = level
        if not self.enabled:
            if pin and rose:
                self._core.nmi()
        elif rose:
            self._deliver_local(Reg.LVT_LINT0 if pin == 0 else Reg.LVT_LINT1)
        self._update()

    def raise_local(self, reg: int) -> None:
        """An event of the processor itself: thermal or performance-monitoring interrupt."""
        if self.enabled and not self.state.lvt[reg] & LVT_MASKED:
            self._deliver_local(reg)
            if reg == Reg.LVT_PERFORMANCE:
                self.state.lvt[reg] |= LVT_MASKED  # SDM vol. 3B, "Generating an Interrupt on Overflow"

    # -- interrupts out ----------------------------------------------------------------------------------------------

    def acknowledge(self) -> int | None:
        """INTA from the processor: the vector to deliver, or None if nothing is deliverable any more."""
        s = self.state
        if self._external():
            vector = self._peers.acknowledge_legacy()
            self._update()
            return vector
        if not self._deliverable():
            return None
        number = s.irr.bit_length() - 1
        s.irr &= ~(1 << number)
        s.isr |= 1 << number
        self._update()
        return number

    # -- memory-mapped registers -------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A load from the register page: 32-bit registers at multiples of 16."""
        if offset & 0xC:
            return 0
        value = self._read_register(offset >> 4) >> 8 * (offset & 3)
        return value if size < 8 else value & ALL

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to the register page; anything but an aligned 32-bit store is undefined and ignored here."""
        if offset & 0xF or size < 4:
            return
        self._write_register(offset >> 4, value & ALL)

    # -- MSRs --------------------------------------------------------------------------------------------------------

    def read_msr(self, index: int) -> int | None:
        """RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register; None is #GP(0)."""
        if index == MSR_APIC_BASE:
            return self.state.base
        if index == MSR_TSC_DEADLINE:
            return self.state.tsc_deadline if self.config.tsc_deadline else None
        reg = index - MSR_X2APIC
        if not (self.x2apic and reg in X2APIC_READABLE):
            return None
        return self.state.icr if reg == _ICR else self._read_register(reg)

    def write_msr(self, index: int, value: int) -> bool:
        """WRMSR to one of the same registers; False is #GP(0)."""
        if MSR_X2APIC <= index < MSR_X2APIC_END:
            return self._write_x2apic(index - MSR_X2APIC, value)
        if index == MSR_APIC_BASE:
            return self._write_base(value)
        if index == MSR_TSC_DEADLINE and self.config.tsc_deadline:
            self.timer.write_deadline(value)
            return True
        return False

    def _write_x2apic(self, reg: int, value: int) -> bool:
        writable = X2APIC_WRITABLE.get(reg)
        if not self.state.base & BASE_X2APIC or writable is None or value & ~writable:
            return False
        if reg == _ICR:
            self._send(value)
        elif reg in self._registers:
            self._registers[reg][1](value)
        else:  # self-IPI, the one register that exists in x2APIC mode alone
            if value < 16:
                self._error(ESR_SEND_ILLEGAL_VECTOR)
            self.accept(value, _FIXED, False)
        return True

    def _write_base(self, value: int) -> bool:
        """State changes of SDM vol. 3A, figure "Local APIC State Transitions with IA32_APIC_BASE"."""
        s, mode = self.state, BASE_ENABLE | BASE_X2APIC
        address_bits = (1 << self.config.physical_address_bits) - PAGE
        allowed = address_bits | BASE_BSP | BASE_ENABLE | (BASE_X2APIC if self.config.x2apic else 0)
        old, new = s.base & mode, value & mode
        if value & ~allowed or new == BASE_X2APIC:
            return False
        if old == mode and new == BASE_ENABLE or old == 0 and new == mode:
            return False  # x2APIC is left only by disabling, and entered only from xAPIC
        s.base = value
        if new != old:
            s.xapic_id = None
            if new == mode:
                s.icr &= ALL  # the destination field has another layout now
        self._update()
        return True

    # -- registers, as both interfaces see them ----------------------------------------------------------------------

    def _register_table(self) -> dict[int, tuple[Callable[[], int], Callable[[int], None]]]:
        """How each register is read and written; a number that is missing here is an illegal register address."""
        read_only = self._write_read_only
        lvt = {
            reg: (partial(self._read_lvt, reg), partial(self._write_lvt, reg)) for reg in LVT_WRITABLE
        }  # fmt: skip
        vectors: dict[int, tuple[Callable[[], int], Callable[[int], None]]] = {
            block + i: (partial(self._read_vectors, name, 32 * i), read_only)
            for block, name in ((Reg.ISR, "isr"), (Reg.TMR, "tmr"), (Reg.IRR, "irr"))
            for i in range(8)
        }
        return {
            Reg.ID: (lambda: self.id if self.x2apic else self.physical_id << 24 & ALL, self._write_id),
            Reg.VERSION: (lambda: VERSION, read_only),
            Reg.TPR: (lambda: self.state.tpr, self._write_tpr),
            Reg.APR: (lambda: self.ppr, read_only),
            Reg.PPR: (lambda: self.ppr, read_only),
            Reg.EOI: (lambda: 0, self._write_eoi),
            Reg.REMOTE_READ: (lambda: 0, read_only),
            Reg.LDR: (lambda: self.logical_id, self._write_ldr),
            Reg.DFR: (lambda: self.state.dfr, self._write_dfr),
            Reg.SVR: (lambda: self.state.svr, self._write_svr),
            Reg.ESR: (lambda: self.state.esr, self._write_esr),
            Reg.ICR: (lambda: self.state.icr & ALL, self._write_icr),
            Reg.ICR_HIGH: (lambda: self.state.icr >> 32, self._write_icr_high),
            Reg.INITIAL_COUNT: (lambda: self.state.initial_count, self.timer.write_initial_count),
            Reg.CURRENT_COUNT: (self.timer.current_count, read_only),
            Reg.DIVIDE: (lambda: self.state.divide, self.timer.write_divide),
            **lvt,
            **vectors,
        }

    def _read_register(self, reg: int) -> int:
        register = self._registers.get(reg)
        if register is None:
            self._error(ESR_ILLEGAL_REGISTER)
            return 0
        return register[0]()

    def _write_register(self, reg: int, value: int) -> None:
        register = self._registers.get(reg)
        if register is None:
            self._error(ESR_ILLEGAL_REGISTER)
        else:
            register[1](value)

    def _write_read_only(self, value: int) -> None:
        """Nothing happens."""

    def _read_vectors(self, name: str, shift: int) -> int:
        value: int = getattr(self.state, name)
        return value >> shift & ALL

    def _write_id(self, value: int) -> None:
        self.state.xapic_id = value >> 24

    def _write_tpr(self, value: int) -> None:
        self.state.tpr = value & 0xFF
        self._update()

    def _write_ldr(self, value: int) -> None:
        self.state.ldr = value & 0xFF00_0000

    def _write_dfr(self, value: int) -> None:
        self.state.dfr = value | 0x0FFF_FFFF

    def _write_svr(self, value: int) -> None:
        s = self.state
        s.svr = value & 0x3FF
        if not value & SVR_ENABLE:
            for entry in s.lvt:
                s.lvt[entry] |= LVT_MASKED
        self._update()

    def _write_esr(self, value: int) -> None:
        self.state.esr, self.state.errors = self.state.errors, 0

    def _write_icr(self, value: int) -> None:
        self._send(self.state.icr & ~ALL | value)

    def _write_icr_high(self, value: int) -> None:
        self.state.icr = self.state.icr & ALL | (value & 0xFF00_0000) << 32

    def _read_lvt(self, reg: int) -> int:
        return self.state.lvt[reg]

    def _write_lvt(self, reg: int, value: int) -> None:
        s, old_mode = self.state, self.timer.mode
        value &= LVT_WRITABLE[reg]
        if reg == _LVT_TIMER and not self.config.tsc_deadline:
            value &= ~(1 << 18)
        if not s.svr & SVR_ENABLE:
            value |= LVT_MASKED  # while software-disabled the mask bits cannot be cleared
        s.lvt[reg] = value
        if reg == _LVT_TIMER:
            self.timer.mode_changed(old_mode)
        elif reg == _LVT_LINT0:
            if s.lint[0] and value & LVT_LEVEL:
                self._deliver_local(reg)
            self._update()

    def _write_eoi(self, value: int) -> None:
        s = self.state
        if not s.isr:
            return
        vector = s.isr.bit_length() - 1
        s.isr &= ~(1 << vector)
        self._update()
        if s.tmr >> vector & 1:
            self._peers.eoi(vector)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _initialize(self, base: int) -> None:
        """INIT: all registers but the id and IA32_APIC_BASE (SDM, "Local APIC State After It Receives an INIT-Reset").

        A processor that is not the boot processor then waits for a start-up IPI.
        """
        s = self.state
        self.state = LocalApicState(base=base, xapic_id=s.xapic_id, lint=s.lint, waiting_for_sipi=not base & BASE_BSP)
        self.timer.state = self.state
        self.timer.schedule()
        self._update()

    def _timer_expired(self) -> None:
        entry = self.state.lvt[_LVT_TIMER]
        if self.enabled and not entry & LVT_MASKED:
            self.accept(entry & 0xFF, _FIXED, False)

    def _deliver_local(self, reg: int) -> None:
        entry = self.state.lvt[reg]
        delivery = _DELIVERIES[entry >> 8 & 7]
        if not entry & LVT_MASKED and delivery is not Delivery.EXTINT:
            self.accept(entry & 0xFF, delivery, False)

    def _error(self, bit: int) -> None:
        s = self.state
        if not s.errors & bit:
            s.errors |= bit
            entry = s.lvt[Reg.LVT_ERROR]
            if not entry & LVT_MASKED and entry & 0xFF >= 16:
                self.accept(entry & 0xFF, _FIXED, False)

    def _send(self, icr: int) -> None:
        """An inter-processor interrupt, as ICR describes it; the delivery-status bit is never seen set."""
        s = self.state
        icr &= ~ICR_PENDING
        s.icr = icr
        delivery = _DELIVERIES[icr >> 8 & 7]
        if delivery in _VECTORED and icr & 0xFF < 16:
            self._error(ESR_SEND_ILLEGAL_VECTOR)
            return
        if delivery is _INIT and icr >> 14 & 3 == 0b10:
            return  # INIT level de-assert: only the arbitration ids of old buses knew it
        destination = icr >> 32 if s.base & BASE_X2APIC else icr >> 56
        message = InterruptMessage(icr & 0xFF, destination, bool(icr & 1 << 11), delivery)
        self._peers.send(self, message, icr >> 18 & 3)

    def _external(self) -> bool:
        """Whether the legacy controller's request reaches the processor."""
        s = self.state
        if not s.lint[0]:
            return False
        if not s.base & BASE_ENABLE:
            return True
        return s.lvt[_LVT_LINT0] & (LVT_MASKED | 0x700) == _EXTINT

    def _deliverable(self) -> bool:
        s = self.state
        return bool(s.base & BASE_ENABLE and s.irr) and (s.irr.bit_length() - 1) >> 4 > self.ppr >> 4

    def _update(self) -> None:
        """Drive INTR for what the registers say."""
        level = self._deliverable() or self._external()
        if level != self._pin:
            self._pin = level
            self._core.set_interrupt(level)
