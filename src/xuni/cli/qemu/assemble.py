"""From the options that were given to the machine that they describe. Nothing is started here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from xuni.boot import BootError, Format, Module, Source
from xuni.boot.loading import read_kernel, recognise
from xuni.cli import plan
from xuni.cli.description import Description
from xuni.cli.failure import Refusal
from xuni.cli.plan import End, Plan, SerialEnd
from xuni.cli.qemu import chardev, devices
from xuni.cli.qemu.chardev import Chardev
from xuni.cli.qemu.devices import Board
from xuni.cli.qemu.options import Given
from xuni.cli.qemu.properties import Properties, size
from xuni.cli.qemu.smp import processors
from xuni.devices.fw_cfg import FwCfgConfig
from xuni.devices.uart import COM_PORTS
from xuni.host import processor
from xuni.isa.x86 import models
from xuni.isa.x86.cpuid import Topology
from xuni.machine.pc import PcConfig, host_time

DEFAULT_MEMORY: Final = 128 << 20
DEFAULT_CPU: Final = "qemu64"
MONITORS: Final = ("null", "none", "vc")
ENGINES: Final = {"tcg": "soft", "soft": "soft", "kvm": "kvm"}
OTHER_ACCELERATORS: Final = ("xen", "hax", "hvf", "whpx", "nvmm", "qtest")
UNSUPPORTED_OBJECTS: Final = "this object is not supported; leave it out"


@dataclass(slots=True)
class Request:
    """What a command line asks for: the machine, and what is not the machine's."""

    machine: Description
    trace: list[str] = field(default_factory=list)
    """Patterns of probes."""
    log: Path | None = None
    """Where their events go; None: standard error."""
    pidfile: Path | None = None
    notes: list[str] = field(default_factory=list)
    """What is ignored or cannot be had."""


@dataclass(slots=True)
class Assembly:
    """What the options said so far; `finish` makes it a request."""

    board: Board = field(default_factory=Board)
    memory: int = DEFAULT_MEMORY
    cpus: int = 1
    topology: Topology | None = None
    cpu: str = DEFAULT_CPU
    engines: list[str] = field(default_factory=list)
    kernel: str | None = None
    initrd: str | None = None
    append: str = ""
    reboot: bool = True
    shutdown: bool = True
    defaults: bool = True
    nographic: bool = False
    serial: list[Given] = field(default_factory=list)
    chardevs: dict[str, Chardev] = field(default_factory=dict)
    controls: list[str] = field(default_factory=list)
    gdb: str | None = None
    qmp: list[str] = field(default_factory=list)
    paused: bool = False
    name: str = ""
    uuid: UUID | None = None
    fw_cfg: list[tuple[str, bytes]] = field(default_factory=list)
    wall_clock: Callable[[], datetime] = host_time
    trace: list[str] = field(default_factory=list)
    log: Path | None = None
    pidfile: Path | None = None
    notes: list[str] = field(default_factory=list)

    def note(self, given: Given | str, why: str) -> None:
        """Something is ignored, and that is said."""
        self.notes.append(f"{given}: {why}")

    # -- one option --------------------------------------------------------------------------------------------------

    def take(self, given: Given) -> None:
        """Understand one option. `Refusal` if it asks for what cannot be."""
        value, dashed = given.value, f"-{given.option.name}"
        match given.option.name:
            case "machine" | "M": self._machine(Properties(dashed, value, "type"))
            case "accel": self._accelerator(Properties(dashed, value, "accel"))
            case "enable-kvm": self.engines.append("kvm")
            case "cpu": self.cpu = value
            case "smp": self.cpus, self.topology = processors(Properties(dashed, value, "cpus"), self.notes)
            case "m": self._memory(Properties(dashed, value, "size"))
            case "kernel": self.kernel = value
            case "initrd": self.initrd = value
            case "append": self.append = value
            case "device": devices.device(self.board, Properties(dashed, value, "driver"))
            case "global": self._global(given)
            case "nodefaults": self.defaults = False
            case "no-reboot": self.reboot = False
            case "no-shutdown": self.shutdown = False
            case "action": self._action(Properties(dashed, value))
            case "no-acpi": self.board.acpi_tables = False
            case "nographic": self.nographic = True
            case "display" | "vga" | "vnc": self._screen(given)
            case "serial": self.serial.append(given)
            case "parallel" | "monitor": self._without(given, MONITORS)
            case "net" | "nic" | "audiodev": self._without(given, ("none",))
            case "chardev":
                name, end = chardev.chardev(dashed, value)
                self.chardevs[name] = end
            case "mon": self._monitor(Properties(dashed, value, "chardev"))
            case "qmp" | "qmp-pretty": self.qmp += [] if value == "none" else [value]
            case "gdb": self.gdb = None if value == "none" else value
            case "s": self.gdb = "tcp::1234"
            case "S": self.paused = True
            case "name": self.name = Properties(dashed, value, "guest").text_of("guest", "")
            case "uuid": self.uuid = self._uuid(given)
            case "fw_cfg": self._fw_cfg(Properties(dashed, value, "name"))
            case "rtc": self._clock(Properties(dashed, value))
            case "d": self._log_items(given)
            case "D": self.log = Path(value)
            case "trace": self.trace.append(value.removeprefix("enable="))
            case "pidfile": self.pidfile = Path(value)
            case "boot": self.note(given, "ignored, the kernel is what boots")
            case "sandbox" if Properties(dashed, value, "enable").switch("enable"):
                self.note(given, "no system calls are forbidden to this process")
            case "overcommit": self._overcommit(Properties(dashed, value))
            case "object": self._object(Properties(dashed, value, "type"))

    def _machine(self, properties: Properties) -> None:
        kind = properties.text_of("type", "pc")
        if kind != "pc" and not re.fullmatch(r"(pc-i440fx|pc-q35|q35|pc)(-[0-9.]+)?", kind):
            raise properties.refusal(f"there is no machine {kind}; there is one, a PC (pc, q35)")
        if "q35" in kind:
            self.note(f"-machine {kind}", "this is a PC of its own, without a chipset's particular devices")
        if "accel" in properties:
            self._engines(properties, properties.text_of("accel").split(":"))
        self.board.pit = properties.switch("pit", self.board.pit)
        self.board.acpi_tables = properties.switch("acpi", self.board.acpi_tables)
        for key, value in properties.left():
            if value not in MACHINE_PROPERTIES.get(key, ()):
                hint = "; leave it out" if key in MACHINE_PROPERTIES else ": no such property"
                raise properties.refusal(f"{key}={value} is not supported{hint}")

    def _accelerator(self, properties: Properties) -> None:
        self._engines(properties, [properties.text_of("accel")])
        for key, value in properties.left():
            if key not in ACCELERATOR_PROPERTIES:
                raise properties.refusal(f"{key}={value}: no such property")

    def _engines(self, properties: Properties, names: list[str]) -> None:
        for name in names:
            if name in ENGINES:
                self.engines.append(ENGINES[name])
            elif name in OTHER_ACCELERATORS and len(names) > 1:
                self.note(f"accel={name}", "there is no such accelerator here; the next is tried")
            else:
                raise properties.refusal(f"there is no accelerator {name}; take tcg (xuni's own engine) or kvm")

    def _memory(self, properties: Properties) -> None:
        text = properties.text_of("size", "128")
        memory = size(text, "m")
        if not memory:
            raise properties.refusal(f"{text!r} is no size; write 512M or 2G (a bare number counts MiB)")
        self.memory = memory
        for key, value in properties.left():
            if key not in ("slots", "maxmem"):
                raise properties.refusal(f"{key}={value}: no such property")
            self.note(f"-m {key}={value}", "memory cannot be added later")

    def _global(self, given: Given) -> None:
        text = given.value
        if "=" in text.partition(".")[0] or text.startswith("driver="):
            properties = Properties("-global", text)
            driver, key, value = (properties.text_of(word) for word in ("driver", "property", "value"))
        else:
            found = re.fullmatch(r"([^.=]+)\.([^=]+)=(.*)", text)
            if not found:
                raise Refusal(f"{given}: write DRIVER.PROPERTY=VALUE")
            driver, key, value = found.groups()
        if not devices.preset(self.board, driver, key, value):
            self.note(given, f"ignored, there is no device {driver} with such a property")

    def _action(self, properties: Properties) -> None:
        for key, value in properties.left():
            match key, value:
                case "reboot", "reset" | "shutdown": self.reboot = value == "reset"
                case "shutdown", "poweroff" | "pause": self.shutdown = value == "poweroff"
                case "panic" | "watchdog", _: self.note(f"-action {key}={value}", "ignored, nothing reports such an event")
                case _: raise properties.refusal(f"{key}={value} is not supported; leave it out")

    def _screen(self, given: Given) -> None:
        kind = given.value.partition(",")[0]
        if kind != "none":
            raise Refusal(f"{given}: not supported, there is no screen; take -{given.option.name} none")

    def _without(self, given: Given, allowed: tuple[str, ...]) -> None:
        if given.value.partition(",")[0].partition(":")[0] not in allowed:
            monitor = given.option.name == "monitor"
            why = "the only monitor is one for programs, -qmp" if monitor else "there is none"
            raise Refusal(f"{given}: not supported, {why}; write -{given.option.name} none")

    def _monitor(self, properties: Properties) -> None:
        name, mode = properties.text_of("chardev"), properties.text_of("mode", "readline")
        properties.switch("pretty")
        properties.done()
        if mode != "control":
            raise properties.refusal("there is no monitor of this kind; mode=control is one for programs")
        self.controls.append(name)

    def _uuid(self, given: Given) -> UUID:
        try:
            return UUID(given.value)
        except ValueError:
            raise Refusal(f"{given}: no UUID; write it as 550e8400-e29b-41d4-a716-446655440000") from None

    def _fw_cfg(self, properties: Properties) -> None:
        name = properties.text_of("name")
        if "string" in properties:
            data = properties.text_of("string").encode()
        else:
            path = properties.text_of("file")
            try:
                data = Path(path).read_bytes()
            except OSError as error:
                raise properties.refusal(f"{path}: {error.strerror}") from error
        properties.done()
        if not name.isascii() or not 0 < len(name) < 56:
            raise properties.refusal(f"name={name}: 1 to 55 ASCII characters")
        if not name.startswith("opt/"):
            self.note(f"-fw_cfg name={name}", "names of one's own begin with opt/")
        self.fw_cfg.append((name, data))

    def _clock(self, properties: Properties) -> None:
        base = properties.text_of("base", "utc")
        clock = properties.text_of("clock", "host")
        if clock not in ("host", "rt"):
            raise properties.refusal(f"clock={clock} is not supported; the clock is the host's")
        if (drift := properties.text_of("driftfix", "none")) != "none":
            self.note(f"-rtc driftfix={drift}", "ignored, there are no ticks to make up for")
        properties.done()
        if base == "localtime":
            self.wall_clock = lambda: datetime.now()
        elif base != "utc":
            try:
                start = datetime.fromisoformat(base).replace(tzinfo=UTC)
            except ValueError:
                raise properties.refusal(f"base={base}: utc, localtime, or a date as 2006-06-17T16:01:21") from None
            begun = host_time()
            self.wall_clock = lambda: start + (host_time() - begun)

    def _log_items(self, given: Given) -> None:
        for item in given.value.split(","):
            if item.startswith("trace:"):
                self.trace.append(item.removeprefix("trace:"))
            elif item in ("guest_errors", "unimp", "strace", "nochain"):
                self.note(f"-d {item}", "ignored, nothing logs that")
            else:
                raise Refusal(f"{given}: {item!r} is not supported; trace:PATTERN shows probes, as -d help lists them")

    def _overcommit(self, properties: Properties) -> None:
        for key, value in properties.left():
            if key not in ("mem-lock", "cpu-pm"):
                raise properties.refusal(f"{key}={value}: no such property")
            if value != "off":
                self.note(f"-overcommit {key}={value}", "ignored, the host shares as it does")

    def _object(self, properties: Properties) -> None:
        kind = properties.text_of("type", properties.text_of("qom-type", ""))
        if kind not in ("rng-random", "rng-builtin", "iothread", "memory-backend-ram"):
            raise properties.refusal(f"{kind}: {UNSUPPORTED_OBJECTS}")
        self.note(f"-object {kind}", "ignored, nothing here would use it")

    # -- all of them -------------------------------------------------------------------------------------------------

    def finish(self) -> Request:
        """The machine of all the options together. `Refusal` if they do not fit, or the kernel is none."""
        if self.kernel is None:
            raise Refusal("there is no firmware that would look for something to boot; give a kernel with -kernel FILE")
        format, modules = self._images(self.kernel)
        for name in self.controls:
            if name not in self.chardevs or not self.chardevs[name].address:
                raise Refusal(f"-mon chardev={name}: there is no -chardev socket with this id")
            self.qmp.append(self.chardevs[name].address)
        try:
            host_vendor = processor.vendor() if "kvm" in self.engines[:1] else None
            cpu, notes = models.parse(self.cpu, "max", processor.physical_address_bits(), host_vendor)
        except ValueError as error:
            raise Refusal(f"-cpu {self.cpu}: {error}") from error
        self.notes += [f"-cpu {self.cpu}: {note}" for note in notes]
        lines = self._serial_lines()
        used = [number for number, (_, end) in enumerate(lines) if end.end is End.STDOUT]
        if len(used) > 1:
            raise Refusal("-serial stdio: one line alone can have standard output; send the others to a file or null")
        ends = tuple(end for _, end in lines)
        fw_cfg = FwCfgConfig(files=tuple(self.fw_cfg), uuid=self.uuid.bytes if self.uuid else bytes(16))
        board = self.board.config(PcConfig(serial=tuple(COM_PORTS[port] for port, _ in lines), fw_cfg=fw_cfg))
        console = ends[used[0]] if used else SerialEnd(End.NOWHERE)
        machine = Description(
            Plan(Path(self.kernel), modules, self.append, ends, plan.input_for(console), used[0] if used else 0, format),
            self.memory, self.cpus, replace(cpu, topology=self.topology), board, ":".join(self.engines) or "soft",
            reboot=self.reboot, reset=self.reboot, linger=not self.shutdown, wall_clock=self.wall_clock,
            name=self.name, uuid=self.uuid, gdb=self.gdb, qmp=tuple(self.qmp), paused=self.paused,
        )  # fmt: skip
        return Request(machine, self.trace, self.log, self.pidfile, self.notes)

    def _images(self, kernel: str) -> tuple[Format, tuple[Source | Module, ...]]:
        """What kind of kernel it is, and what is loaded beside it."""
        path = Path(kernel)
        try:
            path.open("rb").close()
        except OSError as error:
            raise Refusal(f"could not open kernel file '{kernel}': {error.strerror}") from error
        try:
            multiboot = recognise(read_kernel(path)) is Format.MULTIBOOT
        except BootError as error:
            raise Refusal(f"error loading kernel: {error}") from error
        if self.initrd is None:
            return Format.MULTIBOOT if multiboot else Format.AUTO, ()
        if not multiboot:
            return Format.AUTO, (Path(self.initrd),)
        words = [word.replace("\0", ",").lstrip() for word in self.initrd.replace(",,", "\0").split(",")]
        return Format.MULTIBOOT, tuple(plan.module(Path(word)) for word in words if word)

    def _serial_lines(self) -> list[tuple[int, SerialEnd]]:
        """The serial ports that there are, each with its end."""
        if not self.serial:
            if self.nographic and self.defaults:
                return [(0, SerialEnd(End.STDOUT))]
            return [(0, SerialEnd(End.NOWHERE))] if self.defaults else []
        if len(self.serial) > len(COM_PORTS):
            raise Refusal(f"{self.serial[len(COM_PORTS)]}: there are {len(COM_PORTS)} serial ports")
        ends = [chardev.serial("-serial", given.value, self.chardevs) for given in self.serial]
        return [(port, end) for port, end in enumerate(ends) if end is not None]


def assemble(given: list[Given], notes: list[str]) -> Request:
    """The machine of a command line's options."""
    assembly = Assembly(notes=notes)
    for one in given:
        assembly.take(one)
    return assembly.finish()


MACHINE_PROPERTIES: Final = {
    "kernel-irqchip": ("on", "off", "split"), "smm": ("off", "auto"), "vmport": ("off", "auto"), "usb": ("off",),
    "graphics": ("on", "off"), "dump-guest-core": ("on", "off"), "mem-merge": ("on", "off"), "hpet": ("off",),
    "nvdimm": ("off",), "i8042": ("on",), "suppress-vmdesc": ("on", "off"), "igd-passthru": ("off",), "hmat": ("off",),
    "default-bus-bypass-iommu": ("off",), "fd-bootchk": ("on", "off"), "smbus": ("off",), "sata": ("off",),
    "x-option-roms": ("on", "off"), "acpi": ("on", "off", "auto"), "boot": (),
}  # fmt: skip
"""Properties of QEMU's PC, each with the values under which our machine is what was asked for."""
ACCELERATOR_PROPERTIES: Final = (
    "thread", "tb-size", "split-wx", "one-insn-per-tb", "kernel-irqchip", "kvm-shadow-mem", "dirty-ring-size",
    "eager-split-size", "notify-vmexit", "notify-window", "device",
)  # fmt: skip
"""How an accelerator works inside; the guest sees nothing of it."""
