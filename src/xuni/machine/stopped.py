"""Why a machine stopped, and the exit status of the command that ran it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from xuni.exits import DebugCause


class ExitStatus(IntEnum):
    """Exit statuses that are not the guest's own.

    A guest that ends itself through the debug-exit device chooses its status (value * 2 + 1, always odd), and a
    command run in a guest gives its own; these are for everything else.
    """

    POWER_OFF = 0
    """The guest powered off, or reset where resets stop the machine."""
    BAD_INPUT = 2
    """A file, option or configuration that cannot be used; nothing ran."""
    ENGINE_FAILURE = 122
    """The engine could not go on; not the guest's fault."""
    HALTED = 123
    """The processor halted and nothing can wake it."""
    TIMEOUT = 124
    """The time given with --timeout passed, as with timeout(1)."""
    TRIPLE_FAULT = 125
    """The processor shut down."""
    INTERRUPTED = 130
    """Ended from the keyboard, as by SIGINT."""


@dataclass(frozen=True, slots=True)
class PowerOff:
    """The guest turned the power off."""

    exit_status: ClassVar[int] = ExitStatus.POWER_OFF

    def __str__(self) -> str:
        return "the guest powered off"


@dataclass(frozen=True, slots=True)
class Reset:
    """The guest asked for a reset, and the machine does not reboot."""

    exit_status: ClassVar[int] = ExitStatus.POWER_OFF

    def __str__(self) -> str:
        return "the guest reset the machine"


@dataclass(frozen=True, slots=True)
class Suspended:
    """The guest sleeps (ACPI S3), on a board that cannot wake it."""

    exit_status: ClassVar[int] = ExitStatus.POWER_OFF

    def __str__(self) -> str:
        return "the guest suspended the machine to memory"


@dataclass(frozen=True, slots=True)
class DebugExit:
    """The guest wrote `value` to the debug-exit port."""

    value: int

    @property
    def exit_status(self) -> int:
        """What a parent process sees: the low eight bits of value * 2 + 1."""
        return (self.value << 1 | 1) & 0xFF

    def __str__(self) -> str:
        return f"the guest wrote {self.value:#x} to the debug-exit port"


@dataclass(frozen=True, slots=True)
class TripleFault:
    """The processor shut down; `reason` says which exceptions led there."""

    reason: str
    exit_status: ClassVar[int] = ExitStatus.TRIPLE_FAULT

    def __str__(self) -> str:
        return f"triple fault: {self.reason}"


@dataclass(frozen=True, slots=True)
class Halted:
    """The processor sleeps, and nothing is left that could wake it."""

    reason: str
    exit_status: ClassVar[int] = ExitStatus.HALTED

    def __str__(self) -> str:
        return f"the processor halted for good: {self.reason}"


@dataclass(frozen=True, slots=True)
class Timeout:
    """The time given to `run` passed."""

    seconds: float
    exit_status: ClassVar[int] = ExitStatus.TIMEOUT

    def __str__(self) -> str:
        return f"the guest was still running after {self.seconds:g} s"


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The user ended it."""

    exit_status: ClassVar[int] = ExitStatus.INTERRUPTED

    def __str__(self) -> str:
        return "interrupted"


@dataclass(frozen=True, slots=True)
class DebugStop:
    """A debugger's stop on one processor; the machine can go on."""

    cpu: int
    cause: DebugCause
    address: int
    exit_status: ClassVar[int] = ExitStatus.INTERRUPTED

    def __str__(self) -> str:
        return f"{self.cause.value} at {self.address:#x} on processor {self.cpu}"


@dataclass(frozen=True, slots=True)
class Paused:
    """Someone who controls the machine from outside wants it to stand still; it can go on."""

    exit_status: ClassVar[int] = ExitStatus.INTERRUPTED

    def __str__(self) -> str:
        return "paused"


@dataclass(frozen=True, slots=True)
class Quit:
    """Someone who controls the machine from outside ended it."""

    exit_status: ClassVar[int] = ExitStatus.POWER_OFF

    def __str__(self) -> str:
        return "ended from outside"


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """The engine could not go on."""

    reason: str
    exit_status: ClassVar[int] = ExitStatus.ENGINE_FAILURE

    def __str__(self) -> str:
        return f"the engine failed: {self.reason}"


Stopped = (
    PowerOff | Reset | Suspended | DebugExit | TripleFault | Halted | Timeout | Interrupted | DebugStop | Paused | Quit
    | EngineFailed
)

STANDSTILL: Final = (DebugStop, Paused)
"""The stops after which every processor stands between two instructions, so that it can be looked at and changed."""
