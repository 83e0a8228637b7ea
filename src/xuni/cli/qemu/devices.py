"""`-device` and `-global`: the devices that can be plugged into our board, and their properties.

To add one: an entry of `DEVICES`, its `case` in `device`, and the record that `Board.config` puts into the board's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from xuni.cli.qemu.properties import SWITCH, Properties
from xuni.devices.iommu.unit import IommuConfig
from xuni.devices.pci.edu import EduConfig
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
    "edu": Kind("PCI", "QEMU's educational device: a factorial, interrupts, DMA", {"dma_mask": "0xfffffff"}),
    "intel-iommu": Kind("System", "Intel VT-d: remaps the DMA of PCI functions, and interrupts",
                        {"intremap": "on", "eim": "off", "aw-bits": "39", "pt": "on", "caching-mode": "off",
                         "device-iotlb": "off"}),
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
    iommu: IommuConfig | None = None
    edu: EduConfig | None = None
    pit: bool = True
    acpi_tables: bool = True
    presets: dict[tuple[str, str], str] = field(default_factory=dict)
    """Properties from -global: (device, name), value."""

    def config(self, base: PcConfig) -> PcConfig:
        """The board's record."""
        return replace(base, debug_exit=self.debug_exit, test_device=self.test_device, acpi_tables=self.acpi_tables,
                       iommu=self.iommu, edu=self.edu, pit=base.pit if self.pit else None)


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
        case "edu":
            mask = properties.number("dma-mask", presets.number("dma-mask", EDU_MASK, 1), 1)
            if board.edu:
                raise properties.refusal("there is one already")
            if mask & mask + 1:
                raise properties.refusal(f"dma_mask={mask:#x}: ones from bit 0 on, as 0xfffffff")
            board.edu = EduConfig(dma_bits=mask.bit_length())
        case "intel-iommu":
            if board.iommu:
                raise properties.refusal("there is one already")
            board.iommu = _iommu(properties, presets)
    properties.done()


EDU_MASK: Final = (1 << EduConfig().dma_bits) - 1


def _iommu(properties: Properties, presets: Properties) -> IommuConfig:
    """A remapping unit. Its fixed properties are accepted with the values that it has."""
    width = properties.number("aw-bits", presets.number("aw-bits", 39))
    if width not in (39, 48):
        raise properties.refusal(f"aw-bits={width}: 39 or 48")
    for name, only in (("eim", "off"), ("caching-mode", "off"), ("device-iotlb", "off"), ("pt", "on")):
        value = properties.text_of(name, presets.text_of(name, only))
        if value not in (only, "auto") and SWITCH.get(value) is not SWITCH[only]:
            raise properties.refusal(f"{name}={value} is not supported; {name}={only} is")
    text = properties.text_of("intremap", presets.text_of("intremap", "on"))
    if text != "auto" and text not in SWITCH:
        raise properties.refusal(f"intremap={text}: on, off or auto")
    return IommuConfig(address_width=width, interrupt_remapping=text == "auto" or SWITCH[text])


def preset(board: Board, driver: str, key: str, value: str) -> bool:
    """A property for devices still to come; False if no device of ours has it."""
    if FIXED.get((driver, key)) == value:
        return True
    if driver in DEVICES and key in DEVICES[driver].properties:
        board.presets[driver, key] = value
        return True
    return False
