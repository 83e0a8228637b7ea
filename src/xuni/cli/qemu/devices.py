"""`-device` and `-global`: the devices that can be plugged into our board, and their properties.

To add one: an entry of `DEVICES`, its `case` in `device`, and the record that `Board.config` puts into the board's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from xuni.cli.qemu.properties import Properties
from xuni.devices.test_ports import DebugExitConfig, TestDeviceConfig
from xuni.machine.pc import PcConfig


@dataclass(frozen=True, slots=True)
class Kind:
    """A device: its bus, what it is for, its properties with their defaults."""

    bus: str
    about: str
    properties: dict[str, str] = field(default_factory=dict)


DEVICES: Final = {
    "isa-debug-exit": Kind("ISA", "ends the machine with the status that the guest writes",
                           {"iobase": "0x501", "iosize": "2"}),
    "pc-testdev": Kind("ISA", "ports and interrupts that test programs use"),
}  # fmt: skip

# Properties of devices that the board always has, with the values under which it already works.
FIXED: Final = {
    ("kvm-pit", "lost_tick_policy"): "discard",
    ("kvm-pit", "lost-tick-policy"): "discard",
    ("mc146818rtc", "lost_tick_policy"): "discard",
    ("PIIX4_PM", "disable_s3"): "0",
    ("PIIX4_PM", "disable_s4"): "1",
    ("ICH9-LPC", "disable_s3"): "0",
    ("ICH9-LPC", "disable_s4"): "1",
}


@dataclass(slots=True)
class Board:
    """What the options say of the board so far."""

    debug_exit: DebugExitConfig | None = None
    test_device: TestDeviceConfig | None = None
    pit: bool = True
    acpi_tables: bool = True
    presets: dict[tuple[str, str], str] = field(default_factory=dict)
    """Properties from -global: (device, name), value."""

    def config(self, base: PcConfig) -> PcConfig:
        """The board's record."""
        return replace(base, debug_exit=self.debug_exit, test_device=self.test_device, acpi_tables=self.acpi_tables,
                       pit=base.pit if self.pit else None)


def device(board: Board, properties: Properties) -> None:
    """Plug a device in. `Refusal`: there is none of this name, or not with these properties."""
    driver = properties.text_of("driver")
    if driver not in DEVICES:
        raise properties.refusal(f"{driver!r} is not a device of this machine; -device help lists those that there are")
    given = {key: value for (name, key), value in board.presets.items() if name == driver}
    whole = ",".join([driver, *(f"{key}={value}" for key, value in given.items())])
    presets = Properties(properties.option, whole, "driver")
    presets.text_of("driver")
    properties.text_of("id", "")
    match driver:
        case "isa-debug-exit":
            base = properties.number("iobase", presets.number("iobase", 0x501, most=0xFFFF), most=0xFFFF)
            size = properties.number("iosize", presets.number("iosize", 2, 1, 8), least=1, most=8)
            if board.debug_exit:
                raise properties.refusal("there is one already")
            if base + size > 0x10000:
                raise properties.refusal("its ports end beyond 0xffff")
            board.debug_exit = DebugExitConfig(base, size)
        case "pc-testdev":
            if board.test_device:
                raise properties.refusal("there is one already")
            board.test_device = TestDeviceConfig()
    properties.done()


def preset(board: Board, driver: str, key: str, value: str) -> bool:
    """A property for devices still to come; False if no device of ours has it."""
    if FIXED.get((driver, key)) == value:
        return True
    if driver in DEVICES and key in DEVICES[driver].properties:
        board.presets[driver, key] = value
        return True
    return False
