"""ACPI fixed hardware: PM1a event and control registers, the power-management timer, GPE block 0, the SMI command port.

Offsets in the register block: 0 PM1a status, 2 enable, 4 control, 8 timer, 0x20 GPE0 status, 0x22 enable.
Spec: ACPI 6.5, section 4.8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from xuni.bus.lines import Line
from xuni.bus.timers import Timers

PM_TIMER_HZ: Final = 3_579_545
SECOND: Final = 1_000_000_000
BLOCK_SIZE: Final = 0x40
STATUS, ENABLE, CONTROL, TIMER, GPE_STATUS, GPE_ENABLE = 0x00, 0x02, 0x04, 0x08, 0x20, 0x22


@dataclass(frozen=True, slots=True)
class AcpiPmConfig:
    """The power-management block; the FADT and the DSDT's _S5 package must say the same."""

    base: int = 0x600
    """First of BLOCK_SIZE I/O ports."""
    sci: int = 9
    """Interrupt line of ACPI events, level-triggered."""
    smi_command: int = 0xB2
    """Port through which the guest enables and disables ACPI mode."""
    enable_value: int = 0x02
    disable_value: int = 0x03
    s5_type: int = 0
    """SLP_TYP that means power off; bare-metal guests write 0x2000 to the control register."""
    s3_type: int = 1
    """SLP_TYP that means suspend to RAM: memory, this block and the real-time clock keep their power."""
    timer_bits: int = 32
    """Width of the timer: 24 or 32 (FADT flag TMR_VAL_EXT)."""


class Pm1(IntEnum):
    """PM1 status and enable bits."""

    TIMER, GLOBAL, POWER_BUTTON, SLEEP_BUTTON, RTC, WAKE = 1, 1 << 5, 1 << 8, 1 << 9, 1 << 10, 1 << 15


SCI_ENABLE: Final = 1
SLEEP_ENABLE: Final = 1 << 13
ENABLE_BITS: Final = Pm1.TIMER | Pm1.GLOBAL | Pm1.POWER_BUTTON | Pm1.SLEEP_BUTTON | Pm1.RTC


@dataclass(slots=True)
class AcpiPmState:
    """Registers. `timer_seen` is the guest time up to which the timer's carry is noted in `status`."""

    status: int = 0
    enable: int = 0
    control: int = SCI_ENABLE
    """ACPI mode is on from the start: there is no firmware that would need SMIs."""
    gpe_status: int = 0
    gpe_enable: int = 0
    timer_seen: int = 0
    smi_command: int = 0
    smi_status: int = 0
    asleep: bool = False
    """In S3, until an event that is enabled, or the power button."""


class AcpiPm:
    """The register block. `sleep` takes the power from the processors and the other chips, `wake` gives it back."""

    def __init__(
        self,
        timers: Timers,
        sci: Line,
        power_off: Callable[[], None],
        sleep: Callable[[], None] = lambda: None,
        wake: Callable[[], None] = lambda: None,
        config: AcpiPmConfig | None = None,
        state: AcpiPmState | None = None,
    ) -> None:
        self._now = timers.now
        self._timer = timers.timer(self._update)
        self._sci = sci
        self._power_off = power_off
        self._sleep = sleep
        self._wake = wake
        self.config = config or AcpiPmConfig()
        self.state = state or AcpiPmState()
        self.smi = SmiCommand(self)

    def reset(self) -> None:
        """Power-on state; the timer counts on."""
        self.state = AcpiPmState(timer_seen=self._now())
        self._update()

    def press_power_button(self) -> None:
        """Tell the guest that its user wants it off."""
        self.state.status |= Pm1.POWER_BUTTON
        self._update()

    def alarm(self) -> None:
        """The real-time clock's alarm output."""
        self.state.status |= Pm1.RTC
        self._update()

    def raise_gpe(self, number: int) -> None:
        """A general-purpose event (0-15)."""
        self.state.gpe_status |= 1 << number
        self._update()

    def timer(self) -> int:
        """The power-management timer."""
        return self._now() * PM_TIMER_HZ // SECOND & (1 << self.config.timer_bits) - 1

    def read(self, offset: int, size: int) -> int:
        """Any access inside the block."""
        if offset == TIMER and size == 4:
            return self.timer()
        s = self.state
        self._note_carry()
        block = (
            s.status.to_bytes(2, "little") + s.enable.to_bytes(2, "little") + s.control.to_bytes(4, "little")
            + self.timer().to_bytes(4, "little") + bytes(GPE_STATUS - TIMER - 4)
            + s.gpe_status.to_bytes(2, "little") + s.gpe_enable.to_bytes(2, "little")
            + bytes(BLOCK_SIZE - GPE_ENABLE - 2)
        )  # fmt: skip
        return int.from_bytes(block[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Any access inside the block, register by register; status bits are cleared by writing ones."""
        s = self.state
        self._note_carry()
        for register in (STATUS, ENABLE, CONTROL, GPE_STATUS, GPE_ENABLE):
            shift = 8 * (register - offset)
            part = value >> shift if shift >= 0 else value << -shift
            covered = (1 << 8 * size) - 1
            mask = (covered >> shift if shift >= 0 else covered << -shift) & 0xFFFF
            if not mask:
                continue
            part &= mask
            match register:
                case 0x00:
                    s.status &= ~part
                case 0x02:
                    s.enable = (s.enable & ~mask | part) & ENABLE_BITS
                case 0x04:
                    self._write_control(s.control & ~mask | part)
                case 0x20:
                    s.gpe_status &= ~part
                case 0x22:
                    s.gpe_enable = s.gpe_enable & ~mask | part
        self._update()

    def _write_control(self, value: int) -> None:
        s = self.state
        s.control = value & ~(SLEEP_ENABLE | SCI_ENABLE) | s.control & SCI_ENABLE
        if value & SLEEP_ENABLE:
            sleep_type = value >> 10 & 7
            if sleep_type == self.config.s5_type:
                self._power_off()
            elif sleep_type == self.config.s3_type:
                s.status &= ~Pm1.WAKE
                s.asleep = True
                self._sleep()

    def _half_period(self) -> int:
        """Ticks between changes of the timer's highest bit, each of which sets TMR_STS."""
        return 1 << self.config.timer_bits - 1

    def _note_carry(self) -> None:
        s, now, half = self.state, self._now(), self._half_period()
        if now * PM_TIMER_HZ // SECOND // half != s.timer_seen * PM_TIMER_HZ // SECOND // half:
            s.status |= Pm1.TIMER
        s.timer_seen = now

    def _update(self) -> None:
        """Drive the SCI, wake a guest that sleeps, and wait for the timer's next carry if it wants to hear of it."""
        s = self.state
        self._note_carry()
        if s.asleep and s.status & (s.enable & ~Pm1.TIMER | Pm1.POWER_BUTTON):
            s.asleep = False
            s.status |= Pm1.WAKE
            self._wake()
        pending = s.status & s.enable or s.gpe_status & s.gpe_enable
        self._sci.set(bool(pending and s.control & SCI_ENABLE))
        if s.enable & Pm1.TIMER and not s.status & Pm1.TIMER:
            half = self._half_period()
            ticks = (s.timer_seen * PM_TIMER_HZ // SECOND // half + 1) * half
            self._timer.set(-(-ticks * SECOND // PM_TIMER_HZ))
        else:
            self._timer.cancel()


class SmiCommand:
    """Ports 0xB2 (command) and 0xB3 (status): the only commands switch ACPI mode on and off."""

    def __init__(self, pm: AcpiPm) -> None:
        self._pm = pm

    def read(self, offset: int) -> int:
        """What was last written."""
        s = self._pm.state
        return s.smi_status if offset else s.smi_command

    def write(self, offset: int, value: int) -> None:
        """A command or a status byte."""
        s = self._pm.state
        if offset:
            s.smi_status = value
            return
        s.smi_command = value
        if value == self._pm.config.enable_value:
            s.control |= SCI_ENABLE
        elif value == self._pm.config.disable_value:
            s.control &= ~SCI_ENABLE
        self._pm._update()
