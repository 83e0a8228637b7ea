"""8042 keyboard controller with a PS/2 keyboard and no pointing device.

Spec: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller"; keyboard commands:
the same, "Keyboard". Offsets: 0 is the data port (0x60), 4 the command and status port (0x64).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from xuni.bus.lines import Line

QUEUE_SIZE: Final = 256
"""Bytes the keyboard holds; what does not fit is lost, as in the real one's 16-byte buffer."""
DATA, COMMAND = 0, 4


@dataclass(frozen=True, slots=True)
class I8042Config:
    """The keyboard controller."""

    base: int = 0x60
    """Data port; the command port is 4 above."""
    irq: int = 1


class Status(IntEnum):
    """Status register."""

    OUTPUT_FULL, INPUT_FULL, SYSTEM, COMMAND, UNLOCKED, AUX_DATA, TIMEOUT, PARITY = (1 << bit for bit in range(8))


class Mode(IntEnum):
    """The controller's command byte."""

    KEYBOARD_IRQ, AUX_IRQ, SYSTEM, _, KEYBOARD_OFF, AUX_OFF, TRANSLATE = (1 << bit for bit in range(7))


class Command(IntEnum):
    """Controller commands."""

    READ_MODE = 0x20
    WRITE_MODE = 0x60
    DISABLE_AUX = 0xA7
    ENABLE_AUX = 0xA8
    TEST_AUX = 0xA9
    SELF_TEST = 0xAA
    TEST_KEYBOARD = 0xAB
    DISABLE_KEYBOARD = 0xAD
    ENABLE_KEYBOARD = 0xAE
    READ_INPUT_PORT = 0xC0
    READ_OUTPUT_PORT = 0xD0
    WRITE_OUTPUT_PORT = 0xD1
    WRITE_KEYBOARD_OUTPUT = 0xD2
    WRITE_AUX_OUTPUT = 0xD3
    WRITE_AUX = 0xD4
    DISABLE_A20 = 0xDD
    ENABLE_A20 = 0xDF
    RESET = 0xFE


class Key(IntEnum):
    """Commands to the keyboard, and its answers."""

    SET_LEDS, ECHO, SCAN_CODE_SET, IDENTIFY, SET_RATE = 0xED, 0xEE, 0xF0, 0xF2, 0xF3
    ENABLE, DISABLE, DEFAULTS, RESEND, RESET = 0xF4, 0xF5, 0xF6, 0xFE, 0xFF
    ACK, PASSED = 0xFA, 0xAA


OUTPUT_A20, OUTPUT_NOT_RESET = 0x02, 0x01
PARAMETERS: Final = frozenset(
    {Command.WRITE_MODE, Command.WRITE_OUTPUT_PORT, Command.WRITE_KEYBOARD_OUTPUT, Command.WRITE_AUX_OUTPUT,
     Command.WRITE_AUX}
)  # fmt: skip
"""Controller commands that take their parameter from the data port."""


@dataclass(slots=True)
class I8042State:
    """Controller and keyboard. `answers` go before scan codes."""

    mode: int = int(Mode.KEYBOARD_IRQ | Mode.SYSTEM | Mode.TRANSLATE)
    last_was_command: bool = False
    pending: int | None = None
    """A controller command whose parameter is awaited."""
    key_pending: int | None = None
    """A keyboard command whose parameter is awaited."""
    output_port: int = OUTPUT_A20 | OUTPUT_NOT_RESET
    answers: deque[tuple[int, bool]] = field(default_factory=deque)
    """The controller's own answers: a byte, and whether it counts as the pointing device's."""
    keys: deque[int] = field(default_factory=deque)
    scanning: bool = True
    scan_code_set: int = 2


class I8042:
    """The controller. `reset` resets the machine, `set_a20` drives the address gate."""

    def __init__(
        self,
        irq: Line,
        reset: Callable[[], None],
        set_a20: Callable[[bool], None] = lambda enabled: None,
        state: I8042State | None = None,
    ) -> None:
        self._irq = irq
        self._reset_machine = reset
        self._set_a20 = set_a20
        self.state = state or I8042State()

    def reset(self) -> None:
        """Power-on state."""
        self.state = I8042State()
        self._update_irq()

    def press(self, codes: bytes) -> int:
        """Queue scan codes as the guest is to see them (set 1 when translating); returns how many fitted."""
        s = self.state
        if not s.scanning:
            return 0
        accepted = codes[: QUEUE_SIZE - len(s.keys)]
        s.keys.extend(accepted)
        self._update_irq()
        return len(accepted)

    def read(self, offset: int) -> int:
        """The data or the status port."""
        s = self.state
        if offset == COMMAND:
            status = Status.UNLOCKED | (Status.COMMAND if s.last_was_command else 0)
            status |= Status.SYSTEM if s.mode & Mode.SYSTEM else 0
            if s.answers:
                status |= Status.OUTPUT_FULL | (Status.AUX_DATA if s.answers[0][1] else 0)
            elif self._key_ready:
                status |= Status.OUTPUT_FULL
            return status
        if offset != DATA:
            return 0xFF
        value = 0
        if s.answers:
            value = s.answers.popleft()[0]
        elif self._key_ready:
            value = s.keys.popleft()
        self._irq.set(False)  # each byte is an edge of its own
        self._update_irq()
        return value

    def write(self, offset: int, value: int) -> None:
        """The data or the command port."""
        s = self.state
        if offset == COMMAND:
            s.last_was_command = True
            s.pending = None
            self._command(value)
        elif offset == DATA:
            s.last_was_command = False
            if s.pending is not None:
                command, s.pending = s.pending, None
                self._parameter(command, value)
            else:
                s.mode &= ~Mode.KEYBOARD_OFF  # sending to the keyboard enables it
                self._key_command(value)
        self._update_irq()

    @property
    def _key_ready(self) -> bool:
        return bool(self.state.keys) and not self.state.mode & Mode.KEYBOARD_OFF

    def _answer(self, value: int, aux: bool = False) -> None:
        if len(self.state.answers) < QUEUE_SIZE:
            self.state.answers.append((value, aux))

    def _command(self, value: int) -> None:
        s = self.state
        match value:
            case Command.READ_MODE:
                self._answer(s.mode)
            case Command.DISABLE_AUX:
                s.mode |= Mode.AUX_OFF
            case Command.ENABLE_AUX:
                s.mode &= ~Mode.AUX_OFF
            case Command.TEST_AUX:
                self._answer(0x02)  # clock line stuck high: nothing is connected
            case Command.SELF_TEST:
                s.mode |= Mode.SYSTEM
                self._answer(0x55)
            case Command.TEST_KEYBOARD:
                self._answer(0x00)
            case Command.DISABLE_KEYBOARD:
                s.mode |= Mode.KEYBOARD_OFF
            case Command.ENABLE_KEYBOARD:
                s.mode &= ~Mode.KEYBOARD_OFF
            case Command.READ_INPUT_PORT:
                self._answer(0x80)  # keyboard not locked
            case Command.READ_OUTPUT_PORT:
                full = bool(s.answers) or self._key_ready
                self._answer(s.output_port | (0x10 if full else 0))
            case Command.DISABLE_A20 | Command.ENABLE_A20:
                a20 = OUTPUT_A20 if value == Command.ENABLE_A20 else 0
                self._write_output_port(s.output_port & ~OUTPUT_A20 | a20)
            case _ if value in PARAMETERS:
                s.pending = value
            case _ if value >= 0xF0 and not value & 1:  # pulse output bits low: bit 0 is the reset line
                self._reset_machine()

    def _parameter(self, command: int, value: int) -> None:
        match command:
            case Command.WRITE_MODE:
                self.state.mode = value
            case Command.WRITE_OUTPUT_PORT:
                self._write_output_port(value)
            case Command.WRITE_KEYBOARD_OUTPUT:
                self._answer(value)
            case Command.WRITE_AUX_OUTPUT:
                # Nobody drives the pointing device's lines: the byte comes back as the keyboard's, which tells
                # drivers at once that there is none, where silence would cost them a time-out.
                self._answer(value)
            case _:
                self._answer(0xFE, aux=True)  # no device: resend

    def _write_output_port(self, value: int) -> None:
        self.state.output_port = value
        self._set_a20(bool(value & OUTPUT_A20))
        if not value & OUTPUT_NOT_RESET:
            self._reset_machine()

    def _key_command(self, value: int) -> None:
        s = self.state
        if s.key_pending is not None:
            command, s.key_pending = s.key_pending, None
            self._answer(Key.ACK)
            if command == Key.SCAN_CODE_SET:
                if value == 0:
                    self._answer(s.scan_code_set)
                elif value <= 3:
                    s.scan_code_set = value
            return
        match value:
            case Key.SET_LEDS | Key.SET_RATE | Key.SCAN_CODE_SET:
                s.key_pending = value
                self._answer(Key.ACK)
            case Key.ECHO:
                self._answer(Key.ECHO)
            case Key.IDENTIFY:
                self._answer(Key.ACK)
                self._answer(0xAB)
                self._answer(0x41 if s.mode & Mode.TRANSLATE else 0x83)  # 0x83 passes through the translation table
            case Key.ENABLE | Key.DEFAULTS:
                s.scanning = True
                self._answer(Key.ACK)
            case Key.DISABLE:
                s.scanning = False
                self._answer(Key.ACK)
            case Key.RESET:
                s.keys.clear()
                s.scanning, s.scan_code_set = True, 2
                self._answer(Key.ACK)
                self._answer(Key.PASSED)
            case _:
                self._answer(Key.RESEND)

    def _update_irq(self) -> None:
        s = self.state
        full = bool(s.answers) and not s.answers[0][1] or not s.answers and self._key_ready
        self._irq.set(full and bool(s.mode & Mode.KEYBOARD_IRQ))
