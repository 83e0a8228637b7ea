"""Two cascaded 8259A interrupt controllers with edge/level control registers (ELCR).

Spec: Intel 8259A data sheet (231468); ELCR: Intel 82371SB data sheet, section 2.5.5. Without an input that is still up
at the acknowledge, the chip answers with its lowest vector: the spurious interrupt 7 (15 on the second).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

CASCADE: Final = 2
"""The first chip's input that the second chip drives."""

ICW1, ICW1_NEEDS_ICW4, ICW1_SINGLE, ICW1_LEVEL = 0x10, 0x01, 0x02, 0x08
ICW4_AEOI, ICW4_SPECIAL_FULLY_NESTED = 0x02, 0x10
OCW3, OCW3_POLL, OCW3_READ, OCW3_READ_ISR, OCW3_SET_SMM, OCW3_SMM = 0x08, 0x04, 0x02, 0x01, 0x40, 0x20
LEVEL_CAPABLE: Final = (0b1111_1000, 0b1101_1110)
"""ELCR bits that can be set: the timer, the keyboard, the cascade, the RTC and the FPU are always edge-triggered."""


@dataclass(slots=True)
class PicState:
    """One chip's registers. `lowest` is the input of lowest priority: 7 unless rotated."""

    irr: int = 0
    isr: int = 0
    imr: int = 0
    inputs: int = 0
    elcr: int = 0
    base: int = 0
    lowest: int = 7
    init_step: int = 0
    """Which initialization command word comes next (2, 3 or 4); 0 when initialized."""
    needs_icw4: bool = False
    single: bool = False
    level_mode: bool = False
    auto_eoi: bool = False
    rotate_on_auto_eoi: bool = False
    special_fully_nested: bool = False
    special_mask: bool = False
    read_isr: bool = False
    poll: bool = False


class Pic8259:
    """One chip: two registers at offsets 0 and 1. `output` drives its INT pin."""

    def __init__(self, output: Callable[[bool], None], first: bool, state: PicState | None = None) -> None:
        self._output = output
        self._first = first
        self.state = state or PicState()
        self._level = False
        self.cascaded: Pic8259 | None = None

    def reset(self) -> None:
        """Power-on state; the inputs keep their levels."""
        self.state = PicState(inputs=self.state.inputs)
        self._update()

    def set_input(self, number: int, level: bool) -> None:
        """A new level of one of the eight request inputs."""
        s, bit = self.state, 1 << number
        if level:
            if s.elcr & bit or s.level_mode or not s.inputs & bit:
                s.irr |= bit
            s.inputs |= bit
        else:
            s.inputs &= ~bit
            s.irr &= ~bit  # an input must stay up until it is acknowledged
        self._update()

    @property
    def pending(self) -> int | None:
        """The input that INT is raised for, or None."""
        s = self.state
        requests = s.irr & ~s.imr
        if not requests:
            return None
        serviced = s.isr & ~s.imr if s.special_mask else s.isr
        if s.special_fully_nested and self._first:
            serviced &= ~(1 << CASCADE)  # let the second chip's higher priorities through
        for rank in range(1, 9):
            number = s.lowest + rank & 7
            if serviced >> number & 1:
                return None
            if requests >> number & 1:
                return number
        return None

    def acknowledge(self) -> int:
        """The two INTA pulses: the vector, its input now in service (unless spurious)."""
        number = self.pending
        if number is None:
            return self.state.base + 7
        self._take(number)
        if number == CASCADE and self._first and self.cascaded is not None:
            vector = self.cascaded.acknowledge()
        else:
            vector = self.state.base + number
        self._lower()
        self._update()
        return vector

    def read(self, offset: int) -> int:
        """A guest's read: the poll word, IRR or ISR at 0; the mask at 1."""
        s = self.state
        if s.poll:
            s.poll = False
            number = self.pending
            if number is None:
                return 0
            self._take(number)
            self._lower()
            self._update()
            return 0x80 | number
        if offset:
            return s.imr
        return s.isr if s.read_isr else s.irr

    def write(self, offset: int, value: int) -> None:
        """A guest's write: ICW1, OCW2 or OCW3 at 0; ICW2-4 or the mask at 1."""
        s = self.state
        if offset:
            self._write_odd(value)
        elif value & ICW1:
            self._write_icw1(value)
        elif value & OCW3:
            if value & OCW3_READ:
                s.read_isr = bool(value & OCW3_READ_ISR)
            if value & OCW3_SET_SMM:
                s.special_mask = bool(value & OCW3_SMM)
            s.poll = bool(value & OCW3_POLL)
        else:
            self._write_ocw2(value >> 5, value & 7)
        self._update()

    def write_elcr(self, value: int) -> None:
        """Choose level triggering for the inputs whose bits are set."""
        s = self.state
        s.elcr = value & LEVEL_CAPABLE[0 if self._first else 1]
        s.irr |= s.inputs & s.elcr
        self._update()

    def _write_icw1(self, value: int) -> None:
        s = self.state
        self.state = PicState(
            inputs=s.inputs,
            elcr=s.elcr,
            base=s.base,
            irr=s.inputs & s.elcr,
            init_step=2,
            needs_icw4=bool(value & ICW1_NEEDS_ICW4),
            single=bool(value & ICW1_SINGLE),
            level_mode=bool(value & ICW1_LEVEL),
        )
        if value & ICW1_LEVEL:
            self.state.irr = s.inputs

    def _write_odd(self, value: int) -> None:
        s = self.state
        match s.init_step:
            case 2:
                s.base = value & 0xF8
                s.init_step = 3 if not s.single else 4 if s.needs_icw4 else 0
            case 3:
                s.init_step = 4 if s.needs_icw4 else 0  # the wiring of the cascade is fixed on a PC
            case 4:
                s.special_fully_nested = bool(value & ICW4_SPECIAL_FULLY_NESTED)
                s.auto_eoi = bool(value & ICW4_AEOI)
                s.init_step = 0
            case _:
                s.imr = value

    def _write_ocw2(self, command: int, number: int) -> None:
        s = self.state
        match command:
            case 0b000 | 0b100:
                s.rotate_on_auto_eoi = command == 0b100
            case 0b001 | 0b101:  # non-specific EOI, plain or rotating
                for rank in range(1, 9):
                    highest = s.lowest + rank & 7
                    if s.isr >> highest & 1 and not (s.special_mask and s.imr >> highest & 1):
                        s.isr &= ~(1 << highest)
                        if command == 0b101:
                            s.lowest = highest
                        break
            case 0b011 | 0b111:  # specific EOI, plain or rotating
                s.isr &= ~(1 << number)
                if command == 0b111:
                    s.lowest = number
            case 0b110:  # set priority
                s.lowest = number
            # 0b010 does nothing

    def _take(self, number: int) -> None:
        s, bit = self.state, 1 << number
        if not (s.elcr & bit or s.level_mode):
            s.irr &= ~bit
        if not s.auto_eoi:
            s.isr |= bit
        elif s.rotate_on_auto_eoi:
            s.lowest = number

    def _lower(self) -> None:
        """INT falls at every acknowledge, so that the next request is a new edge for the first chip's input."""
        if self._level:
            self._level = False
            self._output(False)

    def _update(self) -> None:
        level = self.pending is not None
        if level != self._level:
            self._level = level
            self._output(level)


@dataclass(frozen=True, slots=True)
class PicConfig:
    """The pair of interrupt controllers."""

    first: int = 0x20
    second: int = 0xA0
    elcr: int = 0x4D0
    legacy_bases: tuple[int, int] = field(default=(0x08, 0x70))
    """Vector bases that PC firmware leaves behind."""


class PicPair:
    """The PC's arrangement: the second chip's output is the first one's input 2. `output` is INTR to the processor."""

    def __init__(self, output: Callable[[bool], None], state: tuple[PicState, PicState] | None = None) -> None:
        first_state, second_state = state or (PicState(), PicState())
        self.first = Pic8259(output, True, first_state)
        self.second = Pic8259(lambda level: self.first.set_input(CASCADE, level), False, second_state)
        self.first.cascaded = self.second
        self.elcr = Elcr(self)

    def reset(self) -> None:
        """Power-on state of both."""
        self.second.reset()
        self.first.reset()

    def set_irq(self, number: int, level: bool) -> None:
        """A new level of ISA interrupt 0-15 (2 is the cascade and is ignored)."""
        if number >= 8:
            self.second.set_input(number - 8, level)
        elif number != CASCADE:
            self.first.set_input(number, level)

    def acknowledge(self) -> int:
        """INTA: the vector to deliver."""
        return self.first.acknowledge()

    def initialize(self, first_base: int, second_base: int, masks: tuple[int, int] = (0xFF, 0xFF)) -> None:
        """What firmware does: program both chips for 8086 mode with these vector bases and masks."""
        for chip, base, wiring, mask in zip(
            (self.first, self.second), (first_base, second_base), (1 << CASCADE, CASCADE), masks, strict=True
        ):
            chip.write(0, ICW1 | ICW1_NEEDS_ICW4)
            for word in (base, wiring, 0x01, mask):
                chip.write(1, word)


class Elcr:
    """The two edge/level control registers at offsets 0 and 1."""

    def __init__(self, pair: PicPair) -> None:
        self._chips = (pair.first, pair.second)

    def read(self, offset: int) -> int:
        """Which inputs are level-triggered."""
        return self._chips[offset].state.elcr

    def write(self, offset: int, value: int) -> None:
        """Choose level triggering for the inputs whose bits are set."""
        self._chips[offset].write_elcr(value)
